// A libcublasLt.so.13 on the stand-in's streams: products of float32 and float64 matrices, summed
// in double in one order and rounded once. An algorithm is for one problem; where it splits k it
// asks for a workspace and writes to it, as the library does.
//
// The C ABI is declared here by hand, as far as it goes.
#include <math.h>
#include <string.h>

#include "driver.h"

namespace {

using namespace standin;

enum Status : int {
  success = 0,
  not_initialized = 1,
  invalid_value = 7,
  execution_failed = 13,
  not_supported = 15,
};

struct Refusal {
  Status status;
  std::string reason;
};

[[noreturn]] void refuse(Status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
void refuse(Status status, const char* format, ...) {
  char buffer[1000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  throw Refusal{status, buffer};
}

// As the driver's calls, but it answers with cuBLAS's own numbers.
Status blas_call(const char* name, Counted counted, const std::function<void(Lock&)>& body) {
  Status status = success;
  const CUresult result = call(name, counted, [&](Lock& lock) {
    try {
      body(lock);
    } catch (const Refusal& refusal) {
      status = refusal.status;
      throw Failure{CUDA_ERROR_UNKNOWN, refusal.reason};
    }
  });
  if (result == CUDA_SUCCESS || status != success) return status;
  return result == CUDA_ERROR_INVALID_HANDLE || result == CUDA_ERROR_INVALID_VALUE
             ? invalid_value
             : execution_failed;
}

// ------------------------------------------------------------------------------- objects

enum DataType : int { float32 = 0, float64 = 1 };
enum Compute : int {
  compute_32f = 68,
  compute_32f_pedantic = 69,
  compute_64f = 70,
  compute_64f_pedantic = 71,
  compute_32f_bf16 = 75,
  compute_32f_tf32 = 77,
};

struct Handle : Kind<Handle> {
  static constexpr const char* kind = "cublasLt handle";
};

struct Layout : Kind<Layout> {
  static constexpr const char* kind = "matrix layout";
  int type, order = 0;  // by columns; 1 is by rows
  uint64_t rows, columns;
  int64_t ld;
  int batch = 1;
  int64_t batch_stride = 0;

  size_t element() const { return type == float64 ? 8 : 4; }
  // Elements from the first to behind the last.
  uint64_t extent() const {
    const uint64_t lines = order == 0 ? columns : rows, line = order == 0 ? rows : columns;
    return lines == 0 || line == 0 ? 0 : (lines - 1) * ld + line;
  }
};

struct Description : Kind<Description> {
  static constexpr const char* kind = "matmul description";
  int compute, scale, pointer_mode = 0, transpose_a = 0, transpose_b = 0, transpose_c = 0;
  unsigned epilogue = 1;
};

struct Preference : Kind<Preference> {
  static constexpr const char* kind = "matmul preference";
  uint64_t workspace = 0;
  uint32_t reductions = 7, alignment[4] = {256, 256, 256, 256};
};

// cublasLtMatmulAlgo_t: 64 bytes that are nobody's but the library's.
struct Algorithm {
  uint64_t problem, workspace;
  int32_t id, splits;
  uint32_t tile, reduction, stages;
  uint32_t alignment[4];
  uint32_t magic;
};
static_assert(sizeof(Algorithm) <= 64);
constexpr uint32_t magic = 0x4c744c74;

struct HeuristicResult {
  union {
    Algorithm algorithm;
    uint64_t data[8];
  };
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

// A row of a table of attributes.
struct Field {
  int attribute;
  size_t bytes;
  void* place;
};

const Field& field(const std::vector<Field>& fields, int attribute, size_t bytes) {
  for (const Field& field : fields) {
    if (field.attribute != attribute) continue;
    if (bytes != field.bytes)
      refuse(invalid_value, "attribute %d has %zu bytes, not %zu", attribute, field.bytes, bytes);
    return field;
  }
  refuse(not_supported, "the stand-in does not know attribute %d", attribute);
}

std::vector<Field> fields_of(Layout& x) {
  return {{0, 4, &x.type}, {1, 4, &x.order}, {2, 8, &x.rows},         {3, 8, &x.columns},
          {4, 8, &x.ld},   {5, 4, &x.batch}, {6, 8, &x.batch_stride}};
}

std::vector<Field> fields_of(Description& x) {
  return {{0, 4, &x.compute},     {1, 4, &x.scale},       {2, 4, &x.pointer_mode},
          {3, 4, &x.transpose_a}, {4, 4, &x.transpose_b}, {5, 4, &x.transpose_c},
          {7, 4, &x.epilogue}};
}

std::vector<Field> fields_of(Preference& x) {
  return {{1, 8, &x.workspace},    {3, 4, &x.reductions},   {5, 4, &x.alignment[0]},
          {6, 4, &x.alignment[1]}, {7, 4, &x.alignment[2]}, {8, 4, &x.alignment[3]}};
}

std::vector<Field> fields_of(Algorithm& x) {
  return {{0, 4, &x.id},        {1, 4, &x.tile},  {2, 4, &x.splits},
          {3, 4, &x.reduction}, {6, 4, &x.stages}};
}

template <class T> Status set(const char* name, void* handle, int which, const void* in, size_t n) {
  return blas_call(name, Counted::other, [&](Lock&) {
    const auto object = find<T>(handle);
    memcpy(field(fields_of(*object), which, n).place, in, n);
  });
}

template <class T>
Status get(const char* name, void* handle, int which, void* out, size_t n, size_t* written) {
  return blas_call(name, Counted::other, [&](Lock&) {
    const auto object = find<T>(handle);
    memcpy(out, field(fields_of(*object), which, n).place, n);
    if (written != nullptr) *written = n;
  });
}

template <class T> Status destroy(const char* name, void* handle) {
  return blas_call(name, Counted::release, [&](Lock&) {
    find<T>(handle);
    leave(handle);
  });
}

// -------------------------------------------------------------------------------- problems

// D = alpha op(A) op(B) + beta C, with D m by n.
struct Problem {
  Description description;
  Layout a, b, c, d;
  uint64_t m, n, k;

  uint64_t hash() const {
    uint64_t h = 1469598103934665603ull;
    auto mix = [&](uint64_t x) { h = (h ^ x) * 1099511628211ull; };
    const Description& o = description;
    for (int x : {o.compute, o.scale, o.transpose_a, o.transpose_b, o.transpose_c}) mix(x);
    for (const Layout* x : {&a, &b, &c, &d}) {
      mix(x->type), mix(x->order), mix(x->rows), mix(x->columns), mix(x->ld);
    }
    return h;
  }
};

Problem problem_of(void* handle, void* description, void* a, void* b, void* c, void* d) {
  find<Handle>(handle);
  Problem p{*find<Description>(description), *find<Layout>(a), *find<Layout>(b),
            *find<Layout>(c),                *find<Layout>(d), 0, 0, 0};
  const Description& o = p.description;
  if (o.epilogue != 1 || o.transpose_c != 0 || o.pointer_mode != 0)
    refuse(not_supported, "an epilogue, Cᵀ, or alpha and beta on the device");
  const bool doubles = o.compute == compute_64f || o.compute == compute_64f_pedantic;
  if (!doubles && o.compute != compute_32f && o.compute != compute_32f_pedantic &&
      o.compute != compute_32f_tf32 && o.compute != compute_32f_bf16)
    refuse(not_supported, "compute type %d", o.compute);
  const int type = doubles ? float64 : float32;
  if (o.scale != type) refuse(not_supported, "scale type %d for compute type %d", o.scale, o.compute);
  const struct {
    const char* name;
    const Layout* x;
  } all[] = {{"A", &p.a}, {"B", &p.b}, {"C", &p.c}, {"D", &p.d}};
  for (const auto& [name, x] : all) {
    if (x->type != type)
      refuse(not_supported, "%s is of type %d, the product of type %d", name, x->type, type);
    if (x->order != 0 && x->order != 1) refuse(not_supported, "%s has order %d", name, x->order);
    if (x->batch != 1) refuse(not_supported, "%s is a batch of %d", name, x->batch);
    const uint64_t least = x->order == 0 ? x->rows : x->columns;
    if (x->ld < int64_t(least))
      refuse(invalid_value, "%s (%llu by %llu, by %s) has leading dimension %lld, less than %llu",
             name, (unsigned long long)x->rows, (unsigned long long)x->columns,
             x->order == 0 ? "columns" : "rows", (long long)x->ld, (unsigned long long)least);
  }
  const bool ta = o.transpose_a != 0, tb = o.transpose_b != 0;
  p.m = ta ? p.a.columns : p.a.rows;
  p.k = ta ? p.a.rows : p.a.columns;
  p.n = tb ? p.b.rows : p.b.columns;
  const uint64_t k = tb ? p.b.columns : p.b.rows;
  if (k != p.k || p.d.rows != p.m || p.d.columns != p.n || p.c.rows != p.m || p.c.columns != p.n)
    refuse(invalid_value,
           "op(A) is %llu by %llu, op(B) %llu by %llu, C %llu by %llu and D %llu by %llu",
           (unsigned long long)p.m, (unsigned long long)p.k, (unsigned long long)k,
           (unsigned long long)p.n, (unsigned long long)p.c.rows, (unsigned long long)p.c.columns,
           (unsigned long long)p.d.rows, (unsigned long long)p.d.columns);
  if (p.c.order != p.d.order)
    refuse(not_supported, "C is by %s and D is not", p.c.order == 0 ? "columns" : "rows");
  return p;
}

// A tile for the shape, and k split where there are few tiles for many multiprocessors.
Algorithm algorithm_for(const Problem& p, const Preference& preference, int rank) {
  constexpr uint32_t tile_32x32 = 11, tile_64x64 = 15, tile_128x128 = 20, compute_type = 2;
  Algorithm found{};
  found.magic = magic;
  found.problem = p.hash();
  found.splits = 1;
  const uint64_t smaller = std::min(p.m, p.n);
  found.tile = smaller >= 128 ? tile_128x128 : smaller >= 64 ? tile_64x64 : tile_32x32;
  found.id = rank;
  found.stages = 1 + rank;
  const uint64_t tiles = ((p.m + 31) / 32) * ((p.n + 31) / 32);
  const uint64_t bytes = p.m * p.n * p.d.element();
  if (rank == 0 && (preference.reductions & compute_type) && p.k >= 256 &&
      tiles < uint64_t(state.card->multiprocessors)) {
    const int splits = std::min<uint64_t>({p.k / 128, 8, preference.workspace / bytes});
    if (splits > 1) {
      found.splits = splits;
      found.reduction = compute_type;
      found.workspace = splits * bytes;
    }
  }
  memcpy(found.alignment, preference.alignment, sizeof found.alignment);
  return found;
}

std::shared_ptr<Memory> operand(const char* name, const void* address, uint64_t bytes,
                                uint32_t alignment, const Context& context) {
  if (bytes == 0) return nullptr;
  const auto memory = memory_at(address);
  if (memory == nullptr) refuse(invalid_value, "%s, %p, lies in no allocation", name, address);
  const std::string why = unusable(*memory, &context, true);
  if (!why.empty()) refuse(invalid_value, "%s: %s", name, why.c_str());
  const uint64_t offset = static_cast<const char*>(address) - memory->address;
  if (offset + bytes > memory->bytes)
    refuse(invalid_value, "%s ends at byte %llu of %s", name, (unsigned long long)(offset + bytes),
           memory->name().c_str());
  if (alignment != 0 && reinterpret_cast<uintptr_t>(address) % alignment != 0)
    refuse(not_supported, "%s, %p, is not aligned to %u bytes, which the algorithm was chosen for",
           name, address, alignment);
  return memory;
}

bool overlap(const void* a, uint64_t a_bytes, const void* b, uint64_t b_bytes) {
  const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
  return x < y + b_bytes && y < x + a_bytes;
}

// A factor as a compute type takes it: to the nearest number of so many bits of fraction.
template <class T> T rounded(T x, int compute) {
  if constexpr (sizeof(T) == 4) {
    const int lost = compute == compute_32f_tf32 ? 13 : compute == compute_32f_bf16 ? 16 : 0;
    if (lost == 0 || x != x) return x;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t half = 1u << (lost - 1);
    bits += lost == 13 ? half : half - 1 + (bits >> lost & 1);
    bits = bits >> lost << lost;
    memcpy(&x, &bits, 4);
  }
  return x;
}

template <class T>
__attribute__((optimize("O3"))) void multiply(const Problem& p, T alpha, const T* a, const T* b,
                                              T beta, const T* c, T* d) {
  auto strides = [](const Layout& x, bool transposed) {
    const int64_t row = x.order == 0 ? 1 : x.ld, column = x.order == 0 ? x.ld : 1;
    return transposed ? std::make_pair(column, row) : std::make_pair(row, column);
  };
  const auto [a_row, a_column] = strides(p.a, p.description.transpose_a != 0);
  const auto [b_row, b_column] = strides(p.b, p.description.transpose_b != 0);
  const auto [c_row, c_column] = strides(p.c, false);
  const auto [d_row, d_column] = strides(p.d, false);
  std::vector<double> right(p.k * p.n), sums(p.n);
  for (uint64_t i = 0; i < p.k; ++i)
    for (uint64_t j = 0; j < p.n; ++j)
      right[i * p.n + j] = rounded(b[i * b_row + j * b_column], p.description.compute);
  for (uint64_t row = 0; row < p.m; ++row) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (uint64_t i = 0; i < p.k; ++i) {
      const double factor = rounded(a[row * a_row + i * a_column], p.description.compute);
      const double* line = &right[i * p.n];
      for (uint64_t j = 0; j < p.n; ++j) sums[j] += factor * line[j];
    }
    for (uint64_t j = 0; j < p.n; ++j) {
      double value = alpha * sums[j];
      if (beta != 0) value += double(beta) * c[row * c_row + j * c_column];
      d[row * d_row + j * d_column] = T(value);
    }
  }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// ---------------------------------------------------------------------------------- handles

EXPORT Status cublasLtCreate(void** out) {
  return blas_call("cublasLtCreate", Counted::allocation, [&](Lock&) {
    current();
    *out = enter(std::make_shared<Handle>());
  });
}

EXPORT Status cublasLtDestroy(void* handle) { return destroy<Handle>("cublasLtDestroy", handle); }

EXPORT size_t cublasLtGetVersion() { return 130000; }

EXPORT size_t cublasLtGetCudartVersion() { return 13000; }

EXPORT const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case success: return "CUBLAS_STATUS_SUCCESS";
    case not_initialized: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case invalid_value: return "CUBLAS_STATUS_INVALID_VALUE";
    case execution_failed: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case not_supported: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "unknown";
  }
}

EXPORT const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

// ------------------------------------------------------------------------------ descriptions

EXPORT Status cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns,
                                         int64_t ld) {
  return blas_call("cublasLtMatrixLayoutCreate", Counted::other, [&](Lock&) {
    auto layout = std::make_shared<Layout>();
    layout->type = type;
    layout->rows = rows;
    layout->columns = columns;
    layout->ld = ld;
    *out = enter(layout);
  });
}

EXPORT Status cublasLtMatrixLayoutDestroy(void* handle) {
  return destroy<Layout>("cublasLtMatrixLayoutDestroy", handle);
}

EXPORT Status cublasLtMatrixLayoutSetAttribute(void* handle, int which, const void* in, size_t n) {
  return set<Layout>("cublasLtMatrixLayoutSetAttribute", handle, which, in, n);
}

EXPORT Status cublasLtMatrixLayoutGetAttribute(void* handle, int which, void* out, size_t n,
                                               size_t* written) {
  return get<Layout>("cublasLtMatrixLayoutGetAttribute", handle, which, out, n, written);
}

EXPORT Status cublasLtMatmulDescCreate(void** out, int compute, int scale) {
  return blas_call("cublasLtMatmulDescCreate", Counted::other, [&](Lock&) {
    auto description = std::make_shared<Description>();
    description->compute = compute;
    description->scale = scale;
    *out = enter(description);
  });
}

EXPORT Status cublasLtMatmulDescDestroy(void* handle) {
  return destroy<Description>("cublasLtMatmulDescDestroy", handle);
}

EXPORT Status cublasLtMatmulDescSetAttribute(void* handle, int which, const void* in, size_t n) {
  return set<Description>("cublasLtMatmulDescSetAttribute", handle, which, in, n);
}

EXPORT Status cublasLtMatmulDescGetAttribute(void* handle, int which, void* out, size_t n,
                                             size_t* written) {
  return get<Description>("cublasLtMatmulDescGetAttribute", handle, which, out, n, written);
}

EXPORT Status cublasLtMatmulPreferenceCreate(void** out) {
  return blas_call("cublasLtMatmulPreferenceCreate", Counted::other,
                   [&](Lock&) { *out = enter(std::make_shared<Preference>()); });
}

EXPORT Status cublasLtMatmulPreferenceDestroy(void* handle) {
  return destroy<Preference>("cublasLtMatmulPreferenceDestroy", handle);
}

EXPORT Status cublasLtMatmulPreferenceSetAttribute(void* handle, int which, const void* in,
                                                   size_t n) {
  return set<Preference>("cublasLtMatmulPreferenceSetAttribute", handle, which, in, n);
}

// ------------------------------------------------------------------------------- algorithms

EXPORT Status cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* a, void* b,
                                             void* c, void* d, void* preference, int asked,
                                             HeuristicResult* results, int* found) {
  return blas_call("cublasLtMatmulAlgoGetHeuristic", Counted::other, [&](Lock&) {
    if (!state.captures.empty())
      refuse(not_supported, "a stream is being captured: choose the algorithm before");
    if (asked < 1) refuse(invalid_value, "%d algorithms were asked for", asked);
    const Problem problem = problem_of(handle, description, a, b, c, d);
    const auto wanted = find<Preference>(preference);
    *found = std::min(asked, 2);
    for (int rank = 0; rank < *found; ++rank) {
      HeuristicResult& result = results[rank];
      memset(&result, 0, sizeof result);
      result.algorithm = algorithm_for(problem, *wanted, rank);
      result.workspace = result.algorithm.workspace;
      result.waves = 1;
    }
  });
}

EXPORT Status cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int which, void* out,
                                                   size_t n, size_t* written) {
  return blas_call("cublasLtMatmulAlgoConfigGetAttribute", Counted::other, [&](Lock&) {
    Algorithm copy = *algorithm;
    if (copy.magic != magic) refuse(invalid_value, "no heuristic made this algorithm");
    const Field& found = field(fields_of(copy), which, out == nullptr ? 4 : n);
    if (written != nullptr) *written = found.bytes;
    if (out != nullptr) memcpy(out, found.place, n);
  });
}

// ---------------------------------------------------------------------------------- products

EXPORT Status cublasLtMatmul(void* handle, void* description, const void* alpha, const void* a,
                             void* a_layout, const void* b, void* b_layout, const void* beta,
                             const void* c, void* c_layout, void* d, void* d_layout,
                             const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                             CUstream stream_handle) {
  return blas_call("cublasLtMatmul", Counted::launch, [&](Lock& lock) {
    const Problem p = problem_of(handle, description, a_layout, b_layout, c_layout, d_layout);
    const auto stream = stream_of(stream_handle);
    const Context& context = current();
    if (stream->context != &context)
      refuse(invalid_value, "the stream is device %d's, current is device %d",
             stream->context->device, context.device);
    if (alpha == nullptr || beta == nullptr) refuse(invalid_value, "alpha or beta is null");
    if (algorithm == nullptr && !state.captures.empty())
      refuse(not_supported, "a stream is being captured, and no algorithm was chosen before");
    const Algorithm used = algorithm != nullptr ? *algorithm : algorithm_for(p, {}, 1);
    if (used.magic != magic) refuse(invalid_value, "no heuristic made this algorithm");
    if (used.problem != p.hash())
      refuse(invalid_value, "the algorithm was chosen for another problem");
    if (used.workspace > workspace_bytes)
      refuse(invalid_value, "the algorithm needs a workspace of %llu bytes, and has %zu",
             (unsigned long long)used.workspace, workspace_bytes);

    const bool doubles = p.d.type == float64;
    const double times = doubles ? *static_cast<const double*>(alpha)
                                 : *static_cast<const float*>(alpha);
    const double plus = doubles ? *static_cast<const double*>(beta)
                                : *static_cast<const float*>(beta);
    Work work{"cublasLtMatmul", {}, {}};
    auto use = [&](const char* name, const void* address, uint64_t bytes, uint32_t alignment) {
      if (auto memory = operand(name, address, bytes, alignment, context))
        work.memory.push_back(std::move(memory));
    };
    const size_t element = p.d.element();
    use("A", a, p.a.extent() * element, used.alignment[0]);
    use("B", b, p.b.extent() * element, used.alignment[1]);
    if (plus != 0) use("C", c, p.c.extent() * element, used.alignment[2]);
    use("D", d, p.d.extent() * element, used.alignment[3]);
    use("the workspace", workspace, workspace_bytes, 256);
    for (const auto& [name, x, layout] :
         {std::make_tuple("A", a, &p.a), std::make_tuple("B", b, &p.b)})
      if (overlap(x, layout->extent() * element, d, p.d.extent() * element))
        refuse(invalid_value, "%s and D overlap", name);
    if (plus != 0 && c == d && p.c.ld != p.d.ld)
      refuse(invalid_value, "C is D, with another leading dimension");

    work.alone = true;
    work.run = [=] {
      if (used.workspace > 0) memset(workspace, 0xFF, used.workspace);  // partial sums
      if (doubles) {
        multiply(p, times, static_cast<const double*>(a), static_cast<const double*>(b), plus,
                 static_cast<const double*>(c), static_cast<double*>(d));
      } else {
        multiply(p, float(times), static_cast<const float*>(a), static_cast<const float*>(b),
                 float(plus), static_cast<const float*>(c), static_cast<float*>(d));
      }
    };
    submit(lock, *stream, std::move(work));
  });
}
