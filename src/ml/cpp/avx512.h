// What gemm512.cpp and rows512.cpp have for CPUs with AVX-512; to be called only where `has_avx512` says so.
#pragma once
#include "kernels.h"

namespace levain {

// Where the sums of two slivers (6 rows) against two panels (16 columns) are: of[sliver][panel], each 6 x 16.
struct Sums {
  float* of[2][2];
};

inline bool has_avx512() {
#if defined(__x86_64__)
  static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  return found;
#else
  return false;
#endif
}

// sums (+)= two slivers (k x 6 each) * two panels (k x 16 each, aligned to 64 bytes).
void tile512(int64_t depth, const float* a, const float* a_next, const float* b, const float* b_next, const Sums& sums,
             bool first);
// The same with twelve rows of a read where they lie: a(i, k) = a[i * row + k * column].
void tile512_direct(int64_t depth, const float* a, int64_t row, int64_t column, const float* b, const float* b_next,
                    const Sums& sums);

// Rows of x as `dots512` reads them, each `spread512_row(in)` floats: for a bf16 weight the even ones of 32 before the odd ones.
int64_t spread512_row(int64_t in);
void spread512(const float* x, int64_t rows, int64_t in, Type weight, float* to);
// y[r * 4 + i] = row r of x (1 to 4 of them, spread) times row i of four weight rows; pass `pass` of `passes` over these weight rows.
void dots512(const void* w, Type type, int64_t w_row, const float* x, int64_t rows, int64_t in, int64_t pass, int64_t passes,
             float* y);

// Whether these take an NF4 weight: its rows are whole blocks and its scales plain.
bool nf4_panels512(const Weight& weight);
// A panel of such a weight as `forward_source` and `backward_source` fill it, without the change; false where the piece does not suit.
bool nf4_forward512(const Weight& weight, int64_t k, int64_t length, int64_t column, int64_t count, float* to);
bool nf4_backward512(const Weight& weight, int64_t k, int64_t length, int64_t column, int64_t count, float* to);

}  // namespace levain
