// Weights as the products read them: pieces of their rows, dequantized and with a low-rank change added, in f32.
#include "avx512.h"
#include "panel.h"

namespace levain {

namespace {

inline __m256 rounded(__m256 v, Rounding rounding) {
  if (rounding == Rounding::bf16) {
    // To the nearest even, as `store8` does; dequantized values are finite.
    __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  if (rounding == Rounding::f16) return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  return v;
}
inline float rounded(float v, Rounding rounding) {
  return _mm256_cvtss_f32(rounded(_mm256_set1_ps(v), rounding));
}

inline float scale_of(const Weight& w, int64_t i) {
  // Two roundings, as bitsandbytes has them: a fused product and sum would give other bits.
  if (!w.nested) return w.scales[i];
  float product = w.nested_table[w.nested[i]] * w.scales[i / w.nested_block];
  __asm__("" : "+x"(product));
  return product + w.offset;
}

// Codes [at, at + count) of the flat weight.
void nf4_values(const Weight& w, int64_t at, int64_t count, float* to) {
  const __m256 low = _mm256_loadu_ps(w.table), high = _mm256_loadu_ps(w.table + 8);
  const __m128i half = _mm_set1_epi8(15);
  const auto one = [&](int64_t i) { return (w.codes[i / 2] >> (i % 2 == 0 ? 4 : 0)) & 15; };
  const int64_t end = at + count;
  while (at < end) {
    const int64_t block = at / w.block;
    const int64_t stop = (block + 1) * w.block < end ? (block + 1) * w.block : end;
    const float scale = scale_of(w, block);
    const __m256 scales = _mm256_set1_ps(scale);
    if (at % 2 == 1) *to++ = rounded(w.table[one(at)] * scale, w.rounding), at++;
    for (; at + 16 <= stop; at += 16, to += 16) {
      const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.codes + at / 2));
      const __m128i first = _mm_and_si128(_mm_srli_epi16(pairs, 4), half), second = _mm_and_si128(pairs, half);
      __m128i codes = _mm_unpacklo_epi8(first, second);
      for (int n = 0; n < 16; n += 8) {
        const __m256i index = _mm256_cvtepu8_epi32(codes);
        const __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index),
                                              _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
        _mm256_storeu_ps(to + n, rounded(_mm256_mul_ps(value, scales), w.rounding));
        codes = _mm_srli_si128(codes, 8);
      }
    }
    for (; at < stop; at++) *to++ = rounded(w.table[one(at)] * scale, w.rounding);
  }
}

void int8_values(const Weight& w, int64_t row, int64_t from, int64_t count, float* to) {
  const auto* codes = reinterpret_cast<const int8_t*>(w.codes) + row * w.in + from;
  const float scale = w.scales[row];
  const __m256 scales = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i));
    _mm256_storeu_ps(to + i, rounded(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), scales), w.rounding));
  }
  for (; i < count; i++) to[i] = rounded(static_cast<float>(codes[i]) * scale, w.rounding);
}

void changed(const Weight& w, int64_t row, int64_t from, int64_t count, float* to) {
  add_low_rank(w.change->down + from, w.change->up + row * w.change->rank, w.change->rank, w.change->scale, w.in, count, to);
}

void changed_row(const Weight& w, int64_t row, int64_t from, int64_t count, float* to) {
  weight_row(w, row, from, count, to);
  if (w.change) changed(w, row, from, count, to);
}

// Sixteen rows side by side.
void fill_forward(const void* of, int64_t k, int64_t length, int64_t column, int64_t count, float* to) {
  const Weight& w = *static_cast<const Weight*>(of);
  if (w.stored == Stored::dense && !w.change) {
    const int64_t at = column * w.dense.row + k;
    if (w.dense.type == Type::bf16)
      pack_panel(static_cast<const uint16_t*>(w.dense.data) + at, 1, w.dense.row, length, count, to);
    else
      pack_panel(static_cast<const float*>(w.dense.data) + at, 1, w.dense.row, length, count, to);
    return;
  }
  if (!w.change && has_avx512() && nf4_panels512(w) && nf4_forward512(w, k, length, column, count, to)) return;
  alignas(32) float rows[kColumns * kPass];
  for (int64_t j = 0; j < count; j++) changed_row(w, column + j, k, length, rows + j * length);
  pack_panel(rows, 1, length, length, count, to);
}

// Sixteen columns of a row after the other.
void fill_backward(const void* of, int64_t k, int64_t length, int64_t column, int64_t count, float* to) {
  const Weight& w = *static_cast<const Weight*>(of);
  if (has_avx512() && nf4_panels512(w) && nf4_backward512(w, k, length, column, count, to)) {
    for (int64_t i = 0; w.change && i < length; i++) changed(w, k + i, column, count, to + i * kColumns);
    return;
  }
  for (int64_t i = 0; i < length; i++, to += kColumns) {
    changed_row(w, k + i, column, count, to);
    for (int64_t j = count; j < kColumns; j++) to[j] = 0.f;
  }
}

}  // namespace

void weight_row(const Weight& w, int64_t row, int64_t from, int64_t count, float* to) {
  switch (w.stored) {
    case Stored::dense: return widen(w.dense, row * w.dense.row + from, count, to);
    case Stored::nf4: return nf4_values(w, row * w.in + from, count, to);
    case Stored::int8: return int8_values(w, row, from, count, to);
  }
}

void unpack_scales(const Weight& w, int64_t begin, int64_t end, float* to) {
  for (int64_t i = begin; i < end; i++) to[i] = scale_of(w, i);
}

Source forward_source(const Weight& weight) { return {fill_forward, &weight}; }
Source backward_source(const Weight& weight) { return {fill_backward, &weight}; }

}  // namespace levain
