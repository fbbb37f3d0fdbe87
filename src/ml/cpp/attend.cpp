// Causal attention of one head over one segment, forward and backward, in blocks of query rows: the scores of a block
// stay in the second cache and are computed again in the backward pass, so nothing of size length x length is kept.
#include "simd.h"

namespace levain {

namespace {

constexpr int64_t kBlock = 60;  // query rows at a time: a multiple of the six of a register tile

const void* at(const void* data, Type type, int64_t elements) {
  return static_cast<const char*>(data) + elements * (type == Type::bf16 ? 2 : 4);
}
void* at(void* data, Type type, int64_t elements) {
  return static_cast<char*>(data) + elements * (type == Type::bf16 ? 2 : 4);
}

// Rows [first, first + count) of one head as f32, zeros up to kBlock.
void load_rows(const void* data, Type type, int64_t row, int64_t first, int64_t count, int64_t size, float* to) {
  for (int64_t i = 0; i < count; i++) widen(Matrix{data, type, row, 1}, (first + i) * row, size, to + i * size);
  for (int64_t i = count * size; i < kBlock * size; i++) to[i] = 0.f;
}

// scores (of one row) <- exp(scale * scores - log_sum) for the first `seen`, 0 after; with no log_sum given it is found.
float soften(float* scores, int64_t seen, int64_t width, float scale, const float* log_sum) {
  float shift;
  int64_t j = 0;
  if (log_sum) {
    shift = *log_sum;
  } else {
    __m256 top = _mm256_set1_ps(-__builtin_inff());
    for (; j + 8 <= seen; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(scores + j));
    float largest = max8(top);
    for (; j < seen; j++) largest = scores[j] > largest ? scores[j] : largest;
    shift = largest * scale;
  }
  const __m256 s = _mm256_set1_ps(scale), m = _mm256_set1_ps(shift);
  __m256 sums = _mm256_setzero_ps();
  float sum = 0.f;
  for (j = 0; j + 8 <= seen; j += 8) {
    __m256 e = exp8(_mm256_fmsub_ps(_mm256_loadu_ps(scores + j), s, m));
    sums = _mm256_add_ps(sums, e);
    _mm256_storeu_ps(scores + j, e);
  }
  for (; j < seen; j++) {
    scores[j] = __builtin_expf(scores[j] * scale - shift);
    sum += scores[j];
  }
  for (; j < width; j++) scores[j] = 0.f;
  if (log_sum) return shift;
  sum += sum8(sums);
  const float inverse = 1.f / sum;
  const __m256 v = _mm256_set1_ps(inverse);
  for (j = 0; j + 8 <= seen; j += 8) _mm256_storeu_ps(scores + j, _mm256_mul_ps(v, _mm256_loadu_ps(scores + j)));
  for (; j < seen; j++) scores[j] *= inverse;
  return shift + __builtin_logf(sum);
}

// One new token against a cache: two passes over the keys and values where they lie.
template <typename T>
float attend_one(const T* q, const T* k, const T* v, int64_t keys, int64_t row, int64_t size, float scale, T* out) {
  float* scores = scratch(keys + 2 * size);
  float *wide = scores + keys, *sum = wide + size;
  for (int64_t i = 0; i < size; i++) wide[i] = load1(q + i), sum[i] = 0.f;
  for (int64_t j = 0; j < keys; j++) {
    const T* key = k + j * row;
    __m256 dots = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) dots = _mm256_fmadd_ps(_mm256_loadu_ps(wide + i), load8(key + i), dots);
    float dot = sum8(dots);
    for (; i < size; i++) dot += wide[i] * load1(key + i);
    scores[j] = dot;
  }
  const float log_sum = soften(scores, keys, keys, scale, nullptr);
  for (int64_t j = 0; j < keys; j++) {
    const T* value = v + j * row;
    const __m256 p = _mm256_set1_ps(scores[j]);
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
      _mm256_storeu_ps(sum + i, _mm256_fmadd_ps(p, load8(value + i), _mm256_loadu_ps(sum + i)));
    for (; i < size; i++) sum[i] += scores[j] * load1(value + i);
  }
  for (int64_t i = 0; i < size; i++) store1(out + i, sum[i]);
  release(scores);
  return log_sum;
}

int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }
// The distance of two rows of scores: rows at a multiple of 4 KB would fight for the same lines of the first cache.
int64_t apart(int64_t width) { return width + 16; }

}  // namespace

void attend(const Segment& segment, const Heads& heads, int64_t head, void* out, int64_t out_row, float* log_sums) {
  const int64_t size = heads.size, keys = segment.keys, group = head / heads.group;
  const void* q = at(segment.q, heads.type, head * size);
  const void* k = at(segment.k, heads.type, group * size);
  const void* v = at(segment.v, heads.type, group * size);
  out = at(out, heads.type, head * size);
  if (segment.queries == 1) {
    float sum;
    if (heads.type == Type::bf16)
      sum = attend_one(static_cast<const uint16_t*>(q), static_cast<const uint16_t*>(k),
                       static_cast<const uint16_t*>(v), keys, segment.kv_row, size, heads.scale,
                       static_cast<uint16_t*>(out));
    else
      sum = attend_one(static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v), keys,
                       segment.kv_row, size, heads.scale, static_cast<float*>(out));
    if (log_sums) log_sums[0] = sum;
    return;
  }
  const int64_t past = keys - segment.queries, width = up16(keys), wide = up16(size);
  const int64_t far = apart(width);
  float* buffer = scratch(size * width + wide * keys + kBlock * (size + far) + 16);
  float *k_packed = buffer, *v_packed = k_packed + size * width, *rows = v_packed + wide * keys,
        *scores = rows + kBlock * size;
  pack(Matrix{k, heads.type, 1, segment.kv_row}, size, 0, keys, k_packed);
  pack(Matrix{v, heads.type, segment.kv_row, 1}, keys, 0, size, v_packed);
  for (int64_t first = 0; first < segment.queries; first += kBlock) {
    const int64_t count = segment.queries - first < kBlock ? segment.queries - first : kBlock;
    const int64_t seen = past + first + count;
    load_rows(q, heads.type, segment.q_row, first, count, size, rows);
    gemm_direct(rows, size, 1, count, Packed{k_packed, size, up16(seen), 16 * size}, Result{scores, Type::f32, far, false});
    for (int64_t i = 0; i < count; i++) {
      const float sum = soften(scores + i * far, past + first + i + 1, seen, heads.scale, nullptr);
      if (log_sums) log_sums[first + i] = sum;
    }
    gemm_direct(scores, far, 1, count, Packed{v_packed, seen, size, 16 * keys},
                Result{at(out, heads.type, first * out_row), heads.type, out_row, false});
  }
  release(buffer);
}

void attend_backward(const Segment& segment, const Heads& heads, int64_t head, const void* out, const void* gradient,
                     int64_t out_row, const float* log_sums, void* dq, float* dk, float* dv) {
  const int64_t size = heads.size, keys = segment.keys, group = head / heads.group;
  const int64_t past = keys - segment.queries, width = up16(keys), wide = up16(size);
  const void* q = at(segment.q, heads.type, head * size);
  const void* k = at(segment.k, heads.type, group * size);
  const void* v = at(segment.v, heads.type, group * size);
  out = at(out, heads.type, head * size);
  gradient = at(gradient, heads.type, head * size);
  dq = at(dq, heads.type, head * size);
  const int64_t far = apart(width);
  float* buffer = scratch(2 * size * width + wide * keys + kBlock * (3 * size + 2 * wide + 2 * far) + 16);
  float *k_packed = buffer, *v_packed = k_packed + size * width, *k_rows = v_packed + size * width,
        *q_wide = k_rows + wide * keys, *g_wide = q_wide + kBlock * size, *o_wide = g_wide + kBlock * size,
        *q_packed = o_wide + kBlock * size, *g_packed = q_packed + kBlock * wide, *scores = g_packed + kBlock * wide,
        *slopes = scores + kBlock * far;
  pack(Matrix{k, heads.type, 1, segment.kv_row}, size, 0, keys, k_packed);
  pack(Matrix{v, heads.type, 1, segment.kv_row}, size, 0, keys, v_packed);
  pack(Matrix{k, heads.type, segment.kv_row, 1}, keys, 0, size, k_rows);
  memset(dk, 0, static_cast<size_t>(keys * size) * 4);
  memset(dv, 0, static_cast<size_t>(keys * size) * 4);
  for (int64_t first = 0; first < segment.queries; first += kBlock) {
    const int64_t count = segment.queries - first < kBlock ? segment.queries - first : kBlock;
    const int64_t seen = past + first + count;
    load_rows(q, heads.type, segment.q_row, first, count, size, q_wide);
    load_rows(gradient, heads.type, out_row, first, count, size, g_wide);
    load_rows(out, heads.type, out_row, first, count, size, o_wide);
    gemm_direct(q_wide, size, 1, count, Packed{k_packed, size, up16(seen), 16 * size},
                Result{scores, Type::f32, far, false});
    gemm_direct(g_wide, size, 1, count, Packed{v_packed, size, up16(seen), 16 * size},
                Result{slopes, Type::f32, far, false});
    for (int64_t i = 0; i < count; i++) {
      float* p = scores + i * far;
      float* d = slopes + i * far;
      const int64_t visible = past + first + i + 1;
      soften(p, visible, up16(seen), heads.scale, &log_sums[first + i]);
      __m256 dots = _mm256_setzero_ps();
      float delta = 0.f;
      int64_t j = 0;
      for (; j + 8 <= size; j += 8)
        dots = _mm256_fmadd_ps(_mm256_loadu_ps(g_wide + i * size + j), _mm256_loadu_ps(o_wide + i * size + j), dots);
      for (; j < size; j++) delta += g_wide[i * size + j] * o_wide[i * size + j];
      delta += sum8(dots);
      // The gradient of the scores: scale * p * (dp - delta); p is 0 beyond the diagonal.
      const __m256 shift = _mm256_set1_ps(delta), s = _mm256_set1_ps(heads.scale);
      for (j = 0; j + 8 <= visible; j += 8)
        _mm256_storeu_ps(d + j, _mm256_mul_ps(_mm256_mul_ps(s, _mm256_loadu_ps(p + j)),
                                              _mm256_sub_ps(_mm256_loadu_ps(d + j), shift)));
      for (; j < visible; j++) d[j] = heads.scale * p[j] * (d[j] - delta);
      for (; j < up16(seen); j++) d[j] = 0.f;
    }
    // dv += p^T gradient, dk += d^T q, dq = d k
    pack(Matrix{g_wide, Type::f32, size, 1}, count, 0, size, g_packed);
    pack(Matrix{q_wide, Type::f32, size, 1}, count, 0, size, q_packed);
    gemm_direct(scores, 1, far, seen, Packed{g_packed, count, size, 16 * count}, Result{dv, Type::f32, size, true});
    gemm_direct(slopes, 1, far, seen, Packed{q_packed, count, size, 16 * count}, Result{dk, Type::f32, size, true});
    gemm_direct(slopes, far, 1, count, Packed{k_rows, seen, size, 16 * keys},
                Result{at(dq, heads.type, first * segment.q_row), heads.type, segment.q_row, false});
  }
  release(buffer);
}

void reduce_heads(const float* parts, int64_t rows, const Heads& heads, int64_t begin, int64_t end, void* out) {
  const int64_t size = heads.size, groups = heads.query / heads.group;
  for (int64_t row = begin; row < end; row++)
    for (int64_t g = 0; g < groups; g++)
      for (int64_t i = 0; i < size; i++) {
        float sum = 0.f;
        for (int64_t h = g * heads.group; h < (g + 1) * heads.group; h++) sum += parts[(h * rows + row) * size + i];
        if (heads.type == Type::bf16)
          static_cast<uint16_t*>(out)[(row * groups + g) * size + i] = narrow(sum);
        else
          static_cast<float*>(out)[(row * groups + g) * size + i] = sum;
      }
}

}  // namespace levain
