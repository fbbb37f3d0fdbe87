// Element-wise and row-wise kernels: sums and functions in f32, values in the type of the activations.
#include "avx512.h"
#include "simd.h"

namespace levain {

namespace {

inline float silu(float x) { return x / (1.f + __builtin_expf(-x)); }
inline __m256 sigmoid8(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.f);
  return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// Rounds to the values that type T can hold.
template <typename T>
inline __m256 rounded(__m256 v) {
  if constexpr (sizeof(T) == 2) {
    uint16_t half[8];
    store8(half, v);
    return load8(half);
  }
  return v;
}
template <typename T>
inline float rounded(float v) {
  if constexpr (sizeof(T) == 2) {
    uint16_t half = narrow(v);
    return load1(&half);
  }
  return v;
}

template <typename T>
void norm_rows(const T* x, const T* weight, int64_t rows, int64_t width, float eps, T* out, float* inverse) {
  for (int64_t r = 0; r < rows; r++, x += width, out += width) {
    __m256 squares = _mm256_setzero_ps();
    float rest = 0.f;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
      __m256 v = load8(x + i);
      squares = _mm256_fmadd_ps(v, v, squares);
    }
    for (; i < width; i++) rest += load1(x + i) * load1(x + i);
    const float scale = 1.f / __builtin_sqrtf((sum8(squares) + rest) / static_cast<float>(width) + eps);
    inverse[r] = scale;
    const __m256 s = _mm256_set1_ps(scale);
    for (i = 0; i + 8 <= width; i += 8)
      store8(out + i, _mm256_mul_ps(load8(weight + i), rounded<T>(_mm256_mul_ps(load8(x + i), s))));
    for (; i < width; i++) store1(out + i, load1(weight + i) * rounded<T>(load1(x + i) * scale));
  }
}

// With n = x * inverse and d = gradient * weight: inverse * (d - n * mean(d * n)).
template <typename T>
void norm_rows_backward(const T* g, const T* x, const T* weight, int64_t rows, int64_t width, const float* inverse,
                        T* out) {
  for (int64_t r = 0; r < rows; r++, g += width, x += width, out += width) {
    const float scale = inverse[r];
    const __m256 s = _mm256_set1_ps(scale);
    __m256 dots = _mm256_setzero_ps();
    float rest = 0.f;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8)
      dots = _mm256_fmadd_ps(_mm256_mul_ps(load8(g + i), load8(weight + i)), _mm256_mul_ps(load8(x + i), s), dots);
    for (; i < width; i++) rest += load1(g + i) * load1(weight + i) * load1(x + i) * scale;
    const float mean = (sum8(dots) + rest) / static_cast<float>(width);
    const __m256 m = _mm256_set1_ps(mean);
    for (i = 0; i + 8 <= width; i += 8) {
      __m256 d = _mm256_mul_ps(load8(g + i), load8(weight + i)), n = _mm256_mul_ps(load8(x + i), s);
      store8(out + i, _mm256_mul_ps(s, _mm256_fnmadd_ps(n, m, d)));
    }
    for (; i < width; i++)
      store1(out + i, scale * (load1(g + i) * load1(weight + i) - load1(x + i) * scale * mean));
  }
}

template <typename T>
void silu_mul_rows(const T* gate, const T* up, int64_t count, T* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 g = load8(gate + i);
    store8(out + i, _mm256_mul_ps(rounded<T>(_mm256_mul_ps(g, sigmoid8(g))), load8(up + i)));
  }
  for (; i < count; i++) store1(out + i, rounded<T>(silu(load1(gate + i))) * load1(up + i));
}

template <typename T>
void silu_mul_rows_backward(const T* gradient, const T* gate, const T* up, int64_t count, T* dgate, T* dup) {
  const __m256 one = _mm256_set1_ps(1.f);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 d = load8(gradient + i), g = load8(gate + i), u = load8(up + i), s = sigmoid8(g);
    __m256 value = _mm256_mul_ps(g, s);
    store8(dup + i, _mm256_mul_ps(d, value));
    // d silu / dg = s * (1 + g * (1 - s)) = s + value * (1 - s)
    __m256 slope = _mm256_fmadd_ps(value, _mm256_sub_ps(one, s), s);
    store8(dgate + i, _mm256_mul_ps(_mm256_mul_ps(d, u), slope));
  }
  for (; i < count; i++) {
    const float d = load1(gradient + i), g = load1(gate + i), u = load1(up + i);
    const float s = 1.f / (1.f + __builtin_expf(-g)), value = g * s;
    store1(dup + i, d * value);
    store1(dgate + i, d * u * (s + value * (1.f - s)));
  }
}

template <typename T>
void rope_rows(const T* x, int64_t rows, int64_t heads, int64_t size, const float* cos, const float* sin,
               const int64_t* positions, float sign, T* out) {
  const int64_t half = size / 2;
  const __m256 turn = _mm256_set1_ps(sign);
  for (int64_t r = 0; r < rows; r++) {
    const float *c = cos + positions[r] * half, *s = sin + positions[r] * half;
    for (int64_t h = 0; h < heads; h++, x += size, out += size) {
      int64_t i = 0;
      for (; i + 8 <= half; i += 8) {
        __m256 a = load8(x + i), b = load8(x + half + i), k = _mm256_loadu_ps(c + i);
        __m256 t = _mm256_mul_ps(turn, _mm256_loadu_ps(s + i));
        store8(out + i, _mm256_fnmadd_ps(b, t, _mm256_mul_ps(a, k)));
        store8(out + half + i, _mm256_fmadd_ps(a, t, _mm256_mul_ps(b, k)));
      }
      for (; i < half; i++) {
        const float a = load1(x + i), b = load1(x + half + i);
        store1(out + i, a * c[i] - b * sign * s[i]);
        store1(out + half + i, b * c[i] + a * sign * s[i]);
      }
    }
  }
}

// Sums of 4 weight rows against 2 rows of x (the second may repeat the first).
template <typename W>
inline void dot4(const W* w, int64_t w_row, const float* x0, const float* x1, int64_t in, float* y0, float* y1) {
  __m256 a0 = _mm256_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  const W *w0 = w, *w1 = w + w_row, *w2 = w1 + w_row, *w3 = w2 + w_row;
  int64_t k = 0;
  for (; k + 8 <= in; k += 8) {
    const __m256 u = _mm256_loadu_ps(x0 + k), v = _mm256_loadu_ps(x1 + k);
    __m256 p = load8(w0 + k);
    a0 = _mm256_fmadd_ps(p, u, a0);
    b0 = _mm256_fmadd_ps(p, v, b0);
    p = load8(w1 + k);
    a1 = _mm256_fmadd_ps(p, u, a1);
    b1 = _mm256_fmadd_ps(p, v, b1);
    p = load8(w2 + k);
    a2 = _mm256_fmadd_ps(p, u, a2);
    b2 = _mm256_fmadd_ps(p, v, b2);
    p = load8(w3 + k);
    a3 = _mm256_fmadd_ps(p, u, a3);
    b3 = _mm256_fmadd_ps(p, v, b3);
  }
  _mm_storeu_ps(y0, sums4(a0, a1, a2, a3));
  _mm_storeu_ps(y1, sums4(b0, b1, b2, b3));
  for (; k < in; k++) {
    const float p[4] = {load1(w0 + k), load1(w1 + k), load1(w2 + k), load1(w3 + k)};
    for (int i = 0; i < 4; i++) {
      y0[i] += p[i] * x0[k];
      y1[i] += p[i] * x1[k];
    }
  }
}

// Sums of 2 weight rows against 4 rows of x: y[j * 4 + i] for row j of x and weight row i. Each sum runs over k as in
// `dot4`, so a row's result does not depend on how many rows there are.
template <typename W>
inline void dot2(const W* w, int64_t w_row, const float* x, int64_t in, float* y) {
  __m256 a0 = _mm256_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  const W *w0 = w, *w1 = w + w_row;
  const float *x0 = x, *x1 = x0 + in, *x2 = x1 + in, *x3 = x2 + in;
  int64_t k = 0;
  for (; k + 8 <= in; k += 8) {
    const __m256 p = load8(w0 + k), q = load8(w1 + k);
    __m256 v = _mm256_loadu_ps(x0 + k);
    a0 = _mm256_fmadd_ps(p, v, a0);
    b0 = _mm256_fmadd_ps(q, v, b0);
    v = _mm256_loadu_ps(x1 + k);
    a1 = _mm256_fmadd_ps(p, v, a1);
    b1 = _mm256_fmadd_ps(q, v, b1);
    v = _mm256_loadu_ps(x2 + k);
    a2 = _mm256_fmadd_ps(p, v, a2);
    b2 = _mm256_fmadd_ps(q, v, b2);
    v = _mm256_loadu_ps(x3 + k);
    a3 = _mm256_fmadd_ps(p, v, a3);
    b3 = _mm256_fmadd_ps(q, v, b3);
  }
  float first[4], second[4];
  _mm_storeu_ps(first, sums4(a0, a1, a2, a3));
  _mm_storeu_ps(second, sums4(b0, b1, b2, b3));
  for (; k < in; k++)
    for (int j = 0; j < 4; j++) {
      first[j] += load1(w0 + k) * x[j * in + k];
      second[j] += load1(w1 + k) * x[j * in + k];
    }
  for (int j = 0; j < 4; j++) y[j * 4] = first[j], y[j * 4 + 1] = second[j];
}

struct Rows {
  const float* x;
  const float* spread;  // the same for AVX-512, or null
  int64_t rows;
  const Weight& weight;
  const float* low;  // rows x rank: x * down^T
  const float* bias;
  Result result;
};

// Writes `count` outputs from n on for row q of x, with the low-rank change and the bias.
void finish(const Rows& job, int64_t q, int64_t n, int64_t count, float* sums) {
  if (job.weight.change) {
    const LowRank& c = *job.weight.change;
    const float *low = job.low + q * c.rank, *up = c.up + n * c.rank;
    __m256 d0 = _mm256_setzero_ps(), d1 = d0, d2 = d0, d3 = d0;
    int64_t k = 0;
    for (; count == 4 && k + 8 <= c.rank; k += 8) {
      const __m256 v = _mm256_loadu_ps(low + k);
      d0 = _mm256_fmadd_ps(v, _mm256_loadu_ps(up + k), d0);
      d1 = _mm256_fmadd_ps(v, _mm256_loadu_ps(up + c.rank + k), d1);
      d2 = _mm256_fmadd_ps(v, _mm256_loadu_ps(up + 2 * c.rank + k), d2);
      d3 = _mm256_fmadd_ps(v, _mm256_loadu_ps(up + 3 * c.rank + k), d3);
    }
    float dots[4];
    _mm_storeu_ps(dots, sums4(d0, d1, d2, d3));
    for (; k < c.rank; k++)
      for (int64_t i = 0; i < count; i++) dots[i] += up[i * c.rank + k] * low[k];
    for (int64_t i = 0; i < count; i++) sums[i] += c.scale * dots[i];
  }
  if (job.bias)
    for (int64_t i = 0; i < count; i++) sums[i] += job.bias[n + i];
  const int64_t at = q * job.result.row + n;
  if (job.result.type == Type::bf16) {
    auto* to = static_cast<uint16_t*>(job.result.data) + at;
    if (count == 4)
      store4(to, _mm_loadu_ps(sums));
    else
      for (int64_t i = 0; i < count; i++) to[i] = narrow(sums[i]);
  } else {
    memcpy(static_cast<float*>(job.result.data) + at, sums, static_cast<size_t>(count) * 4);
  }
}

template <typename W>
void linear_outputs(const Rows& job, int64_t begin, int64_t end) {
  const int64_t in = job.weight.in, out = job.weight.out;
  const bool dense = job.weight.stored == Stored::dense;
  const int64_t row = dense ? job.weight.dense.row : in;
  const Type type = dense ? job.weight.dense.type : Type::f32;
  float* unpacked = dense ? nullptr : scratch(4 * in);
  for (int64_t block = begin; block < end; block++) {
    // The last block starts early enough to have four weight rows: it repeats some outputs.
    const int64_t n = out < 4 ? 0 : (block * 4 + 4 <= out ? block * 4 : out - 4);
    const int64_t count = out < 4 ? out : 4;
    const W* w;
    if (dense) {
      w = static_cast<const W*>(job.weight.dense.data) + n * row;
    } else {
      for (int64_t i = 0; i < count; i++) weight_row(job.weight, n + i, 0, in, unpacked + i * in);
      w = reinterpret_cast<const W*>(unpacked);
    }
    float y[16];
    int64_t r = 0;
    if (job.spread && out >= 4) {
      for (; r < job.rows; r += 4) {
        const int64_t some = job.rows - r < 4 ? job.rows - r : 4;
        dots512(w, type, row, job.spread + r * spread512_row(in), some, in, r / 4, (job.rows + 3) / 4, y);
        for (int64_t j = 0; j < some; j++) finish(job, r + j, n, count, y + j * 4);
      }
      continue;
    }
    for (; out >= 4 && r + 4 <= job.rows; r += 4) {
      dot2(w, row, job.x + r * in, in, y);
      dot2(w + 2 * row, row, job.x + r * in, in, y + 2);
      for (int64_t j = 0; j < 4; j++) finish(job, r + j, n, count, y + j * 4);
    }
    for (; r < job.rows; r += 2) {
      const int64_t other = r + 1 < job.rows ? r + 1 : r;
      if (out >= 4) {
        dot4(w, row, job.x + r * in, job.x + other * in, in, y, y + 4);
      } else {
        for (int64_t i = 0; i < count; i++) {
          float y0[4], y1[4];
          dot4(w + i * row, 0, job.x + r * in, job.x + other * in, in, y0, y1);
          y[i] = y0[0], y[4 + i] = y1[0];
        }
      }
      finish(job, r, n, count, y);
      if (other > r) finish(job, other, n, count, y + 4);
    }
  }
  release(unpacked);
}

}  // namespace

void linear_rows(const float* x, int64_t rows, const Weight& weight, const float* bias, Result result, Parallel parallel) {
  float* low = nullptr;
  if (weight.change) {
    const int64_t rank = weight.change->rank;
    low = scratch(rows * rank);
    linear_rows(x, rows, weight.in, Matrix{weight.change->down, Type::f32, weight.in, 1}, rank, Result{low, Type::f32, rank, false},
                serial);
  }
  const bool narrow = weight.stored == Stored::dense && weight.dense.type == Type::bf16;
  float* spread = nullptr;
  if (has_avx512()) {
    spread = scratch(rows * spread512_row(weight.in));
    spread512(x, rows, weight.in, narrow ? Type::bf16 : Type::f32, spread);
  }
  Rows job{x, spread, rows, weight, low, bias, result};
  parallel(
      (weight.out + 3) / 4,
      [](void* context, int64_t begin, int64_t end) {
        const auto& job = *static_cast<Rows*>(context);
        if (job.weight.stored == Stored::dense && job.weight.dense.type == Type::bf16)
          linear_outputs<uint16_t>(job, begin, end);
        else
          linear_outputs<float>(job, begin, end);
      },
      &job);
  release(spread);
  release(low);
}

void linear_rows(const float* x, int64_t rows, int64_t in, Matrix weight, int64_t out, Result result, Parallel parallel) {
  Weight dense{};
  dense.out = out, dense.in = in, dense.dense = weight;
  linear_rows(x, rows, dense, nullptr, result, parallel);
}

#define LEVAIN_TYPED(type, call) \
  if (type == Type::bf16) {      \
    using T = uint16_t;          \
    call;                        \
  } else {                       \
    using T = float;             \
    call;                        \
  }
#define LEVAIN_IN(name) static_cast<const T*>(name)
#define LEVAIN_OUT(name) static_cast<T*>(name)

void rms_norm(const void* x, const void* weight, Type type, int64_t rows, int64_t width, float eps, void* out,
              float* inverse) {
  LEVAIN_TYPED(type, norm_rows(LEVAIN_IN(x), LEVAIN_IN(weight), rows, width, eps, LEVAIN_OUT(out), inverse))
}

void rms_norm_backward(const void* gradient, const void* x, const void* weight, Type type, int64_t rows, int64_t width,
                       const float* inverse, void* out) {
  LEVAIN_TYPED(type, norm_rows_backward(LEVAIN_IN(gradient), LEVAIN_IN(x), LEVAIN_IN(weight), rows, width, inverse,
                                        LEVAIN_OUT(out)))
}

void silu_mul(const void* gate, const void* up, Type type, int64_t count, void* out) {
  LEVAIN_TYPED(type, silu_mul_rows(LEVAIN_IN(gate), LEVAIN_IN(up), count, LEVAIN_OUT(out)))
}

void silu_mul_backward(const void* gradient, const void* gate, const void* up, Type type, int64_t count,
                       void* gate_gradient, void* up_gradient) {
  LEVAIN_TYPED(type, silu_mul_rows_backward(LEVAIN_IN(gradient), LEVAIN_IN(gate), LEVAIN_IN(up), count,
                                            LEVAIN_OUT(gate_gradient), LEVAIN_OUT(up_gradient)))
}

void rope(const void* x, Type type, int64_t rows, int64_t heads, int64_t size, const float* cos, const float* sin,
          const int64_t* positions, bool backward, void* out) {
  const float sign = backward ? -1.f : 1.f;
  LEVAIN_TYPED(type, rope_rows(LEVAIN_IN(x), rows, heads, size, cos, sin, positions, sign, LEVAIN_OUT(out)))
}

RowSummary summarize(const float* logits, int64_t count) {
  __m256 top = _mm256_set1_ps(-__builtin_inff());
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(logits + i));
  float largest = max8(top);
  for (; i < count; i++) largest = logits[i] > largest ? logits[i] : largest;
  int64_t best = 0;
  while (best + 1 < count && logits[best] != largest) best++;
  const __m256 shift = _mm256_set1_ps(largest);
  // Partial sums of 4,096 keep the error of a large vocabulary small.
  double sum = 0;
  for (i = 0; i < count;) {
    const int64_t stop = i + 4096 < count ? i + 4096 : count;
    __m256 part = _mm256_setzero_ps();
    for (; i + 8 <= stop; i += 8) part = _mm256_add_ps(part, exp8(_mm256_sub_ps(_mm256_loadu_ps(logits + i), shift)));
    sum += sum8(part);
    for (; i < stop; i++) sum += __builtin_expf(logits[i] - largest);
  }
  return {best, largest + static_cast<float>(__builtin_log(sum))};
}

void probabilities(float* logits, int64_t count, float log_sum) {
  const __m256 shift = _mm256_set1_ps(log_sum);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(logits + i, exp8(_mm256_sub_ps(_mm256_loadu_ps(logits + i), shift)));
  for (; i < count; i++) logits[i] = __builtin_expf(logits[i] - log_sum);
}

}  // namespace levain
