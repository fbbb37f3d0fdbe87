// AdamW in one pass over the memory: what libtorch's operators do one after the other, each reading and writing everything.
#include "simd.h"

namespace levain {

namespace {

// `stored` is the weight in its own type, rounded from `weight`; the same place where the type is f32.
template <typename T, typename G>
void step(const AdamW& s, int64_t count, const G* gradient, float* mean, float* square, float* weight, T* stored) {
  const __m256 keep = _mm256_set1_ps(s.keep), gain1 = _mm256_set1_ps(s.gain1), keep2 = _mm256_set1_ps(s.keep2);
  const __m256 gain2 = _mm256_set1_ps(s.gain2), root = _mm256_set1_ps(s.root), eps = _mm256_set1_ps(s.eps);
  const __m256 rate = _mm256_set1_ps(s.rate);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 g = load8(gradient + i), m = load8(mean + i);
    const __m256 first = _mm256_fmadd_ps(gain1, _mm256_sub_ps(g, m), m);
    const __m256 second = _mm256_fmadd_ps(gain2, _mm256_mul_ps(g, g), _mm256_mul_ps(keep2, load8(square + i)));
    const __m256 below = _mm256_add_ps(_mm256_div_ps(_mm256_sqrt_ps(second), root), eps);
    const __m256 w = _mm256_fmadd_ps(rate, _mm256_div_ps(first, below), _mm256_mul_ps(keep, load8(weight + i)));
    store8(mean + i, first);
    store8(square + i, second);
    store8(weight + i, w);
    if constexpr (sizeof(T) == 2) store8(stored + i, w);
  }
  for (; i < count; i++) {
    const float g = load1(gradient + i);
    mean[i] += s.gain1 * (g - mean[i]);
    square[i] = s.keep2 * square[i] + s.gain2 * (g * g);
    weight[i] = s.keep * weight[i] + s.rate * (mean[i] / (__builtin_sqrtf(square[i]) / s.root + s.eps));
    if constexpr (sizeof(T) == 2) store1(stored + i, weight[i]);
  }
}

template <typename T>
void step(const AdamW& s, int64_t count, const void* gradient, Type type, float* mean, float* square, float* weight,
          T* stored) {
  if (type == Type::bf16)
    step(s, count, static_cast<const uint16_t*>(gradient), mean, square, weight, stored);
  else
    step(s, count, static_cast<const float*>(gradient), mean, square, weight, stored);
}

}  // namespace

void adamw(const AdamW& settings, int64_t count, const void* gradient, Type gradient_type, float* mean, float* square,
           float* weight, uint16_t* stored) {
  if (stored != nullptr)
    step(settings, count, gradient, gradient_type, mean, square, weight, stored);
  else
    step(settings, count, gradient, gradient_type, mean, square, weight, weight);
}

}  // namespace levain
