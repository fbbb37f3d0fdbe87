// The AVX2 kernels and the plain types that they share with the operators; no libtorch and no standard library here,
// so that nothing compiled for AVX2 can be picked by the linker for a CPU without it.
#pragma once
#include <cstdint>

namespace levain {

enum class Type : int { f32 = 0, bf16 = 1 };

// Element (i, j) lies at data[i * row + j * column]; one of the two strides must be 1.
struct Matrix {
  const void* data;
  Type type;
  int64_t row, column;
};

// A row-major result: written, or added to when `add` (f32 only).
struct Result {
  void* data;
  Type type;
  int64_t row;
  bool add;
};

// Runs body(context, begin, end) over ranges that cover [0, count).
using Body = void (*)(void* context, int64_t begin, int64_t end);
using Parallel = void (*)(int64_t count, Body body, void* context);
// Runs it in the calling thread: for kernels that are themselves parallel over a larger unit.
void serial(int64_t count, Body body, void* context);

// B packed for `gemm_direct`: panels of 16 columns, each depth x 16 in f32, `panel` floats apart.
struct Packed {
  const float* data;
  int64_t depth, columns, panel;
};

// A low-rank change to a weight (out x in): weight + scale * up (out x rank) * down (rank x in), all f32.
struct LowRank {
  const float* down;
  const float* up;
  int64_t rank;
  float scale;
};

// How a weight is stored: as it is; as NF4, two codes a byte, the first in the high half, in blocks along its rows one after the
// other (bitsandbytes); or as int8 with a scale for each row.
enum class Stored : int { dense = 0, nf4 = 1, int8 = 2 };

// What a dequantized value is rounded to before it is multiplied.
enum class Rounding : int { none = 0, bf16 = 1, f16 = 2 };

// A weight (out x in) and what is added to it.
struct Weight {
  Stored stored;
  int64_t out, in;
  Matrix dense;  // rows contiguous
  const uint8_t* codes;
  const float* table;  // nf4: its 16 values
  int64_t block;       // nf4: how many values share a scale
  const float* scales;  // of each block or row; or, for nested ones, of each `nested_block` of them
  const uint8_t* nested;  // null, or the codes of the scales: scale i is nested_table[nested[i]] * scales[i / nested_block] + offset
  const float* nested_table;
  int64_t nested_block;
  float offset;
  Rounding rounding;
  const LowRank* change;  // or null
};
// Columns [from, from + count) of a row, without the change.
void weight_row(const Weight& weight, int64_t row, int64_t from, int64_t count, float* to);

// Nested scales [begin, end) of an NF4 weight as the numbers that they stand for.
void unpack_scales(const Weight& weight, int64_t begin, int64_t end, float* to);

// Packs columns [first, first + count) of b (depth x columns) into `to`, whose panel 0 is column `first`;
// `first` is a multiple of 16.
void pack(Matrix b, int64_t depth, int64_t first, int64_t count, float* to);

// The second factor of a product: `fill` writes rows [k, k + length), at most `kPass`, of columns [column, column + count), at most 16,
// as a panel: to[i * 16 + j], zeros past the last column.
struct Source {
  void (*fill)(const void* of, int64_t k, int64_t length, int64_t column, int64_t count, float* to);
  const void* of;
};
constexpr int64_t kPass = 192;
// A weight for x * weight^T (depth in, columns out) and for gradient * weight (depth out, columns in).
Source forward_source(const Weight& weight);
Source backward_source(const Weight& weight);

// A factor with its columns side by side with others', and a result that takes the next columns; each begins a new panel.
struct Part {
  Matrix a;
  int64_t depth;
};
struct Share {
  Result result;
  int64_t columns;
};
// shares (rows x columns each) = [parts] (rows x depth in all) * b, sums in f32; the piece of b for a part and a share is
// sources[part * share_count + share].
void gemm(const Part* parts, int64_t part_count, int64_t rows, const Source* sources, const Share* shares,
          int64_t share_count, Parallel parallel);
// result (rows x columns) = a (rows x depth) * b.
void gemm(Matrix a, int64_t rows, Matrix b, int64_t depth, int64_t columns, Result result, Parallel parallel);

// The same in the calling thread, with f32 rows read where they lie: a(i, k) = a[i * row + k * column]. Reads the rows
// up to the next multiple of six.
void gemm_direct(const float* a, int64_t row, int64_t column, int64_t rows, Packed b, Result result);

// result (few x columns, f32, rows `columns` apart) = factor * left (few x depth, f32) * right (depth x columns, rows
// contiguous), right read where it lies: for gradients of low-rank factors, whose `few` is the rank.
void gemm_few(const float* left, int64_t few, Matrix right, int64_t depth, int64_t columns, float factor, float* result,
              Parallel parallel);

float* scratch(int64_t floats);
void release(float* buffer);

// Few rows (decoding): result (rows x out) = x (rows x in) * weight^T + bias, the weight read once where it lies.
void linear_rows(const float* x, int64_t rows, const Weight& weight, const float* bias, Result result, Parallel parallel);
// The same for a matrix without a change.
void linear_rows(const float* x, int64_t rows, int64_t in, Matrix weight, int64_t out, Result result, Parallel parallel);

// RMSNorm as Llama has it: x / sqrt(mean(x^2) + eps) in f32, rounded to the type of x, then times weight.
void rms_norm(const void* x, const void* weight, Type type, int64_t rows, int64_t width, float eps, void* out,
              float* inverse);
// Its gradient with respect to x, from the saved x and 1 / sqrt(mean(x^2) + eps) of each row.
void rms_norm_backward(const void* gradient, const void* x, const void* weight, Type type, int64_t rows, int64_t width,
                       const float* inverse, void* out);
// out = silu(gate) * up.
void silu_mul(const void* gate, const void* up, Type type, int64_t count, void* out);
void silu_mul_backward(const void* gradient, const void* gate, const void* up, Type type, int64_t count,
                       void* gate_gradient, void* up_gradient);
// Turns every head of a row by its position: (x1 cos - x2 sin, x2 cos + x1 sin), halves x1, x2; tables positions x size/2.
void rope(const void* x, Type type, int64_t rows, int64_t heads, int64_t size, const float* cos, const float* sin,
          const int64_t* positions, bool backward, void* out);

// A step of AdamW on `count` numbers: m <- m + gain1 (g - m), s <- keep2 s + gain2 g^2, w <- keep w + rate m / (sqrt(s) / root + eps).
// The last bits are not libtorch's: here products and sums are fused.
struct AdamW {
  float keep, gain1, keep2, gain2, root, eps, rate;
};
// `stored`, if not null, gets the weight rounded to bf16.
void adamw(const AdamW& settings, int64_t count, const void* gradient, Type gradient_type, float* mean, float* square,
           float* weight, uint16_t* stored);

// One row of logits: its largest value's index, log(sum(exp)), and, if asked, softmax in place times nothing.
struct RowSummary {
  int64_t best;
  float log_sum;
};
RowSummary summarize(const float* logits, int64_t count);
// logits <- exp(logits - log_sum)
void probabilities(float* logits, int64_t count, float log_sum);

// Attention of one segment: `queries` rows of q see the first (keys - queries + i + 1) of `keys` rows of k and v.
struct Segment {
  const void *q, *k, *v;
  int64_t queries, keys;
  int64_t q_row, kv_row;  // distance of two tokens
};
struct Heads {
  int64_t query, group, size;  // query heads, query heads to a key head, head size
  float scale;
  Type type;
};
// Writes one head's rows of out (token distance `out_row`) and log-sums (may be null).
void attend(const Segment& segment, const Heads& heads, int64_t head, void* out, int64_t out_row, float* log_sums);
// Gradients of one head: dq as the type of q; dk and dv (keys x size) f32, overwritten.
void attend_backward(const Segment& segment, const Heads& heads, int64_t head, const void* out, const void* gradient,
                     int64_t out_row, const float* log_sums, void* dq, float* dk, float* dv);
// out (rows x group-reduced heads) = sum over the heads of a group of parts (heads x rows x size).
void reduce_heads(const float* parts, int64_t rows, const Heads& heads, int64_t begin, int64_t end, void* out);

}  // namespace levain
