// A piece of a model whose inside is computed again in the backward pass instead of being kept (Chen et al., arXiv 1604.06174).
#include <torch/csrc/autograd/autograd.h>

#include "operators.h"

namespace levain {

namespace {

// The piece, and what frees it.
struct Piece : torch::CustomClassHolder {
  Run run;
  Drop drop;
  void* context;
  Piece(Run run, Drop drop, void* context) : run(run), drop(drop), context(context) {}
  ~Piece() override { drop(context); }

  Tensor operator()(const Tensor& x) const {
    Tensor* y = run(context, &x);
    TORCH_CHECK(y != nullptr, "a piece of the model failed");
    Tensor result = std::move(*y);
    delete y;
    return result;
  }
};

struct Checkpoint : Function<Checkpoint> {
  // `anchor` is any tensor that is trained: without it autograd would not come back here where x itself needs no gradient.
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& anchor, c10::intrusive_ptr<Piece> piece) {
    context->save_for_backward({x});
    context->saved_data["piece"] = c10::IValue::make_capsule(piece);
    context->saved_data["wanted"] = x.requires_grad();
    (void)anchor;
    return (*piece)(x);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto piece = c10::static_intrusive_pointer_cast<Piece>(context->saved_data["piece"].toCapsule());
    const bool wanted = context->saved_data["wanted"].toBool();
    Tensor x = context->get_saved_variables()[0].detach();
    x.requires_grad_(wanted);
    {
      at::AutoGradMode on(true);
      const Tensor y = (*piece)(x);
      // Gradients to parameters inside go to where they belong.
      torch::autograd::backward({y}, {gradients[0]});
    }
    return {wanted ? x.grad() : Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor checkpoint_op(const Tensor& x, const Tensor& anchor, Run run, Drop drop, void* context) {
  return Checkpoint::apply(x, anchor, c10::make_intrusive<Piece>(run, drop, context));
}

}  // namespace levain
