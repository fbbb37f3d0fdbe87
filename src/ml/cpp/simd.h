// Loads, stores and small vector functions shared by the AVX2 kernels.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "kernels.h"

namespace levain {

inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load8(const uint16_t* p) {
  __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline float load1(const float* p) { return *p; }
inline float load1(const uint16_t* p) {
  uint32_t bits = static_cast<uint32_t>(*p) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// To bf16, nearest even; a NaN stays one.
inline uint16_t narrow(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void store8(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
inline void store8(uint16_t* p, __m256 v) {
  __m256i bits = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store4(uint16_t* p, __m128 v) {
  uint16_t half[8];
  store8(half, _mm256_castps128_ps256(v));
  memcpy(p, half, 8);
}
inline void store1(float* p, float v) { *p = v; }
inline void store1(uint16_t* p, float v) { *p = narrow(v); }

inline float sum8(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_shuffle_ps(s, s, 1));
  return _mm_cvtss_f32(s);
}
// The sums of four vectors.
inline __m128 sums4(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}
inline float max8(__m256 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  s = _mm_max_ss(s, _mm_shuffle_ps(s, s, 1));
  return _mm_cvtss_f32(s);
}

// e^x to about one unit in the last place; 0 below -87.3, infinity above 88.7.
inline __m256 exp8(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.33654f), high = _mm256_set1_ps(88.72283f);
  __m256 under = _mm256_cmp_ps(x, low, _CMP_LT_OQ), over = _mm256_cmp_ps(x, high, _CMP_GT_OQ);
  __m256 t = _mm256_max_ps(_mm256_min_ps(x, high), low);
  __m256 n = _mm256_round_ps(_mm256_mul_ps(t, _mm256_set1_ps(1.44269504088896341f)),
                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  t = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), t);
  t = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), t);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, t, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_add_ps(_mm256_fmadd_ps(y, _mm256_mul_ps(t, t), t), _mm256_set1_ps(1.f));
  // 2^n in two halves, so that n = 128 does not overflow on the way.
  __m256i k = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(k, 1), rest = _mm256_sub_epi32(k, half);
  auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  y = _mm256_mul_ps(_mm256_mul_ps(y, power(half)), power(rest));
  y = _mm256_andnot_ps(under, y);
  y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), over);
  // A NaN went through min and max as a bound: put it back.
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

inline void transpose8(__m256 v[8]) {
  __m256 a0 = _mm256_unpacklo_ps(v[0], v[1]), a1 = _mm256_unpackhi_ps(v[0], v[1]);
  __m256 a2 = _mm256_unpacklo_ps(v[2], v[3]), a3 = _mm256_unpackhi_ps(v[2], v[3]);
  __m256 a4 = _mm256_unpacklo_ps(v[4], v[5]), a5 = _mm256_unpackhi_ps(v[4], v[5]);
  __m256 a6 = _mm256_unpacklo_ps(v[6], v[7]), a7 = _mm256_unpackhi_ps(v[6], v[7]);
  __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
  __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
  __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
  __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
  v[0] = _mm256_permute2f128_ps(b0, b4, 0x20);
  v[1] = _mm256_permute2f128_ps(b1, b5, 0x20);
  v[2] = _mm256_permute2f128_ps(b2, b6, 0x20);
  v[3] = _mm256_permute2f128_ps(b3, b7, 0x20);
  v[4] = _mm256_permute2f128_ps(b0, b4, 0x31);
  v[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
  v[6] = _mm256_permute2f128_ps(b2, b6, 0x31);
  v[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
}

// `count` elements of the matrix's storage from `offset`, as f32.
inline void widen(const Matrix& m, int64_t offset, int64_t count, float* to) {
  int64_t i = 0;
  if (m.type == Type::bf16) {
    auto* p = static_cast<const uint16_t*>(m.data) + offset;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, load8(p + i));
    for (; i < count; i++) to[i] = load1(p + i);
  } else {
    memcpy(to, static_cast<const float*>(m.data) + offset, static_cast<size_t>(count) * 4);
  }
}

// row (count) += scale * up (rank) * down (rank x count, rows `apart`)
inline void add_low_rank(const float* down, const float* up, int64_t rank, float scale, int64_t apart, int64_t count, float* row) {
  int64_t r = 0;
  for (; r + 4 <= rank; r += 4) {
    __m256 u0 = _mm256_set1_ps(scale * up[r]), u1 = _mm256_set1_ps(scale * up[r + 1]);
    __m256 u2 = _mm256_set1_ps(scale * up[r + 2]), u3 = _mm256_set1_ps(scale * up[r + 3]);
    const float *d0 = down + r * apart, *d1 = d0 + apart, *d2 = d1 + apart, *d3 = d2 + apart;
    int64_t k = 0;
    for (; k + 8 <= count; k += 8) {
      __m256 s = _mm256_loadu_ps(row + k);
      s = _mm256_fmadd_ps(u0, _mm256_loadu_ps(d0 + k), s);
      s = _mm256_fmadd_ps(u1, _mm256_loadu_ps(d1 + k), s);
      s = _mm256_fmadd_ps(u2, _mm256_loadu_ps(d2 + k), s);
      s = _mm256_fmadd_ps(u3, _mm256_loadu_ps(d3 + k), s);
      _mm256_storeu_ps(row + k, s);
    }
    for (; k < count; k++)
      row[k] += scale * (up[r] * d0[k] + up[r + 1] * d1[k] + up[r + 2] * d2[k] + up[r + 3] * d3[k]);
  }
  for (; r < rank; r++)
    for (int64_t k = 0; k < count; k++) row[k] += scale * up[r] * down[r * apart + k];
}

}  // namespace levain
