// Matrix products for CPUs with AVX2 or AVX-512 and without AMX: what is multiplied is widened to f32 while it is packed, the one
// factor once, the other panel by panel in the first cache just before its use; sums stay in f32.
#include "avx512.h"
#include "panel.h"

#include <atomic>
#include <cstdlib>

namespace levain {

namespace {

constexpr int64_t kRows = 6;      // of a register tile: 6 x 16 sums in 12 of 16 registers
constexpr int64_t kDepth = kPass;  // of one pass: two panels (24 KB) and a pair of slivers (9 KB) stay in the first cache
constexpr int64_t kPassBytes = 1 << 20;    // of one pass over the rows of a block: half of the second cache
constexpr int64_t kBlockBytes = 32 << 20;  // of all passes over them
constexpr int64_t kSumsBytes = 1 << 20;    // of the columns that go through all passes together
constexpr int64_t kTile = kRows * 16;

// Widens rows [0, count) of eight k's each into slivers: to[k * 6 + i] = a(i, k).
template <typename T>
void pack_rows(const T* a, int64_t row, int64_t column, int64_t count, int64_t depth, float* to) {
  int64_t k = 0;
  if (column == 1) {
    const T* r[kRows];
    for (int64_t i = 0; i < kRows; i++) r[i] = a + (i < count ? i : 0) * row;
    // Eight lanes are stored at a distance of six; the two spare ones are overwritten by the next store, which the last lacks.
    const __m256i six = _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0);
    for (; k + 8 <= depth; k += 8) {
      __m256 v[8];
      for (int64_t i = 0; i < kRows; i++) v[i] = i < count ? load8(r[i] + k) : _mm256_setzero_ps();
      v[6] = v[7] = _mm256_setzero_ps();
      transpose8(v);
      for (int j = 0; j < 7; j++) _mm256_storeu_ps(to + (k + j) * kRows, v[j]);
      _mm256_maskstore_ps(to + (k + 7) * kRows, six, v[7]);
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

// A product, and the rows of it that are on the way.
struct Product {
  const Part* parts;
  int64_t part_count, rows;
  const Source* sources;
  const Share* shares;
  int64_t share_count, panels;
  int64_t first, slivers;  // slivers of six rows: of this block
  float* a;                // packed: pass by pass, in each sliver by sliver
  std::atomic<int64_t> next;  // the first panel that no thread has taken yet
};

// A piece of the depth that goes through the kernels at once.
struct Pass {
  int64_t part, k, length;  // of this part
  int64_t before;           // the depth of all passes before it
};

// The passes over a depth are even up to a multiple of 32, which packed weights like; those of one part come after those of another.
template <typename F>
void each_pass(const Product& p, const F& f) {
  int64_t before = 0;
  for (int64_t part = 0; part < p.part_count; part++) {
    const int64_t depth = p.parts[part].depth;
    const int64_t passes = (depth + kDepth - 1) / kDepth;
    if (passes == 0) continue;
    const int64_t step = ((depth + passes - 1) / passes + 31) / 32 * 32;
    for (int64_t k = 0; k < depth; k += step) {
      const int64_t length = depth - k < step ? depth - k : step;
      f(Pass{part, k, length, before});
      before += length;
    }
  }
}

// Slivers [begin, end) of the block, all passes.
void pack_slivers(const Product& p, int64_t begin, int64_t end) {
  each_pass(p, [&](const Pass& pass) {
    const Matrix& a = p.parts[pass.part].a;
    float* to = p.a + p.slivers * kRows * pass.before;
    for (int64_t s = begin; s < end; s++) {
      const int64_t row = (p.first + s) * kRows, count = p.rows - row < kRows ? p.rows - row : kRows;
      const int64_t at = row * a.row + pass.k * a.column;
      if (a.type == Type::bf16)
        pack_rows(static_cast<const uint16_t*>(a.data) + at, a.row, a.column, count, pass.length, to + s * kRows * pass.length);
      else
        pack_rows(static_cast<const float*>(a.data) + at, a.row, a.column, count, pass.length, to + s * kRows * pass.length);
    }
  });
}

// Where a panel of sixteen columns lies: every share begins a new one.
struct Place {
  int64_t share, column, count;
};
Place place(const Product& p, int64_t panel) {
  int64_t share = 0;
  for (; panel >= (p.shares[share].columns + 15) / 16; share++) panel -= (p.shares[share].columns + 15) / 16;
  const int64_t left = p.shares[share].columns - panel * 16;
  return {share, panel * 16, left < 16 ? left : 16};
}

// One pass of the block's rows against one panel or two, which `b` holds one after the other.
void multiply(const Product& p, const Pass& pass, const float* b, int64_t panels, float* sums) {
  const float* a = p.a + p.slivers * kRows * pass.before;
  const float* next = b + 16 * pass.length;
  const bool wide = panels == 2 && has_avx512(), first = pass.before == 0;
  float* beside = sums + p.slivers * kTile;
  for (int64_t s = 0; s < p.slivers;) {
    const float* at = a + s * kRows * pass.length;
    float *here = sums + s * kTile, *there = beside + s * kTile;
    if (wide && s + 1 < p.slivers) {
      tile512(pass.length, at, at + kRows * pass.length, b, next, {{{here, there}, {here + kTile, there + kTile}}}, first);
      s += 2;
      continue;
    }
    tile(pass.length, at, b, here, first);
    if (panels == 2) tile(pass.length, at, next, there, first);
    s++;
  }
}

void store_panel(const Product& p, const Place& at, const float* sums) {
  const Result& result = p.shares[at.share].result;
  const int64_t size = result.type == Type::bf16 ? 2 : 4, from = p.first * kRows;
  const int64_t rows = p.rows - from < p.slivers * kRows ? p.rows - from : p.slivers * kRows;
  char* out = static_cast<char*>(result.data) + (from * result.row + at.column) * size;
  for (int64_t i = 0; i < rows; i++)
    store_row(sums + i * 16, at.count, out + i * result.row * size, result.type, result.add);
}

// Panels [from, to) for the rows of the block, through a pass after another; a panel is filled in the first cache just before it is
// used, so no packed copy of b reaches memory.
void run_panels(const Product& p, int64_t from, int64_t to, float* b, float* sums) {
  each_pass(p, [&](const Pass& pass) {
    for (int64_t panel = from; panel < to; panel += 2) {
      const int64_t panels = panel + 1 < to ? 2 : 1;
      for (int64_t n = 0; n < panels; n++) {
        const Place at = place(p, panel + n);
        const Source& source = p.sources[pass.part * p.share_count + at.share];
        source.fill(source.of, pass.k, pass.length, at.column, at.count, b + n * 16 * pass.length);
      }
      multiply(p, pass, b, panels, sums + (panel - from) * p.slivers * kTile);
    }
  });
  for (int64_t panel = from; panel < to; panel++)
    store_panel(p, place(p, panel), sums + (panel - from) * p.slivers * kTile);
}

// One thread's work, of which `share` panels of all would be an even part. It takes as many panels at a time as have their sums in the
// second cache, and fewer towards the end, so that no thread waits long for another that was slower. Each panel is a sum of its own:
// who takes it changes nothing.
void take_panels(Product& p, int64_t share) {
  int64_t group = kSumsBytes / (p.slivers * kTile * 4) / 2 * 2;
  group = group < 2 ? 2 : group;
  float* sums = scratch((group < p.panels ? group : p.panels) * p.slivers * kTile);
  float* b = scratch(2 * 16 * kDepth);
  int64_t from = p.next.load();
  while (from < p.panels) {
    const int64_t left = p.panels - from;
    int64_t count = share < p.panels ? left * share / p.panels / 2 * 2 : left;
    count = count < 8 ? 8 : count;
    count = count > group ? group : count;
    const int64_t to = count < left ? from + count : p.panels;
    if (!p.next.compare_exchange_weak(from, to)) continue;
    run_panels(p, from, to, b, sums);
    from = p.next.load();
  }
  release(b);
  release(sums);
}

// A matrix as it lies.
void fill_matrix(const void* of, int64_t k, int64_t length, int64_t column, int64_t count, float* to) {
  const Matrix& b = *static_cast<const Matrix*>(of);
  const int64_t at = k * b.row + column * b.column;
  if (b.type == Type::bf16)
    pack_panel(static_cast<const uint16_t*>(b.data) + at, b.row, b.column, length, count, to);
  else
    pack_panel(static_cast<const float*>(b.data) + at, b.row, b.column, length, count, to);
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
  for (int64_t j = 0; j < count; j += 16)
    fill_matrix(&b, 0, depth, first + j, count - j < 16 ? count - j : 16, to + j * depth);
}

void gemm(const Part* parts, int64_t part_count, int64_t rows, const Source* sources, const Share* shares,
          int64_t share_count, Parallel parallel) {
  int64_t depth = 0, panels = 0;
  for (int64_t i = 0; i < part_count; i++) depth += parts[i].depth;
  for (int64_t i = 0; i < share_count; i++) panels += (shares[i].columns + 15) / 16;
  const int64_t slivers = (rows + kRows - 1) / kRows;
  if (depth == 0 || panels == 0 || slivers == 0) return;
  int64_t block = kPassBytes / (kRows * kDepth * 4);
  const int64_t most = kBlockBytes / (kRows * depth * 4);
  block = most < block ? (most < 8 ? 8 : most) : block;
  const int64_t blocks = (slivers + block - 1) / block;
  block = (slivers + blocks - 1) / blocks;
  Product product{parts, part_count, rows, sources, shares, share_count, panels, 0, 0, scratch(block * kRows * depth), {0}};
  for (int64_t from = 0; from < slivers; from += block) {
    product.first = from;
    product.slivers = slivers - from < block ? slivers - from : block;
    product.next = 0;
    parallel(
        product.slivers,
        [](void* context, int64_t begin, int64_t end) { pack_slivers(*static_cast<Product*>(context), begin, end); },
        &product);
    parallel(
        (panels + 1) / 2,
        [](void* context, int64_t begin, int64_t end) {
          take_panels(*static_cast<Product*>(context), (end - begin) * 2);
        },
        &product);
  }
  release(product.a);
}

void gemm(Matrix a, int64_t rows, Matrix b, int64_t depth, int64_t columns, Result result, Parallel parallel) {
  const Part part{a, depth};
  const Share share{result, columns};
  const Source source{fill_matrix, &b};
  gemm(&part, 1, rows, &source, &share, 1, parallel);
}

void gemm_direct(const float* a, int64_t row, int64_t column, int64_t rows, Packed b, Result result) {
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

}  // namespace levain
