// What the operator files share: checks, pointers, and the calling thread pool.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels.h"

extern "C" int levain_kernels();  // 1 where the kernels of this folder were built and run

namespace levain {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

inline Type type_of(const Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kFloat, "expected bf16 or f32, found ",
              t.scalar_type());
  return t.scalar_type() == at::kBFloat16 ? Type::bf16 : Type::f32;
}

inline Matrix matrix(const Tensor& t) { return {t.const_data_ptr(), type_of(t), t.size(-1), 1}; }
inline Matrix transposed(const Tensor& t) { return {t.const_data_ptr(), type_of(t), 1, t.size(-1)}; }
inline Result result(const Tensor& t, bool add = false) { return {t.data_ptr(), type_of(t), t.size(-1), add}; }

// libtorch's own threads, one contiguous range each.
inline void pool(int64_t count, Body body, void* context) {
  const int64_t threads = at::get_num_threads();
  if (count <= 1 || threads <= 1 || at::in_parallel_region()) {
    if (count > 0) body(context, 0, count);
    return;
  }
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

template <typename F>
void ranges(int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  at::parallel_for(0, count, grain, f);
}

inline const char* bytes(const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); }
inline char* bytes(Tensor& t) { return static_cast<char*>(t.data_ptr()); }

// A step of AdamW in place: `weight`, f32, is `stored` itself or, where that is bf16, what it is rounded from.
void adamw_op(const Tensor& stored, const Tensor& weight, const Tensor& gradient, const Tensor& mean, const Tensor& square,
              const AdamW& settings);

// The normed x and 1 / sqrt(mean(x^2) + eps) of each row; the gradients to x and to the weight.
std::pair<Tensor, Tensor> norm_forward(const Tensor& x, const Tensor& weight, double eps);
Tensor norm_backward(const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& inverse);
Tensor norm_weight_gradient(const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& inverse);
// silu(gate) * up, and the gradients to both.
Tensor gate_forward(const Tensor& gate, const Tensor& up);
std::pair<Tensor, Tensor> gate_backward(const Tensor& g, const Tensor& gate, const Tensor& up);

// What happens to x before it is multiplied; made again in the backward pass instead of being kept.
enum class Before : int64_t { nothing = 0, norm = 1, gate = 2 };

// Linear maps of the same x; see linear.cpp. The first of `tensors` is the norm's weight, or what silu(x) is multiplied by,
// if there is something before. `few` chooses the kernel for decoding, whose sums come in another order.
variable_list linear(const Tensor& x, Before before, double eps, at::TensorList tensors, const std::vector<int64_t>& flags,
                     const std::vector<int64_t>& shapes, const std::vector<double>& scales, bool few);
// A weight stored as NF4 or int8 as a matrix of `kind`; tensors, flags, shapes, scales as those of one map.
Tensor dequantized(at::TensorList tensors, int64_t flag, const std::vector<int64_t>& shape, const std::vector<double>& scales,
                   at::ScalarType kind);
// x times such a weight, transposed, by libtorch's product, with a gradient to x.
Tensor unpacked_product(const Tensor& x, at::TensorList tensors, int64_t flag, const std::vector<int64_t>& shape,
                        const std::vector<double>& scales);
// x with each element zero with this probability, the others divided by what is left; a function of (seed, index).
Tensor dropout_op(const Tensor& x, double probability, int64_t seed, int64_t first);
Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps);
Tensor silu_mul_op(const Tensor& gate, const Tensor& up);
Tensor rope_op(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, int64_t heads);
// q (tokens, heads * size), rows of `lengths` tokens one after the other; k and v (tokens, groups * size) of what each row
// sees, `keys` tokens, of which the last are its own.
Tensor attend_op(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths,
                 const std::vector<int64_t>& keys, int64_t heads, int64_t groups, double scale);
// The same without gradient, keys and values in caches (rows, capacity, groups * size) filled to `filled`.
Tensor attend_cached(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths,
                     const std::vector<int64_t>& rows, const std::vector<int64_t>& filled, int64_t heads,
                     int64_t groups, double scale);
// Sum of -log softmax(hidden head^T)[target]; also log-probabilities and right predictions per row.
enum class Way : int64_t { wide = 0, kernels = 1, native = 2 };  // libtorch in f32 or f64; our kernels; libtorch in bf16
variable_list cross_entropy(const Tensor& hidden, const Tensor& head, const Tensor& targets, int64_t chunk, Way way);
// log softmax(hidden head^T)[target] of each row with a gradient of its own; with `statistics` entropies and log sums of squares.
variable_list log_probabilities(const Tensor& hidden, const Tensor& head, const Tensor& targets, int64_t chunk, Way way,
                                bool statistics);

// y = run(context, x), whose inside is computed again in the backward pass; `drop` frees the context. The result of `run` is owned by its
// caller; null is a failure.
using Run = Tensor* (*)(void* context, const Tensor* x);
using Drop = void (*)(void* context);
Tensor checkpoint_op(const Tensor& x, const Tensor& anchor, Run run, Drop drop, void* context);

}  // namespace levain
