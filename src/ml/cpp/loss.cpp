// Cross entropy over a vocabulary without a tensor of all logits: rows in chunks, the gradient with respect to the hidden
// rows computed in the forward pass and scaled in the backward one.
#include "operators.h"

namespace levain {

namespace {

constexpr int64_t kTile = 2048;  // words of the vocabulary packed at a time: 4.7 MB at width 576, within the last cache

struct CrossEntropy : Function<CrossEntropy> {
  // Gives (sum of losses, log-probability of each target, whether each target was the largest logit).
  static variable_list forward(AutogradContext* context, const Tensor& input, const Tensor& head,
                               const Tensor& targets, int64_t chunk, int64_t way, bool gradients) {
    const Tensor hidden = input.contiguous();
    const int64_t rows = hidden.size(0), width = hidden.size(1), words = head.size(0);
    TORCH_CHECK(head.dim() == 2 && head.size(1) == width && head.is_contiguous() && targets.numel() == rows,
                "cross_entropy: hidden ", hidden.sizes(), ", head ", head.sizes(), ", targets ", targets.sizes());
    TORCH_CHECK(rows == 0 || (targets.min().item<int64_t>() >= 0 && targets.max().item<int64_t>() < words),
                "cross_entropy: a target is outside of the vocabulary of ", words);
    const auto wide =
        hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).requires_grad(false);
    const bool to_hidden = gradients && input.requires_grad(), to_head = gradients && head.requires_grad();
    Tensor log_probabilities = at::empty({rows}, wide), right = at::empty({rows}, wide.dtype(at::kBool));
    Tensor dhidden = to_hidden ? at::empty({rows, width}, wide) : Tensor();
    Tensor dhead = to_head ? at::zeros({words, width}, wide) : Tensor();
    for (int64_t first = 0; first < rows; first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      const Tensor h = hidden.narrow(0, first, count), t = targets.narrow(0, first, count);
      if (way == static_cast<int64_t>(Way::kernels)) {
        fused_chunk(h, head, t, log_probabilities.narrow(0, first, count), right.narrow(0, first, count),
                    to_hidden ? dhidden.narrow(0, first, count) : Tensor(), dhead);
      } else {
        // Products in bf16 only where the processor has them; softmax and sums are wide in either case.
        const auto type = way == static_cast<int64_t>(Way::native) ? hidden.scalar_type()
                                                                   : at::typeMetaToScalarType(wide.dtype());
        const Tensor typed_head = head.to(type), typed = h.to(type);
        Tensor logits = at::mm(typed, typed_head.t()).to(wide.dtype());
        right.narrow(0, first, count).copy_(logits.argmax(1) == t);
        Tensor log_softmax = logits.log_softmax(1);
        log_probabilities.narrow(0, first, count).copy_(log_softmax.gather(1, t.unsqueeze(1)).squeeze(1));
        if (to_hidden || to_head) {
          Tensor p = log_softmax.exp_();
          p.scatter_add_(1, t.unsqueeze(1), -at::ones({count, 1}, p.options()));
          p = p.to(type);
          if (to_hidden) dhidden.narrow(0, first, count).copy_(at::mm(p, typed_head));
          if (to_head) dhead.add_(at::mm(p.t(), typed));
        }
      }
    }
    context->save_for_backward({dhidden, dhead});
    context->saved_data["type"] = static_cast<int64_t>(hidden.scalar_type());
    Tensor sum = log_probabilities.sum(at::kDouble).neg_().to(wide.dtype());
    context->mark_non_differentiable({log_probabilities, right});
    return {sum, log_probabilities, right};
  }

  static void fused_chunk(const Tensor& hidden, const Tensor& head, const Tensor& targets,
                          const Tensor& log_probabilities, const Tensor& right, const Tensor& dhidden,
                          const Tensor& dhead) {
    const int64_t rows = hidden.size(0), width = hidden.size(1), words = head.size(0);
    // Rows at a multiple of 64 KB would fight for the same lines of the caches.
    const int64_t apart = (words + 15) / 16 * 16 + 16;
    float* logits = scratch(rows * apart);
    const int64_t size = head.element_size();
    const auto tile = [&](int64_t first) {
      return static_cast<const char*>(head.const_data_ptr()) + first * width * size;
    };
    for (int64_t first = 0; first < words; first += kTile) {
      const int64_t count = std::min(kTile, words - first);
      gemm(matrix(hidden), rows, Matrix{tile(first), type_of(head), 1, width}, width, count,
           Result{logits + first, Type::f32, apart, false}, pool);
    }
    const bool gradients = dhidden.defined() || dhead.defined();
    const auto* wanted = targets.const_data_ptr<int64_t>();
    ranges(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        float* row = logits + i * apart;
        const RowSummary summary = summarize(row, words);
        log_probabilities.data_ptr<float>()[i] = row[wanted[i]] - summary.log_sum;
        right.data_ptr<bool>()[i] = summary.best == wanted[i];
        if (!gradients) continue;
        probabilities(row, words, summary.log_sum);
        row[wanted[i]] -= 1.f;
      }
    });
    for (int64_t first = 0; gradients && first < words; first += kTile) {
      const int64_t count = std::min(kTile, words - first);
      if (dhidden.defined())
        gemm(Matrix{logits + first, Type::f32, apart, 1}, rows, Matrix{tile(first), type_of(head), width, 1}, count,
             width, result(dhidden, first > 0), pool);
      if (dhead.defined())
        gemm(Matrix{logits + first, Type::f32, 1, apart}, count, matrix(hidden), rows, width,
             Result{dhead.data_ptr<float>() + first * width, Type::f32, width, true}, pool);
    }
    release(logits);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    Tensor dhidden, dhead;
    if (saved[0].defined()) dhidden = (saved[0] * gradients[0]).to(type);
    if (saved[1].defined()) dhead = (saved[1] * gradients[0]).to(type);
    return {dhidden, dhead, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

variable_list cross_entropy(const Tensor& hidden, const Tensor& head, const Tensor& targets, int64_t chunk,
                            Way way) {
  // Inside of forward the gradient mode is off, so it is asked for here.
  const bool gradients = at::GradMode::is_enabled() && (hidden.requires_grad() || head.requires_grad());
  return CrossEntropy::apply(hidden, head, targets, chunk, static_cast<int64_t>(way), gradients);
}

}  // namespace levain
