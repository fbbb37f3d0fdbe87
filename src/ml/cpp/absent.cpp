// Where there is no AVX2 the kernels are not called (`levain_kernels` says so); these bodies only satisfy the linker.
#include <cstdlib>

#include "kernels.h"

namespace levain {

void serial(int64_t count, Body body, void* context) { body(context, 0, count); }
void pack(Matrix, int64_t, int64_t, int64_t, float*) { abort(); }
void weight_row(const Weight&, int64_t, int64_t, int64_t, float*) { abort(); }
void unpack_scales(const Weight&, int64_t, int64_t, float*) { abort(); }
Source forward_source(const Weight&) { abort(); }
Source backward_source(const Weight&) { abort(); }
void gemm(const Part*, int64_t, int64_t, const Source*, const Share*, int64_t, Parallel) { abort(); }
void gemm(Matrix, int64_t, Matrix, int64_t, int64_t, Result, Parallel) { abort(); }
void gemm_direct(const float*, int64_t, int64_t, int64_t, Packed, Result) { abort(); }
void gemm_few(const float*, int64_t, Matrix, int64_t, int64_t, float, float*, Parallel) { abort(); }
float* scratch(int64_t) { abort(); }
void release(float*) { abort(); }
void linear_rows(const float*, int64_t, const Weight&, const float*, Result, Parallel) { abort(); }
void linear_rows(const float*, int64_t, int64_t, Matrix, int64_t, Result, Parallel) { abort(); }
void rms_norm(const void*, const void*, Type, int64_t, int64_t, float, void*, float*) { abort(); }
void rms_norm_backward(const void*, const void*, const void*, Type, int64_t, int64_t, const float*, void*) { abort(); }
void silu_mul(const void*, const void*, Type, int64_t, void*) { abort(); }
void silu_mul_backward(const void*, const void*, const void*, Type, int64_t, void*, void*) { abort(); }
void rope(const void*, Type, int64_t, int64_t, int64_t, const float*, const float*, const int64_t*, bool, void*) {
  abort();
}
void adamw(const AdamW&, int64_t, const void*, Type, float*, float*, float*, uint16_t*) { abort(); }
RowSummary summarize(const float*, int64_t) { abort(); }
void probabilities(float*, int64_t, float) { abort(); }
void attend(const Segment&, const Heads&, int64_t, void*, int64_t, float*) { abort(); }
void attend_backward(const Segment&, const Heads&, int64_t, const void*, const void*, int64_t, const float*, void*,
                     float*, float*) {
  abort();
}
void reduce_heads(const float*, int64_t, const Heads&, int64_t, int64_t, void*) { abort(); }

}  // namespace levain
