// NF4 weights as panels, for CPUs with AVX-512: the sixteen values of a code lie in one register.
#include <immintrin.h>

#include "avx512.h"

namespace levain {

namespace {

// What dequantized values are rounded to; they are finite.
inline __m512 rounded(__m512 v, Rounding rounding) {
  if (rounding == Rounding::bf16) {
    __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  if (rounding == Rounding::f16)
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  return v;
}

// Byte j of v[i] goes to byte i of v[j].
inline void transpose16(__m128i v[16]) {
  __m128i t[16];
#pragma GCC unroll 4
  for (int pass = 0; pass < 4; pass++) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      t[2 * i] = _mm_unpacklo_epi8(v[i], v[i + 8]);
      t[2 * i + 1] = _mm_unpackhi_epi8(v[i], v[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = t[i];
  }
}

template <Rounding kRounding>
void forward(const Weight& w, int64_t k, int64_t length, int64_t column, float* to) {
  const __m512 table = _mm512_loadu_ps(w.table);
  const int64_t per_row = w.in / w.block;
  const uint8_t* codes = w.codes + column * w.in / 2;
  const float* scales = w.scales + column * per_row;
  const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                          _mm512_set1_epi32(static_cast<int>(per_row)));
  for (int64_t i = 0; i < length; i += 32) {
    const int64_t at = k + i;
    const __m512 scale = _mm512_i32gather_ps(rows, scales + at / w.block, 4);
    __m128i v[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) v[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + (j * w.in + at) / 2));
    transpose16(v);
#pragma GCC unroll 16
    for (int b = 0; b < 16; b++) {
      const __m512i pair = _mm512_cvtepu8_epi32(v[b]);
      // Only the lower four bits of an index count.
      const __m512 first = _mm512_permutexvar_ps(_mm512_srli_epi32(pair, 4), table), second = _mm512_permutexvar_ps(pair, table);
      _mm512_storeu_ps(to + b * 32, rounded(_mm512_mul_ps(first, scale), kRounding));
      _mm512_storeu_ps(to + b * 32 + 16, rounded(_mm512_mul_ps(second, scale), kRounding));
    }
    to += 32 * 16;
  }
}

template <Rounding kRounding>
void backward(const Weight& w, int64_t k, int64_t length, int64_t column, float* to) {
  const __m512 table = _mm512_loadu_ps(w.table);
  const __m128i half = _mm_set1_epi8(15);
  const int64_t per_row = w.in / w.block;
  const uint8_t* codes = w.codes + (k * w.in + column) / 2;
  const float* scales = w.scales + k * per_row + column / w.block;
  for (int64_t i = 0; i < length; i++, codes += w.in / 2, scales += per_row, to += 16) {
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m128i first = _mm_and_si128(_mm_srli_epi16(pairs, 4), half), second = _mm_and_si128(pairs, half);
    const __m512 values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(first, second)), table);
    _mm512_storeu_ps(to, rounded(_mm512_mul_ps(values, _mm512_set1_ps(*scales)), kRounding));
  }
}

}  // namespace

bool nf4_panels512(const Weight& w) {
  return w.stored == Stored::nf4 && !w.nested && w.in % w.block == 0 && w.block % 32 == 0 && w.in / w.block * 16 < (1 << 30);
}

bool nf4_forward512(const Weight& w, int64_t k, int64_t length, int64_t column, int64_t count, float* to) {
  if (count != 16 || k % 32 != 0 || length % 32 != 0) return false;
  switch (w.rounding) {
    case Rounding::none: forward<Rounding::none>(w, k, length, column, to); break;
    case Rounding::bf16: forward<Rounding::bf16>(w, k, length, column, to); break;
    case Rounding::f16: forward<Rounding::f16>(w, k, length, column, to); break;
  }
  return true;
}

bool nf4_backward512(const Weight& w, int64_t k, int64_t length, int64_t column, int64_t count, float* to) {
  if (count != 16) return false;
  switch (w.rounding) {
    case Rounding::none: backward<Rounding::none>(w, k, length, column, to); break;
    case Rounding::bf16: backward<Rounding::bf16>(w, k, length, column, to); break;
    case Rounding::f16: backward<Rounding::f16>(w, k, length, column, to); break;
  }
  return true;
}

}  // namespace levain
