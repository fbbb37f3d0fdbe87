// Panels of sixteen columns in f32, as the matrix products read their second factor.
#pragma once
#include "simd.h"

namespace levain {

constexpr int64_t kColumns = 16;

// One panel: to[k * 16 + j] = b(k, j) for `count` columns, zeros after them.
template <typename T>
void pack_panel(const T* b, int64_t row, int64_t column, int64_t depth, int64_t count, float* to) {
  int64_t k = 0;
  if (column == 1 && count == kColumns) {
    for (; k < depth; k++) {
      _mm256_storeu_ps(to + k * 16, load8(b + k * row));
      _mm256_storeu_ps(to + k * 16 + 8, load8(b + k * row + 8));
    }
  } else if (row == 1 && count == kColumns) {
    for (; k + 8 <= depth; k += 8) {
      for (int64_t half = 0; half < 16; half += 8) {
        __m256 v[8];
        for (int j = 0; j < 8; j++) v[j] = load8(b + (half + j) * column + k);
        transpose8(v);
        for (int j = 0; j < 8; j++) _mm256_storeu_ps(to + (k + j) * 16 + half, v[j]);
      }
    }
  }
  for (; k < depth; k++)
    for (int64_t j = 0; j < kColumns; j++) to[k * 16 + j] = j < count ? load1(b + k * row + j * column) : 0.f;
}

}  // namespace levain
