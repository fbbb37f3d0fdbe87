// Cross entropy over a vocabulary without a tensor of all logits: rows in chunks, the gradient with respect to the hidden
// rows computed in the forward pass and scaled in the backward one.
#include "operators.h"

namespace levain {

namespace {

constexpr int64_t kTile = 2048;  // words whose gradients are packed at a time: 2 MB for 256 rows

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
    gemm(matrix(hidden), rows, Matrix{tile(0), type_of(head), 1, width}, width, words, Result{logits, Type::f32, apart, false}, pool);
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

// The log-probability of each target with a gradient for each of them, where the weight of a token is known only after all were
// computed (preference losses, policy gradients). With a frozen head the gradient of each to its hidden row is computed at once and
// scaled in the backward pass; where the head is trained, or an entropy, the logits are made again there instead of being kept.
struct LogProbabilities : Function<LogProbabilities> {
  // Gives (log-probability, entropy, log of the sum of squared probabilities) of each row; the last two, of which only the entropy
  // has a gradient, are empty unless asked for.
  static variable_list forward(AutogradContext* context, const Tensor& input, const Tensor& head, const Tensor& targets,
                               int64_t chunk, int64_t way, bool statistics, bool gradients) {
    const Tensor hidden = input.contiguous();
    const int64_t rows = hidden.size(0), width = hidden.size(1), words = head.size(0);
    TORCH_CHECK(head.dim() == 2 && head.size(1) == width && head.is_contiguous() && targets.numel() == rows,
                "log_probabilities: hidden ", hidden.sizes(), ", head ", head.sizes(), ", targets ", targets.sizes());
    TORCH_CHECK(rows == 0 || (targets.min().item<int64_t>() >= 0 && targets.max().item<int64_t>() < words),
                "log_probabilities: a target is outside of the vocabulary of ", words);
    const auto wide = wide_options(hidden);
    Tensor values = at::empty({rows}, wide), log_sums = at::empty({rows}, wide);
    Tensor entropies = at::empty({statistics ? rows : 0}, wide), squares = at::empty({statistics ? rows : 0}, wide);
    const bool ahead = gradients && !statistics && input.requires_grad() && !head.requires_grad();
    Tensor slopes = ahead ? at::empty({rows, width}, wide) : Tensor();
    for (int64_t first = 0; first < rows; first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      Tensor logits = chunk_logits(hidden.narrow(0, first, count), head, way);
      const auto part = [&](const Tensor& whole) { return whole.narrow(0, first, count); };
      const Tensor sums = summed(logits, way);
      part(log_sums).copy_(sums);
      part(values).copy_(logits.gather(1, part(targets).unsqueeze(1)).squeeze(1) - sums);
      if (statistics) {
        const Tensor logs = logits - sums.unsqueeze(1);
        part(squares).copy_((logs * 2).logsumexp(1));
        part(entropies).copy_(-(logs.exp() * logs).sum(1));
      }
      if (ahead) {
        to_probabilities(logits, sums, way);
        logits.neg_().scatter_add_(1, part(targets).unsqueeze(1), at::ones({count, 1}, wide));
        times_head(logits, head, part(slopes), way);
      }
    }
    if (ahead)
      context->save_for_backward({slopes});
    else
      context->save_for_backward({hidden, head, targets, log_sums, entropies});
    context->saved_data["type"] = static_cast<int64_t>(hidden.scalar_type());
    context->saved_data["chunk"] = chunk;
    context->saved_data["way"] = way;
    context->mark_non_differentiable({squares});
    return {values, entropies, squares};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    if (saved.size() == 1) {
      const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
      Tensor dhidden;
      if (gradients[0].defined()) dhidden = (saved[0] * gradients[0].unsqueeze(1)).to(type);
      return {dhidden, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    }
    const Tensor &hidden = saved[0], &head = saved[1], &targets = saved[2], &log_sums = saved[3], &entropies = saved[4];
    const int64_t chunk = context->saved_data["chunk"].toInt(), way = context->saved_data["way"].toInt();
    const bool to_hidden = context->needs_input_grad(0), to_head = context->needs_input_grad(1);
    const bool by_entropy = entropies.numel() > 0 && gradients[1].defined();
    const int64_t rows = hidden.size(0), words = head.size(0), width = hidden.size(1);
    const auto wide = wide_options(hidden);
    Tensor dhidden = to_hidden ? at::empty({rows, width}, wide) : Tensor();
    Tensor dhead = to_head ? at::zeros({words, width}, wide) : Tensor();
    const Tensor outer = gradients[0].defined() ? gradients[0].contiguous() : at::zeros({rows}, wide);
    for (int64_t first = 0; first < rows && (to_hidden || to_head); first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      const auto part = [&](const Tensor& whole) { return whole.narrow(0, first, count); };
      const Tensor h = part(hidden), g = part(outer).unsqueeze(1), t = part(targets).unsqueeze(1);
      Tensor d = chunk_logits(h, head, way);
      if (by_entropy) {
        // dH/dlogit = -p (log p + H)
        const Tensor logs = d - part(log_sums).unsqueeze(1), p = logs.exp();
        d = p * (-g - part(gradients[1]).unsqueeze(1) * (logs + part(entropies).unsqueeze(1)));
      } else {
        to_probabilities(d, part(log_sums), way);
        d.mul_(-g);
      }
      d.scatter_add_(1, t, g);
      if (to_hidden) times_head(d, head, part(dhidden), way);
      if (!to_head) continue;
      if (way == static_cast<int64_t>(Way::kernels)) {
        gemm(transposed(d), words, matrix(h), count, width, Result{dhead.data_ptr<float>(), Type::f32, width, true}, pool);
      } else {
        const auto type = product_type(hidden, way);
        dhead.add_(at::mm(d.to(type).t(), h.to(type)));
      }
    }
    const auto typed = [](const Tensor& gradient, const Tensor& like) {
      return gradient.defined() ? gradient.to(like.scalar_type()) : gradient;
    };
    return {typed(dhidden, hidden), typed(dhead, head), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }

  // logits <- softmax, in place.
  static void to_probabilities(Tensor& logits, const Tensor& log_sums, int64_t way) {
    if (way != static_cast<int64_t>(Way::kernels)) {
      logits.sub_(log_sums.unsqueeze(1)).exp_();
      return;
    }
    const int64_t words = logits.size(1);
    ranges(logits.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        probabilities(logits.data_ptr<float>() + i * words, words, log_sums.const_data_ptr<float>()[i]);
    });
  }

  // to = logits' gradient times the head.
  static void times_head(const Tensor& d, const Tensor& head, Tensor to, int64_t way) {
    if (way == static_cast<int64_t>(Way::kernels)) {
      gemm(matrix(d), d.size(0), Matrix{head.const_data_ptr(), type_of(head), head.size(1), 1}, head.size(0), head.size(1), result(to), pool);
    } else {
      const auto type = way == static_cast<int64_t>(Way::native) ? head.scalar_type() : d.scalar_type();
      to.copy_(at::mm(d.to(type), head.to(type)));
    }
  }

  static at::TensorOptions wide_options(const Tensor& like) {
    return like.options().dtype(like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).requires_grad(false);
  }

  // Products in bf16 only where the processor has them.
  static at::ScalarType product_type(const Tensor& hidden, int64_t way) {
    if (way == static_cast<int64_t>(Way::native)) return hidden.scalar_type();
    return at::typeMetaToScalarType(wide_options(hidden).dtype());
  }

  static Tensor chunk_logits(const Tensor& hidden, const Tensor& head, int64_t way) {
    if (way != static_cast<int64_t>(Way::kernels)) {
      const auto type = product_type(hidden, way);
      return at::mm(hidden.to(type), head.to(type).t()).to(wide_options(hidden).dtype());
    }
    const int64_t rows = hidden.size(0), width = hidden.size(1), words = head.size(0);
    Tensor logits = at::empty({rows, words}, wide_options(hidden));
    gemm(matrix(hidden), rows, Matrix{head.const_data_ptr(), type_of(head), 1, width}, width, words, result(logits), pool);
    return logits;
  }

  static Tensor summed(const Tensor& logits, int64_t way) {
    if (way != static_cast<int64_t>(Way::kernels)) return logits.logsumexp(1);
    const int64_t rows = logits.size(0), words = logits.size(1);
    Tensor sums = at::empty({rows}, logits.options());
    ranges(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        sums.data_ptr<float>()[i] = summarize(logits.const_data_ptr<float>() + i * words, words).log_sum;
    });
    return sums;
  }
};

}  // namespace

variable_list log_probabilities(const Tensor& hidden, const Tensor& head, const Tensor& targets, int64_t chunk, Way way,
                                bool statistics) {
  // Inside of forward the gradient mode is off, so it is asked for here.
  return LogProbabilities::apply(hidden, head, targets, chunk, static_cast<int64_t>(way), statistics, at::GradMode::is_enabled());
}

variable_list cross_entropy(const Tensor& hidden, const Tensor& head, const Tensor& targets, int64_t chunk,
                            Way way) {
  // Inside of forward the gradient mode is off, so it is asked for here.
  const bool gradients = at::GradMode::is_enabled() && (hidden.requires_grad() || head.requires_grad());
  return CrossEntropy::apply(hidden, head, targets, chunk, static_cast<int64_t>(way), gradients);
}

}  // namespace levain
