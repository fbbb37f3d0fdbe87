// RMSNorm, silu(gate) * up, rotary positions and attention as autograd nodes that keep bf16 and compute in f32.
#include <algorithm>
#include <numeric>

#include "operators.h"

namespace levain {

void adamw_op(const Tensor& stored, const Tensor& weight, const Tensor& gradient, const Tensor& mean, const Tensor& square,
              const AdamW& settings) {
  const int64_t count = stored.numel();
  for (const Tensor* t : {&stored, &weight, &mean, &square})
    TORCH_CHECK(t->is_contiguous() && t->numel() == count && t->device().is_cpu(), "adamw: ", t->sizes(), " for a weight of ",
                stored.sizes());
  TORCH_CHECK(gradient.sizes() == stored.sizes(), "adamw: a gradient of ", gradient.sizes(), " for a weight of ", stored.sizes());
  const Tensor g = gradient.contiguous();
  const Type type = type_of(g);
  const bool narrow = type_of(stored) == Type::bf16;
  TORCH_CHECK(narrow || stored.is_alias_of(weight), "adamw: a weight in f32 is its own master");
  const char* from = bytes(g);
  const int64_t size = g.element_size();
  float *w = weight.data_ptr<float>(), *m = mean.data_ptr<float>(), *s = square.data_ptr<float>();
  auto* half = narrow ? static_cast<uint16_t*>(stored.data_ptr()) : nullptr;
  ranges(count, 16384, [&](int64_t begin, int64_t end) {
    adamw(settings, end - begin, from + begin * size, type, m + begin, s + begin, w + begin,
          half == nullptr ? nullptr : half + begin);
  });
}

std::pair<Tensor, Tensor> norm_forward(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t width = x.size(-1), rows = x.numel() / width, size = x.element_size() * width;
  TORCH_CHECK(x.is_contiguous() && weight.numel() == width && weight.scalar_type() == x.scalar_type(),
              "rms_norm: a weight of ", weight.sizes(), " does not fit ", x.sizes());
  Tensor out = at::empty_like(x), inverse = at::empty({rows}, x.options().dtype(at::kFloat));
  ranges(rows, 16, [&](int64_t begin, int64_t end) {
    rms_norm(bytes(x) + begin * size, weight.const_data_ptr(), type_of(x), end - begin, width, static_cast<float>(eps),
             bytes(out) + begin * size, inverse.data_ptr<float>() + begin);
  });
  return {out, inverse};
}

Tensor norm_backward(const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& inverse) {
  const int64_t width = x.size(-1), rows = inverse.numel(), size = x.element_size() * width;
  Tensor dx = at::empty_like(x);
  ranges(rows, 16, [&](int64_t begin, int64_t end) {
    rms_norm_backward(bytes(g) + begin * size, bytes(x) + begin * size, weight.const_data_ptr(), type_of(x),
                      end - begin, width, inverse.const_data_ptr<float>() + begin, bytes(dx) + begin * size);
  });
  return dx;
}

Tensor norm_weight_gradient(const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& inverse) {
  const int64_t width = x.size(-1), rows = inverse.numel();
  const Tensor n = x.view({rows, width}).to(at::kFloat) * inverse.unsqueeze(1);
  return (n * g.view({rows, width})).sum(0).to(weight.scalar_type());
}

Tensor gate_forward(const Tensor& gate, const Tensor& up) {
  TORCH_CHECK(gate.is_contiguous() && up.is_contiguous() && gate.sizes() == up.sizes() &&
                  gate.scalar_type() == up.scalar_type(),
              "silu_mul: ", gate.sizes(), " and ", up.sizes());
  Tensor out = at::empty_like(gate);
  const int64_t size = gate.element_size();
  ranges(gate.numel(), 4096, [&](int64_t begin, int64_t end) {
    silu_mul(bytes(gate) + begin * size, bytes(up) + begin * size, type_of(gate), end - begin,
             bytes(out) + begin * size);
  });
  return out;
}

std::pair<Tensor, Tensor> gate_backward(const Tensor& g, const Tensor& gate, const Tensor& up) {
  Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
  const int64_t size = gate.element_size();
  ranges(gate.numel(), 4096, [&](int64_t begin, int64_t end) {
    silu_mul_backward(bytes(g) + begin * size, bytes(gate) + begin * size, bytes(up) + begin * size, type_of(gate),
                      end - begin, bytes(dgate) + begin * size, bytes(dup) + begin * size);
  });
  return {dgate, dup};
}

namespace {

struct RmsNorm : Function<RmsNorm> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& weight, double eps) {
    const Tensor x = input.contiguous();
    auto [out, inverse] = norm_forward(x, weight, eps);
    context->save_for_backward({x, weight, inverse});
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const Tensor g = gradients[0].contiguous();
    Tensor dx, dw;
    if (context->needs_input_grad(0)) dx = norm_backward(g, saved[0], saved[1], saved[2]);
    if (context->needs_input_grad(1)) dw = norm_weight_gradient(g, saved[0], saved[1], saved[2]);
    return {dx, dw, Tensor()};
  }
};

struct SiluMul : Function<SiluMul> {
  static Tensor forward(AutogradContext* context, const Tensor& gate, const Tensor& up) {
    context->save_for_backward({gate, up});
    return gate_forward(gate, up);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    auto [dgate, dup] = gate_backward(gradients[0].contiguous(), saved[0], saved[1]);
    return {dgate, dup};
  }
};

Tensor turned(const Tensor& input, const Tensor& cos, const Tensor& sin, const Tensor& positions, int64_t heads,
              bool backward) {
  const Tensor x = input.contiguous();
  Tensor out = at::empty_like(x);
  const int64_t rows = x.size(0), width = x.size(1), size = width / heads;
  ranges(rows, 16, [&](int64_t begin, int64_t end) {
    const int64_t offset = begin * width * x.element_size();
    rope(static_cast<const char*>(x.const_data_ptr()) + offset, type_of(x), end - begin, heads, size,
         cos.const_data_ptr<float>(), sin.const_data_ptr<float>(), positions.const_data_ptr<int64_t>() + begin,
         backward, static_cast<char*>(out.data_ptr()) + offset);
  });
  return out;
}

struct Rope : Function<Rope> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos, const Tensor& sin,
                        const Tensor& positions, int64_t heads) {
    TORCH_CHECK(x.dim() == 2 && heads > 0 && x.size(1) % (2 * heads) == 0 && cos.size(1) == x.size(1) / heads / 2 &&
                    cos.sizes() == sin.sizes() && cos.is_contiguous() && sin.is_contiguous() &&
                    positions.is_contiguous() && positions.numel() == x.size(0),
                "rope: x ", x.sizes(), ", ", heads, " heads, tables ", cos.sizes(), ", positions ", positions.sizes());
    if (x.size(0) > 0) {
      const auto* p = positions.const_data_ptr<int64_t>();
      const auto range = std::minmax_element(p, p + positions.numel());
      TORCH_CHECK(*range.first >= 0 && *range.second < cos.size(0), "rope: position ", *range.second,
                  " is outside of the table of ", cos.size(0));
    }
    context->save_for_backward({cos, sin, positions});
    context->saved_data["heads"] = heads;
    return turned(x, cos, sin, positions, heads, false);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    return {turned(gradients[0], saved[0], saved[1], saved[2], context->saved_data["heads"].toInt(), true), Tensor(),
            Tensor(), Tensor(), Tensor()};
  }
};

// Shares out (segment, head) pairs by their cost, largest first; the result does not depend on who computes what.
void share(const std::vector<Segment>& segments, int64_t heads, const std::function<void(int64_t, int64_t)>& run) {
  const int64_t threads = at::get_num_threads();
  std::vector<int64_t> order(segments.size());
  std::iota(order.begin(), order.end(), 0);
  const auto cost = [&](int64_t s) { return segments[s].queries * (2 * segments[s].keys - segments[s].queries); };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  std::vector<std::vector<std::pair<int64_t, int64_t>>> shares(threads);
  std::vector<int64_t> loads(threads, 0);
  for (int64_t s : order)
    for (int64_t h = 0; h < heads; h++) {
      const size_t least = std::min_element(loads.begin(), loads.end()) - loads.begin();
      shares[least].push_back({s, h});
      loads[least] += cost(s) + 1;
    }
  ranges(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++)
      for (const auto& [s, h] : shares[t]) run(s, h);
  });
}

// Where the tokens of rows of these lengths begin; the last number is where they end.
std::vector<int64_t> starts_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> starts(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), starts.begin() + 1);
  return starts;
}

struct Attend : Function<Attend> {
  static std::vector<Segment> segments_of(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const std::vector<int64_t>& starts, const std::vector<int64_t>& key_starts) {
    std::vector<Segment> segments;
    const auto from = [](const Tensor& t, int64_t start) {
      return static_cast<const char*>(t.const_data_ptr()) + start * t.size(1) * t.element_size();
    };
    for (size_t s = 0; s + 1 < starts.size(); s++)
      segments.push_back({from(q, starts[s]), from(k, key_starts[s]), from(v, key_starts[s]), starts[s + 1] - starts[s],
                          key_starts[s + 1] - key_starts[s], q.size(1), k.size(1)});
    return segments;
  }

  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::vector<int64_t>& lengths, const std::vector<int64_t>& keys, int64_t heads,
                        int64_t groups, double scale) {
    const auto starts = starts_of(lengths), key_starts = starts_of(keys);
    const int64_t tokens = starts.back();
    TORCH_CHECK(q.is_contiguous() && k.is_contiguous() && v.is_contiguous() && q.size(0) == tokens &&
                    k.size(0) == key_starts.back() && v.sizes() == k.sizes() && heads % groups == 0 &&
                    q.size(1) / heads == k.size(1) / groups && lengths.size() == keys.size(),
                "attend: q ", q.sizes(), ", k ", k.sizes(), ", v ", v.sizes(), " for ", tokens, " tokens that see ",
                key_starts.back());
    for (size_t s = 0; s < lengths.size(); s++)
      TORCH_CHECK(lengths[s] > 0 && lengths[s] <= keys[s], "attend: ", lengths[s], " tokens see ", keys[s]);
    Tensor out = at::empty_like(q), log_sums = at::empty({heads, tokens}, q.options().dtype(at::kFloat));
    const Heads shape{heads, heads / groups, q.size(1) / heads, static_cast<float>(scale), type_of(q)};
    const auto segments = segments_of(q, k, v, starts, key_starts);
    share(segments, heads, [&](int64_t s, int64_t h) {
      attend(segments[s], shape, h, static_cast<char*>(out.data_ptr()) + starts[s] * out.size(1) * out.element_size(),
             out.size(1), log_sums.data_ptr<float>() + h * tokens + starts[s]);
    });
    context->save_for_backward({q, k, v, out, log_sums});
    context->saved_data["lengths"] = lengths;
    context->saved_data["keys"] = keys;
    context->saved_data["groups"] = groups;
    context->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &log_sums = saved[4];
    const Tensor g = gradients[0].contiguous();
    const auto starts = starts_of(context->saved_data["lengths"].toIntVector());
    const auto key_starts = starts_of(context->saved_data["keys"].toIntVector());
    const int64_t groups = context->saved_data["groups"].toInt(), heads = log_sums.size(0), tokens = q.size(0);
    const int64_t all = k.size(0);
    const Heads shape{heads, heads / groups, q.size(1) / heads,
                      static_cast<float>(context->saved_data["scale"].toDouble()), type_of(q)};
    const auto segments = segments_of(q, k, v, starts, key_starts);
    Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    const auto wide = q.options().dtype(at::kFloat);
    Tensor dk_parts = at::empty({heads, all, shape.size}, wide), dv_parts = at::empty_like(dk_parts);
    share(segments, heads, [&](int64_t s, int64_t h) {
      const int64_t offset = starts[s] * q.size(1) * q.element_size();
      const int64_t part = (h * all + key_starts[s]) * shape.size;
      attend_backward(segments[s], shape, h, static_cast<const char*>(out.const_data_ptr()) + offset,
                      static_cast<const char*>(g.const_data_ptr()) + offset, q.size(1),
                      log_sums.const_data_ptr<float>() + h * tokens + starts[s],
                      static_cast<char*>(dq.data_ptr()) + offset, dk_parts.data_ptr<float>() + part,
                      dv_parts.data_ptr<float>() + part);
    });
    ranges(all, 16, [&](int64_t begin, int64_t end) {
      reduce_heads(dk_parts.const_data_ptr<float>(), all, shape, begin, end, dk.data_ptr());
      reduce_heads(dv_parts.const_data_ptr<float>(), all, shape, begin, end, dv.data_ptr());
    });
    return {dq, dk, dv, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps) { return RmsNorm::apply(x, weight, eps); }
Tensor silu_mul_op(const Tensor& gate, const Tensor& up) { return SiluMul::apply(gate, up); }
Tensor rope_op(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, int64_t heads) {
  return Rope::apply(x, cos, sin, positions, heads);
}
Tensor attend_op(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths,
                 const std::vector<int64_t>& keys, int64_t heads, int64_t groups, double scale) {
  return Attend::apply(q, k, v, lengths, keys, heads, groups, scale);
}

Tensor attend_cached(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths,
                     const std::vector<int64_t>& rows, const std::vector<int64_t>& filled, int64_t heads,
                     int64_t groups, double scale) {
  at::NoGradGuard guard;
  TORCH_CHECK(q.is_contiguous() && k.is_contiguous() && v.is_contiguous() && k.sizes() == v.sizes() && k.dim() == 3 &&
                  k.scalar_type() == q.scalar_type() && rows.size() == lengths.size() &&
                  filled.size() == lengths.size() && heads % groups == 0 && q.size(1) / heads == k.size(2) / groups,
              "attend: q ", q.sizes(), " does not fit caches of ", k.sizes());
  Tensor out = at::empty_like(q);
  const Heads shape{heads, heads / groups, q.size(1) / heads, static_cast<float>(scale), type_of(q)};
  std::vector<Segment> segments;
  const auto starts = starts_of(lengths);
  TORCH_CHECK(starts.back() == q.size(0), "attend: ", q.size(0), " tokens for rows of ", starts.back());
  for (size_t i = 0; i < lengths.size(); i++) {
    TORCH_CHECK(rows[i] >= 0 && rows[i] < k.size(0) && filled[i] <= k.size(1) && lengths[i] <= filled[i],
                "attend: row ", rows[i], " filled to ", filled[i], " is outside of caches of ", k.sizes());
    const auto cache = [&](const Tensor& t) {
      return static_cast<const char*>(t.const_data_ptr()) + rows[i] * t.stride(0) * t.element_size();
    };
    segments.push_back({static_cast<const char*>(q.const_data_ptr()) + starts[i] * q.size(1) * q.element_size(),
                        cache(k), cache(v), lengths[i], filled[i], q.size(1), k.size(2)});
  }
  share(segments, heads, [&](int64_t s, int64_t h) {
    attend(segments[s], shape, h, static_cast<char*>(out.data_ptr()) + starts[s] * out.size(1) * out.element_size(),
           out.size(1), nullptr);
  });
  return out;
}

}  // namespace levain
