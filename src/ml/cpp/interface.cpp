// The C interface: every function catches what is thrown and gives 0, or 1 with a message for `levain_error`.
#include <ATen/Version.h>
#include <torch/version.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "operators.h"

using at::Tensor;

namespace {

thread_local std::string message;

template <typename F>
int guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
    message = "an unknown C++ exception";
  }
  return 1;
}

Tensor* fresh(Tensor tensor) { return new Tensor(std::move(tensor)); }
std::vector<int64_t> numbers(const int64_t* data, size_t count) { return {data, data + count}; }

}  // namespace

extern "C" {

const char* levain_error() { return message.c_str(); }
const char* levain_version() { return TORCH_VERSION; }

int levain_capability(char* to, size_t size) {
  return guarded([&] {
    const std::string name = at::get_cpu_capability();
    TORCH_CHECK(name.size() < size, "the name of the capability is too long");
    std::copy(name.begin(), name.end(), to);
    to[name.size()] = 0;
  });
}

// 1 where the kernels of this folder were built and run.
int levain_kernels() {
#if defined(LEVAIN_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 0;
#endif
}

#if defined(__x86_64__)
// Whether the processor has AMX units for bf16, and the system lets programs use them.
static bool has_amx_bf16() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & (1u << 27))) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned tiles = 3u << 17;  // their configuration and their data
  if ((low & tiles) != tiles || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d >> 22) & 1;
}
#endif

// 1 where libtorch's bf16 products are the fastest. Without AMX they are slower than f32, also with the bf16 instructions of AVX-512.
int levain_native_bf16() {
#if defined(__x86_64__)
  static const bool found = has_amx_bf16();  // the question takes long in a virtual machine
  return found;
#else
  return 0;
#endif
}

// Freed memory stays with the process: no mapping for large blocks, no trimming.
void levain_keep_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

// Gives what is free back to the system.
void levain_release_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

// Of each map: its flag; five numbers of its shape; the scale of its change and the offset of its nested scales.
int levain_linear(Tensor** out, const Tensor* x, int64_t before, double eps, const Tensor* const* tensors, size_t count, const int64_t* flags,
                  const int64_t* shapes, const double* scales, size_t maps, int few) {
  return guarded([&] {
    std::vector<Tensor> list;
    TORCH_CHECK(before >= 0 && before <= 2, "linear: nothing like ", before);
    for (size_t i = 0; i < count; i++) list.push_back(*tensors[i]);
    auto results = levain::linear(*x, static_cast<levain::Before>(before), eps, list, numbers(flags, maps), numbers(shapes, maps * 5),
                                  std::vector<double>(scales, scales + maps * 2), few != 0);
    for (size_t i = 0; i < maps; i++) out[i] = fresh(results[i]);
  });
}

// kind: 0 for f32, 1 for bf16, 2 for f64.
int levain_dequantized(Tensor** out, const Tensor* const* tensors, size_t count, int64_t flag, const int64_t* shape, double offset,
                       int kind) {
  return guarded([&] {
    std::vector<Tensor> list;
    for (size_t i = 0; i < count; i++) list.push_back(*tensors[i]);
    const auto type = kind == 0 ? at::kFloat : kind == 1 ? at::kBFloat16 : at::kDouble;
    *out = fresh(levain::dequantized(list, flag, numbers(shape, 5), {0.0, offset}, type));
  });
}

int levain_unpacked_product(Tensor** out, const Tensor* x, const Tensor* const* tensors, size_t count, int64_t flag,
                            const int64_t* shape, double offset) {
  return guarded([&] {
    std::vector<Tensor> list;
    for (size_t i = 0; i < count; i++) list.push_back(*tensors[i]);
    *out = fresh(levain::unpacked_product(*x, list, flag, numbers(shape, 5), {0.0, offset}));
  });
}

int levain_checkpoint(Tensor** out, const Tensor* x, const Tensor* anchor, levain::Run run, levain::Drop drop, void* context) {
  return guarded([&] { *out = fresh(levain::checkpoint_op(*x, *anchor, run, drop, context)); });
}

int levain_dropout(Tensor** out, const Tensor* x, double probability, int64_t seed, int64_t first) {
  return guarded([&] { *out = fresh(levain::dropout_op(*x, probability, seed, first)); });
}

// settings: keep, gain1, keep2, gain2, root, eps, rate.
int levain_adamw(const Tensor* stored, const Tensor* weight, const Tensor* gradient, const Tensor* mean, const Tensor* square,
                 const double* settings) {
  return guarded([&] {
    float s[7];
    std::copy(settings, settings + 7, s);
    levain::adamw_op(*stored, *weight, *gradient, *mean, *square, {s[0], s[1], s[2], s[3], s[4], s[5], s[6]});
  });
}

int levain_rms_norm(Tensor** out, const Tensor* x, const Tensor* weight, double eps) {
  return guarded([&] { *out = fresh(levain::rms_norm_op(*x, *weight, eps)); });
}

int levain_silu_mul(Tensor** out, const Tensor* gate, const Tensor* up) {
  return guarded([&] { *out = fresh(levain::silu_mul_op(*gate, *up)); });
}

int levain_rope(Tensor** out, const Tensor* x, const Tensor* cos, const Tensor* sin, const Tensor* positions,
                int64_t heads) {
  return guarded([&] { *out = fresh(levain::rope_op(*x, *cos, *sin, *positions, heads)); });
}

int levain_attend(Tensor** out, const Tensor* q, const Tensor* k, const Tensor* v, const int64_t* lengths,
                  const int64_t* keys, size_t rows, int64_t heads, int64_t groups, double scale) {
  return guarded([&] {
    *out = fresh(levain::attend_op(*q, *k, *v, numbers(lengths, rows), numbers(keys, rows), heads, groups, scale));
  });
}

int levain_attend_cached(Tensor** out, const Tensor* q, const Tensor* k, const Tensor* v, const int64_t* lengths,
                         const int64_t* rows, const int64_t* filled, size_t count, int64_t heads, int64_t groups,
                         double scale) {
  return guarded([&] {
    *out = fresh(levain::attend_cached(*q, *k, *v, numbers(lengths, count), numbers(rows, count),
                                       numbers(filled, count), heads, groups, scale));
  });
}

int levain_cross_entropy(Tensor** out, const Tensor* hidden, const Tensor* head, const Tensor* targets, int64_t chunk,
                         int64_t way) {
  return guarded([&] {
    TORCH_CHECK(way >= 0 && way <= 2 && chunk > 0, "cross_entropy: no way ", way, " with chunks of ", chunk);
    auto results = levain::cross_entropy(*hidden, *head, *targets, chunk, static_cast<levain::Way>(way));
    for (size_t i = 0; i < 3; i++) out[i] = fresh(results[i]);
  });
}

int levain_log_probabilities(Tensor** out, const Tensor* hidden, const Tensor* head, const Tensor* targets, int64_t chunk,
                             int64_t way, int statistics) {
  return guarded([&] {
    TORCH_CHECK(way >= 0 && way <= 2 && chunk > 0, "log_probabilities: no way ", way, " with chunks of ", chunk);
    auto results = levain::log_probabilities(*hidden, *head, *targets, chunk, static_cast<levain::Way>(way), statistics != 0);
    for (size_t i = 0; i < 3; i++) out[i] = fresh(results[i]);
  });
}

}  // extern "C"
