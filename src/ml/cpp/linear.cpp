// Linear maps of one x with low-rank changes, as one autograd node: the change is added to the weight while it is packed,
// so an adapter costs its weight's size instead of its activations', and x is kept once for all maps.
#include <ATen/Dispatch.h>

#include "operators.h"

namespace levain {

namespace {

enum Flag : int64_t { kBias = 1, kLowRank = 2 };

struct Map {
  Tensor weight, bias, down, up;
  float scale = 0.f;
  bool change() const { return down.defined(); }
  LowRank low_rank() const { return {down.const_data_ptr<float>(), up.const_data_ptr<float>(), down.size(0), scale}; }
};

std::vector<Map> maps_of(at::TensorList tensors, const std::vector<int64_t>& flags, const std::vector<double>& scales) {
  std::vector<Map> maps;
  size_t next = 0;
  for (size_t i = 0; i < flags.size(); i++) {
    Map map;
    map.weight = tensors[next++];
    if (flags[i] & kBias) map.bias = tensors[next++];
    if (flags[i] & kLowRank) {
      map.down = tensors[next++];
      map.up = tensors[next++];
    }
    map.scale = static_cast<float>(scales[i]);
    maps.push_back(map);
  }
  return maps;
}

void check(const Tensor& x, const std::vector<Map>& maps) {
  for (const Map& m : maps) {
    TORCH_CHECK(m.weight.dim() == 2 && m.weight.is_contiguous() && m.weight.size(1) == x.size(1), "linear: x ",
                x.sizes(), " does not fit a weight of ", m.weight.sizes());
    if (m.change())
      TORCH_CHECK(m.down.scalar_type() == at::kFloat && m.up.scalar_type() == at::kFloat && m.down.is_contiguous() &&
                      m.up.is_contiguous() && m.down.size(1) == x.size(1) && m.up.size(0) == m.weight.size(0) &&
                      m.down.size(0) == m.up.size(1),
                  "linear: a low-rank change of ", m.up.sizes(), " by ", m.down.sizes(), " does not fit a weight of ",
                  m.weight.sizes());
  }
}

// Decoding: each weight is read once where it lies.
Tensor decoded(const Map& map, const Tensor& x, const float* wide) {
  const int64_t rows = x.size(0), in = x.size(1), out = map.weight.size(0);
  Tensor y = at::empty({rows, out}, x.options());
  LowRank low{};
  if (map.change()) low = map.low_rank();
  const Tensor bias = map.bias.defined() ? map.bias.to(at::kFloat).contiguous() : Tensor();
  linear_rows(wide, rows, in, matrix(map.weight), out, map.change() ? &low : nullptr,
              bias.defined() ? bias.const_data_ptr<float>() : nullptr, result(y), pool);
  return y;
}

int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }

// All maps as one product: x is widened once.
variable_list products(const std::vector<Map>& maps, const Tensor& x) {
  const int64_t rows = x.size(0), in = x.size(1);
  int64_t columns = 0;
  for (const Map& map : maps) columns += up16(map.weight.size(0));
  float* packed = scratch(in * columns);
  variable_list results;
  std::vector<Share> shares;
  columns = 0;
  for (const Map& map : maps) {
    const int64_t out = map.weight.size(0);
    LowRank low{};
    if (map.change()) low = map.low_rank();
    pack_weight(matrix(map.weight), out, in, map.change() ? &low : nullptr, packed + in * columns, pool);
    columns += up16(out);
    results.push_back(at::empty({rows, out}, x.options()));
    shares.push_back({result(results.back()), out});
  }
  const Part part{matrix(x), in};
  gemm(&part, 1, rows, packed, shares.data(), shares.size(), pool);
  release(packed);
  for (size_t i = 0; i < maps.size(); i++)
    if (maps[i].bias.defined()) results[i].add_(maps[i].bias);
  return results;
}

// The gradient to x: the gradients of all results side by side times the weights one above the other.
Tensor to_input(const std::vector<Map>& maps, const variable_list& gradients, const Tensor& x) {
  const int64_t rows = x.size(0), in = x.size(1);
  int64_t depth = 0;
  for (size_t i = 0; i < maps.size(); i++)
    if (gradients[i].defined()) depth += maps[i].weight.size(0);
  if (depth == 0) return Tensor();
  float* packed = scratch(packed_size(depth, in));
  std::vector<Part> parts;
  int64_t first = 0;
  for (size_t i = 0; i < maps.size(); i++) {
    if (!gradients[i].defined()) continue;
    const Map& map = maps[i];
    const int64_t out = map.weight.size(0);
    LowRank low{};
    if (map.change()) low = map.low_rank();
    pack_weight_back(matrix(map.weight), out, in, map.change() ? &low : nullptr, first, depth, packed, pool);
    parts.push_back({matrix(gradients[i]), out});
    first += out;
  }
  Tensor dx = at::empty({rows, in}, x.options());
  const Share share{result(dx), in};
  gemm(parts.data(), parts.size(), rows, packed, &share, 1, pool);
  release(packed);
  return dx;
}

struct Linear : Function<Linear> {
  static variable_list forward(AutogradContext* context, const Tensor& input, int64_t before, double eps,
                               at::TensorList tensors, const std::vector<int64_t>& flags,
                               const std::vector<double>& scales, bool decoding) {
    const Tensor source = input.contiguous();
    const size_t skip = before == 0 ? 0 : 1;
    auto maps = maps_of(tensors.slice(skip), flags, scales);
    Tensor x = source;
    if (before == static_cast<int64_t>(Before::norm)) x = norm_forward(source, tensors[0], eps).first;
    if (before == static_cast<int64_t>(Before::gate)) x = gate_forward(source, tensors[0]);
    check(x, maps);
    variable_list saved{source};
    saved.insert(saved.end(), tensors.begin(), tensors.end());
    context->save_for_backward(saved);
    context->saved_data["before"] = before;
    context->saved_data["eps"] = eps;
    context->saved_data["flags"] = flags;
    context->saved_data["scales"] = scales;
    if (!decoding) return products(maps, x);
    float* wide = scratch(x.numel());
    at::from_blob(wide, x.sizes(), at::TensorOptions().dtype(at::kFloat)).copy_(x);
    variable_list results;
    for (const Map& map : maps) results.push_back(decoded(map, x, wide));
    release(wide);
    return results;
  }

  // Gradients to the factors of one map's change, from x and the gradient g of its result.
  static std::pair<Tensor, Tensor> factors(const Map& map, const Tensor& x, const Tensor& g) {
    // With h = x down^T and t = g up: d(down) = scale t^T x, d(up) = scale g^T h; h and t are made transposed.
    const auto wide = x.options().dtype(at::kFloat);
    const int64_t rows = x.size(0), in = x.size(1), out = g.size(1), rank = map.down.size(0);
    const Tensor turned = map.up.t().contiguous();
    Tensor h = at::empty({rank, rows}, wide), t = at::empty({rank, rows}, wide);
    linear_rows(map.down.const_data_ptr<float>(), rank, in, matrix(x), rows, nullptr, nullptr, result(h), pool);
    linear_rows(turned.const_data_ptr<float>(), rank, out, matrix(g), rows, nullptr, nullptr, result(t), pool);
    Tensor down = at::empty({rank, in}, wide), up = at::empty({rank, out}, wide);
    gemm_few(t.const_data_ptr<float>(), rank, matrix(x), rows, in, map.scale, down.data_ptr<float>(), pool);
    gemm_few(h.const_data_ptr<float>(), rank, matrix(g), rows, out, map.scale, up.data_ptr<float>(), pool);
    return {down, up.t().contiguous()};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const auto before = static_cast<Before>(context->saved_data["before"].toInt());
    const auto flags = context->saved_data["flags"].toIntVector();
    const auto scales = context->saved_data["scales"].toDoubleVector();
    const size_t skip = before == Before::nothing ? 0 : 1;
    auto maps = maps_of(at::TensorList(saved).slice(1 + skip), flags, scales);
    const Tensor source = saved[0];
    Tensor x = source, inverse;
    if (before == Before::norm)
      std::tie(x, inverse) = norm_forward(source, saved[1], context->saved_data["eps"].toDouble());
    if (before == Before::gate) x = gate_forward(source, saved[1]);
    const int64_t rows = x.size(0), in = x.size(1);
    // One place for each argument of forward, the list's tensors in its middle; edges are counted over tensors only.
    variable_list results(saved.size() + 5);
    const size_t shift = 2;
    const bool inputs = context->needs_input_grad(0) || (skip && context->needs_input_grad(1));
    size_t edge = 1 + skip;
    for (Tensor& g : gradients)
      if (g.defined()) g = g.contiguous();
    Tensor dx = inputs ? to_input(maps, gradients, x) : Tensor();
    for (size_t i = 0; i < maps.size(); i++) {
      const Map& map = maps[i];
      const size_t weight_at = edge++;
      const size_t bias_at = flags[i] & kBias ? edge++ : 0;
      const size_t down_at = map.change() ? edge : 0;
      if (map.change()) edge += 2;
      if (!gradients[i].defined()) continue;
      const Tensor& g = gradients[i];
      const int64_t out = map.weight.size(0);
      if (context->needs_input_grad(weight_at)) {
        Tensor dw = at::empty({out, in}, map.weight.options());
        gemm(transposed(g), out, matrix(x), rows, in, result(dw), pool);
        results[weight_at + shift] = dw;
      }
      if (bias_at && context->needs_input_grad(bias_at))
        results[bias_at + shift] = g.sum(0, false, at::kFloat).to(map.bias.scalar_type());
      if (map.change() && (context->needs_input_grad(down_at) || context->needs_input_grad(down_at + 1)))
        std::tie(results[down_at + shift], results[down_at + 1 + shift]) = factors(map, x, g);
    }
    if (!dx.defined()) return results;
    if (before == Before::norm) {
      results[0] = norm_backward(dx, source, saved[1], inverse);
      if (context->needs_input_grad(1)) results[1 + shift] = norm_weight_gradient(dx, source, saved[1], inverse);
    } else if (before == Before::gate) {
      std::tie(results[0], results[1 + shift]) = gate_backward(dx, source, saved[1]);
    } else {
      results[0] = dx;
    }
    return results;
  }
};

}  // namespace

variable_list linear(const Tensor& x, Before before, double eps, at::TensorList tensors, const std::vector<int64_t>& flags,
                     const std::vector<double>& scales, bool few) {
  return Linear::apply(x, static_cast<int64_t>(before), eps, tensors, flags, scales, few);
}

namespace {

// Stafford's mix of a counter: the same bits for an index whatever the thread.
uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

Tensor masked(const Tensor& input, double probability, int64_t seed, int64_t first) {
  const Tensor x = input.contiguous();
  Tensor keep = at::empty(x.sizes(), x.options());
  const uint64_t limit = static_cast<uint64_t>(probability * 18446744073709551616.0);
  const uint64_t key = mixed(static_cast<uint64_t>(seed)) + static_cast<uint64_t>(first);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dropout", [&] {
    const auto scale = 1.0 / (1.0 - probability);
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = keep.data_ptr<scalar_t>();
    ranges(x.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        to[i] = mixed(key + static_cast<uint64_t>(i)) < limit ? scalar_t(0) : scalar_t(from[i] * scale);
    });
  });
  return keep;
}

struct Dropout : Function<Dropout> {
  static Tensor forward(AutogradContext* context, const Tensor& x, double probability, int64_t seed, int64_t first) {
    TORCH_CHECK(probability >= 0 && probability < 1, "dropout: a probability of ", probability);
    context->saved_data["probability"] = probability;
    context->saved_data["seed"] = seed;
    context->saved_data["first"] = first;
    return masked(x, probability, seed, first);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto& saved = context->saved_data;
    return {masked(gradients[0], saved["probability"].toDouble(), saved["seed"].toInt(), saved["first"].toInt()),
            Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor dropout_op(const Tensor& x, double probability, int64_t seed, int64_t first) {
  return Dropout::apply(x, probability, seed, first);
}

}  // namespace levain
