// Register tiles for CPUs with AVX-512, over the panels and slivers that gemm.cpp packs: 12 rows by 32 columns, 24 sums in 24 of 32
// registers. Every sum runs over k in order, as in the tiles of gemm.cpp, so that a mixture of both gives the same bits.
#include "avx512.h"

#include <immintrin.h>

namespace levain {

#define LEVAIN_SIX(apply) apply(0) apply(1) apply(2) apply(3) apply(4) apply(5)
#define LEVAIN_ZERO(i)                                                            \
  __m512 c##i = _mm512_setzero_ps(), d##i = _mm512_setzero_ps(), e##i = _mm512_setzero_ps(), \
         f##i = _mm512_setzero_ps();
#define LEVAIN_KEEP(i)                                            \
  keep(sums.of[0][0] + i * 16, c##i, first), keep(sums.of[0][1] + i * 16, d##i, first), \
      keep(sums.of[1][0] + i * 16, e##i, first), keep(sums.of[1][1] + i * 16, f##i, first);

namespace {

inline void keep(float* sums, __m512 v, bool first) {
  _mm512_storeu_ps(sums, first ? v : _mm512_add_ps(v, _mm512_loadu_ps(sums)));
}

}  // namespace

void tile512(int64_t depth, const float* a, const float* a_next, const float* b, const float* b_next, const Sums& sums,
             bool first) {
  LEVAIN_SIX(LEVAIN_ZERO)
  for (int64_t k = 0; k < depth; k++) {
    const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b_next);
#define LEVAIN_STEP(i)                                                       \
  {                                                                          \
    const __m512 x = _mm512_set1_ps(a[i]), y = _mm512_set1_ps(a_next[i]);    \
    c##i = _mm512_fmadd_ps(x, b0, c##i), d##i = _mm512_fmadd_ps(x, b1, d##i); \
    e##i = _mm512_fmadd_ps(y, b0, e##i), f##i = _mm512_fmadd_ps(y, b1, f##i); \
  }
    LEVAIN_SIX(LEVAIN_STEP)
#undef LEVAIN_STEP
    b += 16, b_next += 16;
    a += 6, a_next += 6;
  }
  LEVAIN_SIX(LEVAIN_KEEP)
}

void tile512_direct(int64_t depth, const float* a, int64_t row, int64_t column, const float* b, const float* b_next,
                    const Sums& sums) {
  LEVAIN_SIX(LEVAIN_ZERO)
  const float *a3 = a + 3 * row, *a6 = a + 6 * row, *a9 = a + 9 * row;
  for (int64_t k = 0; k < depth; k++) {
    const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b_next);
#define LEVAIN_STEP(i)                                                                    \
  {                                                                                       \
    const __m512 x = _mm512_set1_ps(i < 3 ? a[(i % 3) * row] : a3[(i % 3) * row]);        \
    const __m512 y = _mm512_set1_ps(i < 3 ? a6[(i % 3) * row] : a9[(i % 3) * row]);       \
    c##i = _mm512_fmadd_ps(x, b0, c##i), d##i = _mm512_fmadd_ps(x, b1, d##i);             \
    e##i = _mm512_fmadd_ps(y, b0, e##i), f##i = _mm512_fmadd_ps(y, b1, f##i);             \
  }
    LEVAIN_SIX(LEVAIN_STEP)
#undef LEVAIN_STEP
    b += 16, b_next += 16;
    a += column, a3 += column, a6 += column, a9 += column;
  }
  const bool first = true;
  LEVAIN_SIX(LEVAIN_KEEP)
}

}  // namespace levain
