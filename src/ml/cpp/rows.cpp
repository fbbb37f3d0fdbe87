// Element-wise and row-wise kernels: sums and functions in f32, values in the type of the activations.
#include "simd.h"

namespace levain {

namespace {

inline float silu(float x) { return x / (1.f + __builtin_expf(-x)); }
inline __m256 sigmoid8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.f);
  return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// Rounds to the values that type T can hold.
template <typename T>
inline __m256 rounded(__m256 v) {
  if constexpr (sizeof(T) == 2) {
    uint16_t half[8];
    store8(half, v);
    return load8(half);
  }
  return v;
}
template <typename T>
inline float rounded(float v) {
  if constexpr (sizeof(T) == 2) {
    uint16_t half = narrow(v);
    return load1(&half);
  }
  return v;
}

template <typename T>
void norm_rows(const T* x, const T* weight, int64_t rows, int64_t width, float eps, T* out, float* inverse) {
  for (int64_t r = 0; r < rows; r++, x += width, out += width) {
    __m256 squares = _mm256_setzero_ps();
    float rest = 0.f;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
      __m256 v = load8(x + i);
      squares = _mm256_fmadd_ps(v, v, squares);
    }
    for (; i < width; i++) rest += load1(x + i) * load1(x + i);
    const float scale = 1.f / __builtin_sqrtf((sum8(squares) + rest) / static_cast<float>(width) + eps);
    inverse[r] = scale;
    const __m256 s = _mm256_set1_ps(scale);
    for (i = 0; i + 8 <= width; i += 8)
      store8(out + i, _mm256_mul_ps(load8(weight + i), rounded<T>(_mm256_mul_ps(load8(x + i), s))));
    for (; i < width; i++) store1(out + i, load1(weight + i) * rounded<T>(load1(x + i) * scale));
  }
}

// With n = x * inverse and d = gradient * weight: inverse * (d - n * mean(d * n)).
template <typename T>
void norm_rows_backward(const T* g, const T* x, const T* weight, int64_t rows, int64_t width, const float* inverse,
                        T* out) {
  for (int64_t r = 0; r < rows; r++, g += width, x += width, out += width) {
    const float scale = inverse[r];
    const __m256 s = _mm256_set1_ps(scale);
    __m256 dots = _mm256_setzero_ps();
    float rest = 0.f;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8)
      dots = _mm256_fmadd_ps(_mm256_mul_ps(load8(g + i), load8(weight + i)), _mm256_mul_ps(load8(x + i), s), dots);
    for (; i < width; i++) rest += load1(g + i) * load1(weight + i) * load1(x + i) * scale;
    const float mean = (sum8(dots) + rest) / static_cast<float>(width);
    const __m256 m = _mm256_set1_ps(mean);
    for (i = 0; i + 8 <= width; i += 8) {
      __m256 d = _mm256_mul_ps(load8(g + i), load8(weight + i)), n = _mm256_mul_ps(load8(x + i), s);
      store8(out + i, _mm256_mul_ps(s, _mm256_fnmadd_ps(n, m, d)));
    }
    for (; i < width; i++)
      store1(out + i, scale * (load1(g + i) * load1(weight + i) - load1(x + i) * scale * mean));
  }
}

template <typename T>
void silu_mul_rows(const T* gate, const T* up, int64_t count, T* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 g = load8(gate + i);
    store8(out + i, _mm256_mul_ps(rounded<T>(_mm256_mul_ps(g, sigmoid8(g))), load8(up + i)));
  }
  for (; i < count; i++) store1(out + i, rounded<T>(silu(load1(gate + i))) * load1(up + i));
}

template <typename T>
void silu_mul_rows_backward(const T* gradient, const T* gate, const T* up, int64_t count, T* dgate, T* dup) {
  const __m256 one = _mm256_set1_ps(1.f);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 d = load8(gradient + i), g = load8(gate + i), u = load8(up + i), s = sigmoid8(g);
    __m256 value = _mm256_mul_ps(g, s);
    store8(dup + i, _mm256_mul_ps(d, value));
    // d silu / dg = s * (1 + g * (1 - s)) = s + value * (1 - s)
    __m256 slope = _mm256_fmadd_ps(value, _mm256_sub_ps(one, s), s);
    store8(dgate + i, _mm256_mul_ps(_mm256_mul_ps(d, u), slope));
  }
  for (; i < count; i++) {
    const float d = load1(gradient + i), g = load1(gate + i), u = load1(up + i);
    const float s = 1.f / (1.f + __builtin_expf(-g)), value = g * s;
    store1(dup + i, d * value);
    store1(dgate + i, d * u * (s + value * (1.f - s)));
  }
}

template <typename T>
void rope_rows(const T* x, int64_t rows, int64_t heads, int64_t size, const float* cos, const float* sin,
               const int64_t* positions, float sign, T* out) {
  const int64_t half = size / 2;
  const __m256 turn = _mm256_set1_ps(sign);
  for (int64_t r = 0; r < rows; r++) {
    const float *c = cos + positions[r] * half, *s = sin + positions[r] * half;
    for (int64_t h = 0; h < heads; h++, x += size, out += size) {
      int64_t i = 0;
      for (; i + 8 <= half; i += 8) {
        __m256 a = load8(x + i), b = load8(x + half + i), k = _mm256_loadu_ps(c + i);
        __m256 t = _mm256_mul_ps(turn, _mm256_loadu_ps(s + i));
        store8(out + i, _mm256_fnmadd_ps(b, t, _mm256_mul_ps(a, k)));
        store8(out + half + i, _mm256_fmadd_ps(a, t, _mm256_mul_ps(b, k)));
      }
      for (; i < half; i++) {
        const float a = load1(x + i), b = load1(x + half + i);
        store1(out + i, a * c[i] - b * sign * s[i]);
        store1(out + half + i, b * c[i] + a * sign * s[i]);
      }
    }
  }
}

// Sums of 4 weight rows against 2 rows of x (the second may repeat the first).
template <typename W>
inline void dot4(const W* w, int64_t w_row, const float* x0, const float* x1, int64_t in, float* y0, float* y1) {
  __m256 a0 = _mm256_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  const W *w0 = w, *w1 = w + w_row, *w2 = w1 + w_row, *w3 = w2 + w_row;
  int64_t k = 0;
  for (; k + 8 <= in; k += 8) {
    const __m256 u = _mm256_loadu_ps(x0 + k), v = _mm256_loadu_ps(x1 + k);
    __m256 p = load8(w0 + k);
    a0 = _mm256_fmadd_ps(p, u, a0);
    b0 = _mm256_fmadd_ps(p, v, b0);
    p = load8(w1 + k);
    a1 = _mm256_fmadd_ps(p, u, a1);
    b1 = _mm256_fmadd_ps(p, v, b1);
    p = load8(w2 + k);
    a2 = _mm256_fmadd_ps(p, u, a2);
    b2 = _mm256_fmadd_ps(p, v, b2);
    p = load8(w3 + k);
    a3 = _mm256_fmadd_ps(p, u, a3);
    b3 = _mm256_fmadd_ps(p, v, b3);
  }
  _mm_storeu_ps(y0, sums4(a0, a1, a2, a3));
  _mm_storeu_ps(y1, sums4(b0, b1, b2, b3));
  for (; k < in; k++) {
    const float p[4] = {load1(w0 + k), load1(w1 + k), load1(w2 + k), load1(w3 + k)};
    for (int i = 0; i < 4; i++) {
      y0[i] += p[i] * x0[k];
      y1[i] += p[i] * x1[k];
    }
  }
}

struct Rows {
  const float* x;
  int64_t rows, in;
  Matrix weight;
  int64_t out;
  const LowRank* change;
  const float* low;  // rows x rank: x * down^T
  const float* bias;
  Result result;
};

template <typename W>
void linear_outputs(const Rows& job, int64_t begin, int64_t end) {
  const auto* weight = static_cast<const W*>(job.weight.data);
  // For more than two rows the four weight rows are widened once.
  float* wide = sizeof(W) == 2 && job.rows > 2 ? scratch(4 * job.in) : nullptr;
  for (int64_t block = begin; block < end; block++) {
    // The last block starts early enough to have four rows: it repeats some outputs.
    const int64_t n = job.out < 4 ? 0 : (block * 4 + 4 <= job.out ? block * 4 : job.out - 4);
    const int64_t count = job.out < 4 ? job.out : 4;
    const W* w = weight + n * job.weight.row;
    const int64_t distance = job.out < 4 ? 0 : job.weight.row;
    if (wide)
      for (int64_t i = 0; i < count; i++) widen(job.weight, (n + i) * job.weight.row, job.in, wide + i * job.in);
    for (int64_t r = 0; r < job.rows; r += 2) {
      const int64_t other = r + 1 < job.rows ? r + 1 : r;
      float y[2][4];
      if (job.out < 4) {
        for (int64_t i = 0; i < count; i++) {
          float y0[4], y1[4];
          dot4(w + i * job.weight.row, 0, job.x + r * job.in, job.x + other * job.in, job.in, y0, y1);
          y[0][i] = y0[0], y[1][i] = y1[0];
        }
      } else if (wide) {
        dot4(wide, job.in, job.x + r * job.in, job.x + other * job.in, job.in, y[0], y[1]);
      } else {
        dot4(w, distance, job.x + r * job.in, job.x + other * job.in, job.in, y[0], y[1]);
      }
      for (int64_t q = r; q <= other; q++)
        for (int64_t i = 0; i < count; i++) {
          float value = y[q - r][i];
          if (job.change) {
            const LowRank& c = *job.change;
            float sum = 0.f;
            for (int64_t k = 0; k < c.rank; k++) sum += c.up[(n + i) * c.rank + k] * job.low[q * c.rank + k];
            value += c.scale * sum;
          }
          if (job.bias) value += job.bias[n + i];
          const int64_t at = q * job.result.row + n + i;
          if (job.result.type == Type::bf16)
            static_cast<uint16_t*>(job.result.data)[at] = narrow(value);
          else
            static_cast<float*>(job.result.data)[at] = value;
        }
    }
  }
  release(wide);
}

}  // namespace

void linear_rows(const float* x, int64_t rows, int64_t in, Matrix weight, int64_t out, const LowRank* change,
                 const float* bias, Result result, Parallel parallel) {
  float* low = nullptr;
  if (change) {
    low = scratch(rows * change->rank);
    Matrix down{change->down, Type::f32, in, 1};
    linear_rows(x, rows, in, down, change->rank, nullptr, nullptr, Result{low, Type::f32, change->rank, false}, serial);
  }
  Rows job{x, rows, in, weight, out, change, low, bias, result};
  parallel(
      (out + 3) / 4,
      [](void* context, int64_t begin, int64_t end) {
        const auto& job = *static_cast<Rows*>(context);
        if (job.weight.type == Type::bf16)
          linear_outputs<uint16_t>(job, begin, end);
        else
          linear_outputs<float>(job, begin, end);
      },
      &job);
  release(low);
}

#define LEVAIN_TYPED(type, call) \
  if (type == Type::bf16) {      \
    using T = uint16_t;          \
    call;                        \
  } else {                       \
    using T = float;             \
    call;                        \
  }
#define LEVAIN_IN(name) static_cast<const T*>(name)
#define LEVAIN_OUT(name) static_cast<T*>(name)

void rms_norm(const void* x, const void* weight, Type type, int64_t rows, int64_t width, float eps, void* out,
              float* inverse) {
  LEVAIN_TYPED(type, norm_rows(LEVAIN_IN(x), LEVAIN_IN(weight), rows, width, eps, LEVAIN_OUT(out), inverse))
}

void rms_norm_backward(const void* gradient, const void* x, const void* weight, Type type, int64_t rows, int64_t width,
                       const float* inverse, void* out) {
  LEVAIN_TYPED(type, norm_rows_backward(LEVAIN_IN(gradient), LEVAIN_IN(x), LEVAIN_IN(weight), rows, width, inverse,
                                        LEVAIN_OUT(out)))
}

void silu_mul(const void* gate, const void* up, Type type, int64_t count, void* out) {
  LEVAIN_TYPED(type, silu_mul_rows(LEVAIN_IN(gate), LEVAIN_IN(up), count, LEVAIN_OUT(out)))
}

void silu_mul_backward(const void* gradient, const void* gate, const void* up, Type type, int64_t count,
                       void* gate_gradient, void* up_gradient) {
  LEVAIN_TYPED(type, silu_mul_rows_backward(LEVAIN_IN(gradient), LEVAIN_IN(gate), LEVAIN_IN(up), count,
                                            LEVAIN_OUT(gate_gradient), LEVAIN_OUT(up_gradient)))
}

void rope(const void* x, Type type, int64_t rows, int64_t heads, int64_t size, const float* cos, const float* sin,
          const int64_t* positions, bool backward, void* out) {
  const float sign = backward ? -1.f : 1.f;
  LEVAIN_TYPED(type, rope_rows(LEVAIN_IN(x), rows, heads, size, cos, sin, positions, sign, LEVAIN_OUT(out)))
}

RowSummary summarize(const float* logits, int64_t count) {
  __m256 top = _mm256_set1_ps(-__builtin_inff());
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(logits + i));
  float largest = max8(top);
  for (; i < count; i++) largest = logits[i] > largest ? logits[i] : largest;
  int64_t best = 0;
  while (best + 1 < count && logits[best] != largest) best++;
  const __m256 shift = _mm256_set1_ps(largest);
  // Partial sums of 4,096 keep the error of a large vocabulary small.
  double sum = 0;
  for (i = 0; i < count;) {
    const int64_t stop = i + 4096 < count ? i + 4096 : count;
    __m256 part = _mm256_setzero_ps();
    for (; i + 8 <= stop; i += 8) part = _mm256_add_ps(part, exp8(_mm256_sub_ps(_mm256_loadu_ps(logits + i), shift)));
    sum += sum8(part);
    for (; i < stop; i++) sum += __builtin_expf(logits[i] - largest);
  }
  return {best, largest + static_cast<float>(__builtin_log(sum))};
}

void probabilities(float* logits, int64_t count, float log_sum) {
  const __m256 shift = _mm256_set1_ps(log_sum);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(logits + i, exp8(_mm256_sub_ps(_mm256_loadu_ps(logits + i), shift)));
  for (; i < count; i++) logits[i] = __builtin_expf(logits[i] - log_sum);
}

}  // namespace levain
