// Products of few rows for CPUs with AVX-512: a weight is read once where it lies. Each sum runs over k in the same order whatever the
// number of rows, so that a row's result does not depend on the rows beside it.
#include <immintrin.h>

#include <cstring>

#include "avx512.h"

namespace levain {

namespace {

constexpr int64_t kStep = 32;
constexpr int64_t kAhead = 8;  // weight rows: what lies so far ahead is fetched, line by line, as all passes over these rows go on

// Of 32 bf16 the even ones and the odd ones, as f32: a shift and a mask where a conversion would take two shuffles.
inline __m512 even(__m512i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline __m512 odd(__m512i v) { return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000)))); }

struct Pair {
  __m512 first, second;
};
inline Pair load(const uint16_t* p, int64_t count) {
  const __m512i v = count >= kStep ? _mm512_loadu_si512(p)
                                   : _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), p);
  return {even(v), odd(v)};
}
inline Pair load(const float* p, int64_t count) {
  if (count >= kStep) return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)};
  const auto mask = [](int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); };
  return {_mm512_maskz_loadu_ps(mask(count), p), _mm512_maskz_loadu_ps(mask(count - 16), p + (count > 16 ? 16 : 0))};
}

template <int kRows, typename W>
void dots(const W* w, int64_t w_row, const float* x, int64_t x_row, int64_t in, int64_t pass, int64_t passes, float* y) {
  const int64_t lines = 4 * kStep * static_cast<int64_t>(sizeof(W)) / 64 / passes;
  const char* ahead = reinterpret_cast<const char*>(w + kAhead * w_row) + pass * (in / kStep * lines * 64);
  __m512 sums[4][kRows];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) sums[i][r] = _mm512_setzero_ps();
  const auto step = [&](int64_t k, int64_t count) __attribute__((always_inline)) {
    Pair p[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) p[i] = load(w + i * w_row + k, count);
    // In the order of addresses, so that the processor's own prefetcher sees a stream and goes before it.
    for (int64_t i = 0; i < lines; i++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const __m512 first = _mm512_loadu_ps(x + r * x_row + k), second = _mm512_loadu_ps(x + r * x_row + k + 16);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        sums[i][r] = _mm512_fmadd_ps(p[i].first, first, sums[i][r]);
        sums[i][r] = _mm512_fmadd_ps(p[i].second, second, sums[i][r]);
      }
    }
  };
  int64_t k = 0;
  for (; k + kStep <= in; k += kStep) step(k, kStep);
  if (k < in) step(k, in - k);
  for (int i = 0; i < 4; i++)
    for (int r = 0; r < kRows; r++) y[r * 4 + i] = _mm512_reduce_add_ps(sums[i][r]);
}

template <typename W>
void dots_of(const W* w, int64_t w_row, const float* x, int64_t rows, int64_t in, int64_t pass, int64_t passes, float* y) {
  const int64_t x_row = spread512_row(in);
  switch (rows) {
    case 1: return dots<1>(w, w_row, x, x_row, in, pass, passes, y);
    case 2: return dots<2>(w, w_row, x, x_row, in, pass, passes, y);
    case 3: return dots<3>(w, w_row, x, x_row, in, pass, passes, y);
    default: return dots<4>(w, w_row, x, x_row, in, pass, passes, y);
  }
}

}  // namespace

int64_t spread512_row(int64_t in) { return (in + kStep - 1) / kStep * kStep; }

void spread512(const float* x, int64_t rows, int64_t in, Type weight, float* to) {
  const int64_t row = spread512_row(in);
  memset(to, 0, static_cast<size_t>(rows * row) * 4);
  for (int64_t r = 0; r < rows; r++) {
    if (weight == Type::f32) {
      memcpy(to + r * row, x + r * in, static_cast<size_t>(in) * 4);
      continue;
    }
    for (int64_t k = 0; k < in; k++) to[r * row + k / kStep * kStep + k % 2 * 16 + k % kStep / 2] = x[r * in + k];
  }
}

void dots512(const void* w, Type type, int64_t w_row, const float* x, int64_t rows, int64_t in, int64_t pass, int64_t passes,
             float* y) {
  if (type == Type::bf16)
    dots_of(static_cast<const uint16_t*>(w), w_row, x, rows, in, pass, passes, y);
  else
    dots_of(static_cast<const float*>(w), w_row, x, rows, in, pass, passes, y);
}

}  // namespace levain
