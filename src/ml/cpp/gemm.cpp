// Matrix products for CPUs with AVX2 or AVX-512 and without AMX: bf16 is widened to f32 while it is packed, so no f32 copy
// of an activation or a weight ever reaches memory, and sums stay in f32.
#include "avx512.h"
#include "simd.h"

#include <cstdlib>

namespace levain {

namespace {

constexpr int64_t kRows = 6;      // of a register tile: 6 x 16 sums in 12 of 16 registers
constexpr int64_t kColumns = 16;
constexpr int64_t kDepth = 320;   // of one pass: a 16-column panel (20 KB) stays in the first cache
constexpr int64_t kDepth512 = 256;  // two panels (32 KB) of a larger one
constexpr int64_t kBlockBytes = 288 * 1024;  // packed rows of a: most of the second cache

// Widens rows [0, count) of eight k's each into slivers: to[k * 6 + i] = a(i, k).
template <typename T>
void pack_rows(const T* a, int64_t row, int64_t column, int64_t count, int64_t depth, float* to) {
  int64_t k = 0;
  if (column == 1) {
    const T* r[kRows];
    for (int64_t i = 0; i < kRows; i++) r[i] = a + (i < count ? i : 0) * row;
    // Eight lanes are stored at a distance of six; the two spare ones are overwritten by the next store.
    for (; k + 9 <= depth; k += 8) {
      __m256 v[8];
      for (int64_t i = 0; i < kRows; i++) v[i] = i < count ? load8(r[i] + k) : _mm256_setzero_ps();
      v[6] = v[7] = _mm256_setzero_ps();
      transpose8(v);
      for (int j = 0; j < 8; j++) _mm256_storeu_ps(to + (k + j) * kRows, v[j]);
    }
  } else if (row == 1 && count == kRows) {
    for (; k + 1 < depth; k++) {  // the two elements past the sixth exist: the next line follows
      _mm256_storeu_ps(to + k * kRows, load8(a + k * column));
    }
  }
  for (; k < depth; k++)
    for (int64_t i = 0; i < kRows; i++)
      to[k * kRows + i] = i < count ? load1(a + i * row + k * column) : 0.f;
}

// One panel: to[k * 16 + j] = b(k, j) for `count` columns, zeros after them.
template <typename T>
void pack_panel(const T* b, int64_t row, int64_t column, int64_t depth, int64_t count, float* to) {
  int64_t k = 0;
  if (column == 1 && count == kColumns) {
    for (; k < depth; k++) {
      _mm256_storeu_ps(to + k * 16, load8(b + k * row));
      _mm256_storeu_ps(to + k * 16 + 8, load8(b + k * row + 8));
    }
  } else if (row == 1 && count == kColumns) {
    for (; k + 8 <= depth; k += 8) {
      for (int64_t half = 0; half < 16; half += 8) {
        __m256 v[8];
        for (int j = 0; j < 8; j++) v[j] = load8(b + (half + j) * column + k);
        transpose8(v);
        for (int j = 0; j < 8; j++) _mm256_storeu_ps(to + (k + j) * 16 + half, v[j]);
      }
    }
  }
  for (; k < depth; k++)
    for (int64_t j = 0; j < kColumns; j++) to[k * 16 + j] = j < count ? load1(b + k * row + j * column) : 0.f;
}

// sums (6 x 16) += a (k x 6) * b (k x 16). Every sum is a variable of its own: compilers spill an array of them.
inline void tile(int64_t depth, const float* a, const float* b, float* sums, bool first) {
#define LEVAIN_ROWS(apply) apply(0) apply(1) apply(2) apply(3) apply(4) apply(5)
#define LEVAIN_ZERO(i) __m256 c##i = _mm256_setzero_ps(), d##i = _mm256_setzero_ps();
  LEVAIN_ROWS(LEVAIN_ZERO)
#undef LEVAIN_ZERO
  for (int64_t k = 0; k < depth; k++) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#define LEVAIN_STEP(i)                                  \
  {                                                     \
    const __m256 x = _mm256_broadcast_ss(a + i);        \
    c##i = _mm256_fmadd_ps(x, b0, c##i);                \
    d##i = _mm256_fmadd_ps(x, b1, d##i);                \
  }
    LEVAIN_ROWS(LEVAIN_STEP)
#undef LEVAIN_STEP
    b += 16;
    a += kRows;
  }
#define LEVAIN_STORE(i)                                                               \
  _mm256_store_ps(sums + i * 16, first ? c##i : _mm256_add_ps(c##i, _mm256_load_ps(sums + i * 16))); \
  _mm256_store_ps(sums + i * 16 + 8, first ? d##i : _mm256_add_ps(d##i, _mm256_load_ps(sums + i * 16 + 8)));
  LEVAIN_ROWS(LEVAIN_STORE)
#undef LEVAIN_STORE
#undef LEVAIN_ROWS
}

// The same with a read where it lies.
inline void tile_direct(int64_t depth, const float* a, int64_t row, int64_t column, const float* b, float* sums) {
#define LEVAIN_ROWS(apply) apply(0) apply(1) apply(2) apply(3) apply(4) apply(5)
#define LEVAIN_ZERO(i) __m256 c##i = _mm256_setzero_ps(), d##i = _mm256_setzero_ps();
  LEVAIN_ROWS(LEVAIN_ZERO)
#undef LEVAIN_ZERO
  const float* a3 = a + 3 * row;
  for (int64_t k = 0; k < depth; k++) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#define LEVAIN_STEP(i)                                                                  \
  {                                                                                     \
    const __m256 x = _mm256_broadcast_ss(i < 3 ? a + (i % 3) * row : a3 + (i % 3) * row); \
    c##i = _mm256_fmadd_ps(x, b0, c##i);                                                \
    d##i = _mm256_fmadd_ps(x, b1, d##i);                                                \
  }
    LEVAIN_ROWS(LEVAIN_STEP)
#undef LEVAIN_STEP
    b += 16;
    a += column;
    a3 += column;
  }
#define LEVAIN_STORE(i)                \
  _mm256_store_ps(sums + i * 16, c##i); \
  _mm256_store_ps(sums + i * 16 + 8, d##i);
  LEVAIN_ROWS(LEVAIN_STORE)
#undef LEVAIN_STORE
#undef LEVAIN_ROWS
}

void store_row(const float* sums, int64_t count, void* to, Type type, bool add) {
  if (type == Type::bf16) {
    auto* out = static_cast<uint16_t*>(to);
    if (count == 16) {
      store8(out, _mm256_load_ps(sums));
      store8(out + 8, _mm256_load_ps(sums + 8));
    } else {
      for (int64_t j = 0; j < count; j++) out[j] = narrow(sums[j]);
    }
  } else {
    auto* out = static_cast<float*>(to);
    if (count == 16) {
      __m256 low = _mm256_load_ps(sums), high = _mm256_load_ps(sums + 8);
      if (add) {
        low = _mm256_add_ps(low, _mm256_loadu_ps(out));
        high = _mm256_add_ps(high, _mm256_loadu_ps(out + 8));
      }
      _mm256_storeu_ps(out, low);
      _mm256_storeu_ps(out + 8, high);
      return;
    }
    for (int64_t j = 0; j < count; j++) out[j] = add ? out[j] + sums[j] : sums[j];
  }
}

struct Product {
  const Part* parts;
  int64_t part_count, depth, rows;
  const float* b;
  const Share* shares;
  int64_t share_count, first_panel, last_panel;
};

// Six rows of all parts, side by side.
void pack_sliver(const Product& p, int64_t row, float* to) {
  const int64_t count = p.rows - row < kRows ? p.rows - row : kRows;
  for (int64_t i = 0; i < p.part_count; i++) {
    const Matrix& a = p.parts[i].a;
    if (a.type == Type::bf16)
      pack_rows(static_cast<const uint16_t*>(a.data) + row * a.row, a.row, a.column, count, p.parts[i].depth, to);
    else
      pack_rows(static_cast<const float*>(a.data) + row * a.row, a.row, a.column, count, p.parts[i].depth, to);
    to += p.parts[i].depth * kRows;
  }
}

// Slivers [begin, end) of the rows against the panels of the product.
void run_rows(const Product& p, int64_t begin, int64_t end) {
  const int64_t depth = p.depth;
  int64_t block = kBlockBytes / (4 * depth * kRows);
  block = block < 4 ? 4 : block;
  const bool wide = has_avx512();
  const int64_t deepest = wide ? kDepth512 : kDepth;
  const int64_t passes = (depth + deepest - 1) / deepest;
  const int64_t step = (depth + passes - 1) / passes;
  const int64_t blocks = (end - begin + block - 1) / block;
  if (blocks == 0) return;
  block = (end - begin + blocks - 1) / blocks;
  constexpr int64_t kTile = kRows * 16;
  float* a = scratch(block * kRows * depth + 16);
  float* sums = scratch(2 * block * kTile);  // of one panel, or of two side by side
  for (int64_t from = begin; from < end; from += block) {
    const int64_t slivers = end - from < block ? end - from : block;
    for (int64_t s = 0; s < slivers; s++) pack_sliver(p, (from + s) * kRows, a + s * kRows * depth);
    const Share* share = p.shares;
    int64_t share_panel = 0;  // the first panel of the share
    for (int64_t panel = p.first_panel; panel < p.last_panel;) {
      const int64_t panels = wide && panel + 1 < p.last_panel ? 2 : 1;
      for (int64_t k = 0; k < depth; k += step) {
        const int64_t length = depth - k < step ? depth - k : step;
        const float* b = p.b + panel * 16 * depth + k * 16;
        const float* b_next = b + 16 * depth;
        for (int64_t s = 0; s < slivers;) {
          const float* at = a + s * kRows * depth + k * kRows;
          float *here = sums + s * kTile, *beside = here + block * kTile;
          if (panels == 2 && s + 1 < slivers) {
            tile512(length, at, at + kRows * depth, b, b_next, {{{here, beside}, {here + kTile, beside + kTile}}}, k == 0);
            s += 2;
            continue;
          }
          tile(length, at, b, here, k == 0);
          if (panels == 2) tile(length, at, b_next, beside, k == 0);
          s++;
        }
      }
      for (int64_t n = 0; n < panels; n++, panel++) {
        while (panel - share_panel >= (share->columns + 15) / 16) share_panel += (share++->columns + 15) / 16;
        const Result& result = share->result;
        const int64_t column = (panel - share_panel) * 16;
        const int64_t columns = share->columns - column < 16 ? share->columns - column : 16;
        const int64_t size = result.type == Type::bf16 ? 2 : 4;
        const int64_t rows = p.rows - from * kRows < slivers * kRows ? p.rows - from * kRows : slivers * kRows;
        char* out = static_cast<char*>(result.data) + (from * kRows * result.row + column) * size;
        for (int64_t i = 0; i < rows; i++)
          store_row(sums + n * block * kTile + i * 16, columns, out + i * result.row * size, result.type, result.add);
      }
    }
  }
  release(sums);
  release(a);
}

struct Few {
  const float* left;
  int64_t few;
  Matrix right;
  int64_t depth, columns;
  float factor;
  float* result;
};

// sums (4 x 16) += left (4 x depth) * right (depth x 16)
template <typename T>
inline void few_tile(const float* left, int64_t left_row, const T* right, int64_t right_row, int64_t depth,
                     float* sums) {
  __m256 c0 = _mm256_load_ps(sums), c1 = _mm256_load_ps(sums + 16), c2 = _mm256_load_ps(sums + 32),
         c3 = _mm256_load_ps(sums + 48);
  __m256 d0 = _mm256_load_ps(sums + 8), d1 = _mm256_load_ps(sums + 24), d2 = _mm256_load_ps(sums + 40),
         d3 = _mm256_load_ps(sums + 56);
  const float *l0 = left, *l1 = l0 + left_row, *l2 = l1 + left_row, *l3 = l2 + left_row;
  for (int64_t k = 0; k < depth; k++, right += right_row) {
    const __m256 b0 = load8(right), b1 = load8(right + 8);
    __m256 x = _mm256_broadcast_ss(l0 + k);
    c0 = _mm256_fmadd_ps(x, b0, c0);
    d0 = _mm256_fmadd_ps(x, b1, d0);
    x = _mm256_broadcast_ss(l1 + k);
    c1 = _mm256_fmadd_ps(x, b0, c1);
    d1 = _mm256_fmadd_ps(x, b1, d1);
    x = _mm256_broadcast_ss(l2 + k);
    c2 = _mm256_fmadd_ps(x, b0, c2);
    d2 = _mm256_fmadd_ps(x, b1, d2);
    x = _mm256_broadcast_ss(l3 + k);
    c3 = _mm256_fmadd_ps(x, b0, c3);
    d3 = _mm256_fmadd_ps(x, b1, d3);
  }
  _mm256_store_ps(sums, c0);
  _mm256_store_ps(sums + 16, c1);
  _mm256_store_ps(sums + 32, c2);
  _mm256_store_ps(sums + 48, c3);
  _mm256_store_ps(sums + 8, d0);
  _mm256_store_ps(sums + 24, d1);
  _mm256_store_ps(sums + 40, d2);
  _mm256_store_ps(sums + 56, d3);
}

// Column blocks [begin, end) of sixteen; 64 rows of `right` at a time, which stay in the second cache.
template <typename T>
void run_few(const Few& job, int64_t begin, int64_t end) {
  const int64_t quads = (job.few + 3) / 4, blocks = end - begin;
  float* sums = scratch(blocks * quads * 64);
  float* padded = scratch(quads * 4 * 64 + 64 * 16);
  float* edge = padded + quads * 4 * 64;
  memset(sums, 0, static_cast<size_t>(blocks * quads * 64) * 4);
  memset(padded, 0, static_cast<size_t>(quads * 4 * 64) * 4);
  const T* right = static_cast<const T*>(job.right.data);
  for (int64_t k = 0; k < job.depth; k += 64) {
    const int64_t depth = job.depth - k < 64 ? job.depth - k : 64;
    for (int64_t i = 0; i < job.few; i++) memcpy(padded + i * 64, job.left + i * job.depth + k, depth * 4);
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t column = (begin + block) * 16;
      const T* b = right + k * job.right.row + column;
      float* to = sums + block * quads * 64;
      if (column + 16 <= job.columns) {
        for (int64_t q = 0; q < quads; q++) few_tile(padded + q * 256, 64, b, job.right.row, depth, to + q * 64);
      } else {
        pack_panel(b, job.right.row, 1, depth, job.columns - column, edge);
        for (int64_t q = 0; q < quads; q++) few_tile(padded + q * 256, 64, edge, 16, depth, to + q * 64);
      }
    }
  }
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t i = 0; i < job.few; i++)
      for (int64_t j = 0; j < 16 && (begin + block) * 16 + j < job.columns; j++)
        job.result[i * job.columns + (begin + block) * 16 + j] =
            job.factor * sums[(block * quads + i / 4) * 64 + i % 4 * 16 + j];
  release(padded);
  release(sums);
}

}  // namespace

void gemm_few(const float* left, int64_t few, Matrix right, int64_t depth, int64_t columns, float factor, float* result,
              Parallel parallel) {
  Few job{left, few, right, depth, columns, factor, result};
  parallel(
      (columns + 15) / 16,
      [](void* context, int64_t begin, int64_t end) {
        const Few& job = *static_cast<Few*>(context);
        if (job.right.type == Type::bf16)
          run_few<uint16_t>(job, begin, end);
        else
          run_few<float>(job, begin, end);
      },
      &job);
}

void serial(int64_t count, Body body, void* context) { body(context, 0, count); }

float* scratch(int64_t floats) {
  void* data = nullptr;
  if (posix_memalign(&data, 64, static_cast<size_t>(floats > 0 ? floats : 1) * sizeof(float)) != 0) abort();
  return static_cast<float*>(data);
}

void release(float* buffer) { free(buffer); }

void pack(Matrix b, int64_t depth, int64_t first, int64_t count, float* to) {
  for (int64_t j = 0; j < count; j += 16) {
    const int64_t columns = count - j < 16 ? count - j : 16;
    float* panel = to + j * depth;
    if (b.type == Type::bf16)
      pack_panel(static_cast<const uint16_t*>(b.data) + (first + j) * b.column, b.row, b.column, depth, columns, panel);
    else
      pack_panel(static_cast<const float*>(b.data) + (first + j) * b.column, b.row, b.column, depth, columns, panel);
  }
}

void gemm(const Part* parts, int64_t part_count, int64_t rows, const float* b, const Share* shares,
          int64_t share_count, Parallel parallel) {
  int64_t depth = 0, panels = 0;
  for (int64_t i = 0; i < part_count; i++) depth += parts[i].depth;
  for (int64_t i = 0; i < share_count; i++) panels += (shares[i].columns + 15) / 16;
  const int64_t slivers = (rows + kRows - 1) / kRows;
  if (depth == 0 || panels == 0 || slivers == 0) return;
  Product product{parts, part_count, depth, rows, b, shares, share_count, 0, panels};
  if (slivers >= 16 || slivers >= panels) {
    parallel(
        slivers,
        [](void* context, int64_t begin, int64_t end) { run_rows(*static_cast<Product*>(context), begin, end); },
        &product);
  } else {
    parallel(
        panels,
        [](void* context, int64_t begin, int64_t end) {
          Product part = *static_cast<Product*>(context);
          part.first_panel = begin;
          part.last_panel = end;
          run_rows(part, 0, (part.rows + kRows - 1) / kRows);
        },
        &product);
  }
}

void gemm(Matrix a, int64_t rows, Matrix b, int64_t depth, int64_t columns, Result result, Parallel parallel) {
  struct Job {
    Matrix b;
    int64_t depth, columns;
    float* to;
  } job{b, depth, columns, scratch(packed_size(depth, columns))};
  parallel(
      (columns + 15) / 16,
      [](void* context, int64_t begin, int64_t end) {
        auto& job = *static_cast<Job*>(context);
        const int64_t last = end * 16 < job.columns ? end * 16 : job.columns;
        pack(job.b, job.depth, begin * 16, last - begin * 16, job.to + begin * 16 * job.depth);
      },
      &job);
  const Part part{a, depth};
  const Share share{result, columns};
  gemm(&part, 1, rows, job.to, &share, 1, parallel);
  release(job.to);
}

void gemm_direct(const float* a, int64_t row, int64_t column, int64_t rows, Packed b, Result result) {
  constexpr int64_t kTile = kRows * 16;
  alignas(64) float sums[4 * kTile];
  const int64_t size = result.type == Type::bf16 ? 2 : 4;
  const auto store = [&](const float* from, int64_t first, int64_t j) {
    const int64_t columns = b.columns - j < 16 ? b.columns - j : 16;
    for (int64_t r = 0; r < kRows && first + r < rows; r++)
      store_row(from + r * 16, columns, static_cast<char*>(result.data) + ((first + r) * result.row + j) * size, result.type,
                result.add);
  };
  for (int64_t j = 0; j < b.columns;) {
    const float* panel = b.data + j / 16 * b.panel;
    const bool pair = has_avx512() && j + 16 < b.columns;
    for (int64_t i = 0; i < rows;) {
      const float* at = a + i * row;
      // The twelve rows that a wide tile reads are there up to the next multiple of six.
      if (pair && i + kRows < rows) {
        tile512_direct(b.depth, at, row, column, panel, panel + b.panel,
                       {{{sums, sums + kTile}, {sums + 2 * kTile, sums + 3 * kTile}}});
        for (int64_t n = 0; n < 4; n++) store(sums + n * kTile, i + n / 2 * kRows, j + n % 2 * 16);
        i += 2 * kRows;
        continue;
      }
      for (int64_t n = 0; n < (pair ? 2 : 1); n++) {
        tile_direct(b.depth, at, row, column, panel + n * b.panel, sums);
        store(sums, i, j + n * 16);
      }
      i += kRows;
    }
    j += pair ? 32 : 16;
  }
}

namespace {

struct WeightJob {
  Matrix weight;
  int64_t out, in;
  const LowRank* change;
  int64_t first, depth;  // of the packed depth, on the way back
  float* to;

  // `count` rows from `row`, widened and changed.
  void rows(int64_t row, int64_t count, float* rows) const {
    for (int64_t i = 0; i < count; i++) {
      widen(weight, (row + i) * weight.row, in, rows + i * in);
      if (change)
        add_low_rank(change->down, change->up + (row + i) * change->rank, change->rank, change->scale, in,
                     rows + i * in);
    }
  }
};

}  // namespace

void pack_weight(Matrix weight, int64_t out, int64_t in, const LowRank* change, float* to, Parallel parallel) {
  WeightJob job{weight, out, in, change, 0, 0, to};
  parallel(
      (out + 15) / 16,
      [](void* context, int64_t begin, int64_t end) {
        const auto& job = *static_cast<WeightJob*>(context);
        if (!job.change) {
          const int64_t last = end * 16 < job.out ? end * 16 : job.out;
          pack(Matrix{job.weight.data, job.weight.type, 1, job.weight.row}, job.in, begin * 16, last - begin * 16,
               job.to + begin * 16 * job.in);
          return;
        }
        float* rows = scratch(16 * job.in);
        for (int64_t panel = begin; panel < end; panel++) {
          const int64_t count = job.out - panel * 16 < 16 ? job.out - panel * 16 : 16;
          job.rows(panel * 16, count, rows);
          pack_panel(rows, 1, job.in, job.in, count, job.to + panel * 16 * job.in);
        }
        release(rows);
      },
      &job);
}

void pack_weight_back(Matrix weight, int64_t out, int64_t in, const LowRank* change, int64_t first, int64_t depth,
                      float* to, Parallel parallel) {
  WeightJob job{weight, out, in, change, first, depth, to};
  parallel(
      out,
      [](void* context, int64_t begin, int64_t end) {
        const auto& job = *static_cast<WeightJob*>(context);
        float* row = scratch(job.in);
        for (int64_t k = begin; k < end; k++) {
          job.rows(k, 1, row);
          // Sixteen columns of the row go to each panel.
          for (int64_t j = 0; j < job.in; j += 16) {
            float* at = job.to + j * job.depth + (job.first + k) * 16;
            if (job.in - j >= 16) {
              _mm256_storeu_ps(at, _mm256_loadu_ps(row + j));
              _mm256_storeu_ps(at + 8, _mm256_loadu_ps(row + j + 8));
            } else {
              for (int64_t c = 0; c < 16; c++) at[c] = c < job.in - j ? row[j + c] : 0.f;
            }
          }
        }
        release(row);
      },
      &job);
}

}  // namespace levain
