// Linear maps of one x with low-rank changes, as one autograd node: a quantized weight is unpacked and the change added panel by panel
// within the product, so that neither is ever there as a whole, and x is kept once for all maps.
#include <ATen/Dispatch.h>

#include "operators.h"

namespace levain {

namespace {

enum Flag : int64_t { kBias = 1, kLowRank = 2, kNf4 = 4, kNested = 8, kInt8 = 16 };

// One of the maps: its tensors, and how the kernels see its weight.
struct Map {
  Tensor bias, down, up;
  std::vector<Tensor> stored;
  LowRank change{};
  Weight weight{};
  bool quantized() const { return weight.stored != Stored::dense; }
  bool changed() const { return down.defined(); }
  int64_t out() const { return weight.out; }
};

// `shapes`: out, in, block, nested block, rounding of each map; `scales`: of the change and the offset of nested scales.
struct Settings {
  std::vector<int64_t> flags, shapes;
  std::vector<double> scales;
};
constexpr size_t kShape = 5, kScales = 2;

void check_codes(const Tensor& t, at::ScalarType type, int64_t count, const char* what) {
  TORCH_CHECK(t.scalar_type() == type && t.is_contiguous() && t.numel() == count, "linear: ", what, " of a quantized weight: ",
              t.numel(), " of ", t.scalar_type(), " where ", count, " of ", type, " were expected");
}

// What the tensors of a quantized weight are: codes, scales, then the table, then the nested codes and their table.
void quantized(Map& map, int64_t flag, const int64_t* shape, double offset) {
  Weight& w = map.weight;
  const std::vector<Tensor>& t = map.stored;
  w.rounding = static_cast<Rounding>(shape[4]);
  const int64_t count = w.out * w.in;
  if (flag & kInt8) {
    w.stored = Stored::int8;
    check_codes(t[0], at::kChar, count, "the codes");
    check_codes(t[1], at::kFloat, w.out, "the scales");
    w.codes = reinterpret_cast<const uint8_t*>(t[0].const_data_ptr<int8_t>());
    w.scales = t[1].const_data_ptr<float>();
    return;
  }
  w.stored = Stored::nf4;
  w.block = shape[2], w.nested_block = shape[3], w.offset = static_cast<float>(offset);
  TORCH_CHECK(w.block > 0 && w.block % 2 == 0, "linear: blocks of ", w.block);
  const int64_t blocks = (count + w.block - 1) / w.block;
  check_codes(t[0], at::kByte, (count + 1) / 2, "the codes");
  check_codes(t[2], at::kFloat, 16, "the table");
  w.codes = t[0].const_data_ptr<uint8_t>();
  w.table = t[2].const_data_ptr<float>();
  w.scales = t[1].const_data_ptr<float>();
  if (flag & kNested) {
    TORCH_CHECK(w.nested_block > 0, "linear: nested blocks of ", w.nested_block);
    check_codes(t[1], at::kFloat, (blocks + w.nested_block - 1) / w.nested_block, "the scales");
    check_codes(t[3], at::kByte, blocks, "the nested scales");
    check_codes(t[4], at::kFloat, 256, "the nested table");
    w.nested = t[3].const_data_ptr<uint8_t>();
    w.nested_table = t[4].const_data_ptr<float>();
  } else {
    check_codes(t[1], at::kFloat, blocks, "the scales");
  }
}

// The maps in place: a weight points into its map.
std::vector<Map> maps_of(at::TensorList tensors, const Settings& settings, int64_t in) {
  std::vector<Map> maps(settings.flags.size());
  size_t next = 0;
  for (size_t i = 0; i < maps.size(); i++) {
    Map& map = maps[i];
    const int64_t flag = settings.flags[i], *shape = settings.shapes.data() + i * kShape;
    const size_t parts = flag & kInt8 ? 2 : flag & kNf4 ? (flag & kNested ? 5 : 3) : 1;
    for (size_t n = 0; n < parts; n++) map.stored.push_back(tensors[next++]);
    map.weight.out = shape[0], map.weight.in = shape[1];
    TORCH_CHECK(map.weight.in == in, "linear: an x of ", in, " columns does not fit a weight of ", shape[0], " x ", shape[1]);
    if (flag & (kNf4 | kInt8)) {
      quantized(map, flag, shape, settings.scales[i * kScales + 1]);
    } else {
      const Tensor& w = map.stored[0];
      TORCH_CHECK(w.dim() == 2 && w.is_contiguous() && w.size(0) == shape[0] && w.size(1) == shape[1], "linear: a weight of ",
                  w.sizes(), " where ", shape[0], " x ", shape[1], " was said");
      map.weight.dense = matrix(w);
    }
    if (flag & kBias) map.bias = tensors[next++];
    if (!(flag & kLowRank)) continue;
    map.down = tensors[next++];
    map.up = tensors[next++];
    TORCH_CHECK(map.down.scalar_type() == at::kFloat && map.up.scalar_type() == at::kFloat && map.down.is_contiguous() &&
                    map.up.is_contiguous() && map.down.size(1) == in && map.up.size(0) == shape[0] &&
                    map.down.size(0) == map.up.size(1),
                "linear: a low-rank change of ", map.up.sizes(), " by ", map.down.sizes(), " does not fit a weight of ", shape[0],
                " x ", shape[1]);
    map.change = {map.down.const_data_ptr<float>(), map.up.const_data_ptr<float>(), map.down.size(0),
                  static_cast<float>(settings.scales[i * kScales])};
    map.weight.change = &map.change;
  }
  return maps;
}

// For a product of many rows: nested scales are unpacked once instead of for each panel. They are a small part of a weight.
void unpack_nested(std::vector<Map>& maps) {
  for (Map& map : maps) {
    Weight& w = map.weight;
    if (!w.nested) continue;
    const int64_t blocks = (w.out * w.in + w.block - 1) / w.block;
    Tensor scales = at::empty({blocks}, at::TensorOptions().dtype(at::kFloat));
    ranges(blocks, 4096, [&](int64_t begin, int64_t end) { unpack_scales(w, begin, end, scales.data_ptr<float>()); });
    map.stored.push_back(scales);
    w.scales = scales.const_data_ptr<float>();
    w.nested = nullptr;
  }
}

// Decoding: each weight is read once where it lies.
Tensor decoded(const Map& map, const Tensor& x, const float* wide) {
  Tensor y = at::empty({x.size(0), map.out()}, x.options());
  const Tensor bias = map.bias.defined() ? map.bias.to(at::kFloat).contiguous() : Tensor();
  linear_rows(wide, x.size(0), map.weight, bias.defined() ? bias.const_data_ptr<float>() : nullptr, result(y), pool);
  return y;
}

// All maps as one product: x is widened once.
variable_list products(const std::vector<Map>& maps, const Tensor& x) {
  const int64_t rows = x.size(0), in = x.size(1);
  variable_list results;
  std::vector<Share> shares;
  std::vector<Source> sources;
  for (const Map& map : maps) {
    sources.push_back(forward_source(map.weight));
    results.push_back(at::empty({rows, map.out()}, x.options()));
    shares.push_back({result(results.back()), map.out()});
  }
  const Part part{matrix(x), in};
  gemm(&part, 1, rows, sources.data(), shares.data(), shares.size(), pool);
  for (size_t i = 0; i < maps.size(); i++)
    if (maps[i].bias.defined()) results[i].add_(maps[i].bias);
  return results;
}

// The gradient to x: the gradients of all results side by side times the weights one above the other.
Tensor to_input(const std::vector<Map>& maps, const variable_list& gradients, const Tensor& x) {
  std::vector<Part> parts;
  std::vector<Source> sources;
  for (size_t i = 0; i < maps.size(); i++) {
    if (!gradients[i].defined()) continue;
    parts.push_back({matrix(gradients[i]), maps[i].out()});
    sources.push_back(backward_source(maps[i].weight));
  }
  if (parts.empty()) return Tensor();
  Tensor dx = at::empty(x.sizes(), x.options());
  const Share share{result(dx), x.size(1)};
  gemm(parts.data(), parts.size(), x.size(0), sources.data(), &share, 1, pool);
  return dx;
}

struct Linear : Function<Linear> {
  static variable_list forward(AutogradContext* context, const Tensor& input, int64_t before, double eps,
                               at::TensorList tensors, const std::vector<int64_t>& flags,
                               const std::vector<int64_t>& shapes, const std::vector<double>& scales, bool decoding) {
    const Tensor source = input.contiguous();
    const size_t skip = before == 0 ? 0 : 1;
    auto maps = maps_of(tensors.slice(skip), {flags, shapes, scales}, source.size(1));
    Tensor x = source;
    if (before == static_cast<int64_t>(Before::norm)) x = norm_forward(source, tensors[0], eps).first;
    if (before == static_cast<int64_t>(Before::gate)) x = gate_forward(source, tensors[0]);
    variable_list saved{source};
    saved.insert(saved.end(), tensors.begin(), tensors.end());
    context->save_for_backward(saved);
    context->saved_data["before"] = before;
    context->saved_data["eps"] = eps;
    context->saved_data["flags"] = flags;
    context->saved_data["shapes"] = shapes;
    context->saved_data["scales"] = scales;
    if (!decoding) {
      unpack_nested(maps);
      return products(maps, x);
    }
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
    linear_rows(map.down.const_data_ptr<float>(), rank, in, matrix(x), rows, result(h), pool);
    linear_rows(turned.const_data_ptr<float>(), rank, out, matrix(g), rows, result(t), pool);
    Tensor down = at::empty({rank, in}, wide), up = at::empty({rank, out}, wide);
    gemm_few(t.const_data_ptr<float>(), rank, matrix(x), rows, in, map.change.scale, down.data_ptr<float>(), pool);
    gemm_few(h.const_data_ptr<float>(), rank, matrix(g), rows, out, map.change.scale, up.data_ptr<float>(), pool);
    return {down, up.t().contiguous()};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const auto before = static_cast<Before>(context->saved_data["before"].toInt());
    const Settings settings{context->saved_data["flags"].toIntVector(), context->saved_data["shapes"].toIntVector(),
                            context->saved_data["scales"].toDoubleVector()};
    const size_t skip = before == Before::nothing ? 0 : 1;
    auto maps = maps_of(at::TensorList(saved).slice(1 + skip), settings, saved[0].size(1));
    const Tensor source = saved[0];
    Tensor x = source, inverse;
    if (before == Before::norm)
      std::tie(x, inverse) = norm_forward(source, saved[1], context->saved_data["eps"].toDouble());
    if (before == Before::gate) x = gate_forward(source, saved[1]);
    const int64_t rows = x.size(0), in = x.size(1);
    // One place for each argument of forward, the list's tensors in its middle; edges are counted over tensors only.
    variable_list results(saved.size() + 6);
    const size_t shift = 2;
    const bool inputs = context->needs_input_grad(0) || (skip && context->needs_input_grad(1));
    size_t edge = 1 + skip;
    for (Tensor& g : gradients)
      if (g.defined()) g = g.contiguous();
    std::vector<size_t> parts;
    for (const Map& map : maps) parts.push_back(map.stored.size());
    if (inputs) unpack_nested(maps);
    Tensor dx = inputs ? to_input(maps, gradients, x) : Tensor();
    for (size_t i = 0; i < maps.size(); i++) {
      const Map& map = maps[i];
      const size_t weight_at = edge, bias_at = edge + parts[i], down_at = bias_at + map.bias.defined();
      edge = down_at + 2 * map.changed();
      if (!gradients[i].defined()) continue;
      const Tensor& g = gradients[i];
      if (!map.quantized() && context->needs_input_grad(weight_at)) {
        Tensor dw = at::empty({map.out(), in}, map.stored[0].options());
        gemm(transposed(g), map.out(), matrix(x), rows, in, result(dw), pool);
        results[weight_at + shift] = dw;
      }
      if (map.bias.defined() && context->needs_input_grad(bias_at))
        results[bias_at + shift] = g.sum(0, false, at::kFloat).to(map.bias.scalar_type());
      if (map.changed() && (context->needs_input_grad(down_at) || context->needs_input_grad(down_at + 1)))
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
                     const std::vector<int64_t>& shapes, const std::vector<double>& scales, bool few) {
  return Linear::apply(x, static_cast<int64_t>(before), eps, tensors, flags, shapes, scales, few);
}

namespace {

// The values of a quantized weight as plain operators give them, for any device: those of the kernels, bit for bit.
Tensor composed(const std::vector<Tensor>& t, int64_t flag, const std::vector<int64_t>& shape, double offset) {
  const int64_t out = shape[0], in = shape[1], block = shape[2];
  Tensor values;
  if (flag & kInt8) {
    values = t[0].to(at::kFloat).view({out, in}) * t[1].view({out, 1});
  } else {
    const Tensor pairs = t[0].view({-1, 1});
    const Tensor codes = at::cat({at::bitwise_right_shift(pairs, 4), at::bitwise_and(pairs, 15)}, 1).view(-1);
    values = t[2].index_select(0, codes.narrow(0, 0, out * in).to(at::kInt));
    Tensor scales = t[1];
    if (flag & kNested) {
      const int64_t blocks = t[3].numel();
      scales = t[4].index_select(0, t[3].view(-1).to(at::kInt)) * scales.repeat_interleave(shape[3]).narrow(0, 0, blocks) +
               static_cast<float>(offset);
    }
    values = (values * scales.repeat_interleave(block).narrow(0, 0, out * in)).view({out, in});
  }
  switch (static_cast<Rounding>(shape[4])) {
    case Rounding::bf16: return values.to(at::kBFloat16);
    case Rounding::f16: return values.to(at::kHalf);
    case Rounding::none: return values;
  }
  return values;
}

// A product with a quantized weight by libtorch: the weight is unpacked for each use instead of being kept for the backward pass.
struct Unpacked : Function<Unpacked> {
  static Tensor forward(AutogradContext* context, const Tensor& x, at::TensorList tensors, int64_t flag,
                        const std::vector<int64_t>& shape, const std::vector<double>& scales) {
    context->save_for_backward(tensors.vec());
    context->saved_data["flag"] = flag;
    context->saved_data["shape"] = shape;
    context->saved_data["scales"] = scales;
    return at::mm(x, dequantized(tensors, flag, shape, scales, x.scalar_type()).t());
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const Tensor w = dequantized(saved, data["flag"].toInt(), data["shape"].toIntVector(), data["scales"].toDoubleVector(),
                                 gradients[0].scalar_type());
    variable_list results(saved.size() + 4);
    results[0] = at::mm(gradients[0], w);
    return results;
  }
};

}  // namespace

Tensor dequantized(at::TensorList tensors, int64_t flag, const std::vector<int64_t>& shape, const std::vector<double>& scales,
                   at::ScalarType kind) {
  const auto maps = maps_of(tensors, {{flag}, shape, scales}, shape[1]);
  const Weight& weight = maps[0].weight;
  TORCH_CHECK(weight.stored != Stored::dense, "dequantized: a dense weight");
  const bool kernels = tensors[0].device().is_cpu() && levain_kernels() == 1;
  if (!kernels || (kind != at::kFloat && kind != at::kBFloat16)) return composed(maps[0].stored, flag, shape, scales[1]).to(kind);
  Tensor values = at::empty({weight.out, weight.in}, at::TensorOptions().dtype(kind));
  ranges(weight.out, 16, [&](int64_t begin, int64_t end) {
    float* row = scratch(weight.in);
    for (int64_t i = begin; i < end; i++) {
      weight_row(weight, i, 0, weight.in, row);
      values[i].copy_(at::from_blob(row, {weight.in}, at::TensorOptions().dtype(at::kFloat)));
    }
    release(row);
  });
  return values;
}

Tensor unpacked_product(const Tensor& x, at::TensorList tensors, int64_t flag, const std::vector<int64_t>& shape,
                        const std::vector<double>& scales) {
  return Unpacked::apply(x, tensors, flag, shape, scales);
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
