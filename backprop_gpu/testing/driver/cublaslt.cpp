// A libcublasLt.so.13 on the stand-in's streams: products of float32, float64 and bfloat16 matrices
// with the library's epilogues, summed in double in one order and rounded once. An algorithm is for
// one problem; where it splits k it asks for a workspace and writes to it, as the library does.
//
// STANDIN_NO_EPILOGUES, in the environment, are the numbers of epilogues for which there is no
// algorithm, with commas between them.
//
// The C ABI is declared here by hand, as far as it goes.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

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

enum DataType : int { float32 = 0, float64 = 1, bfloat16 = 14 };
enum Compute : int {
  compute_32f = 68,
  compute_32f_pedantic = 69,
  compute_64f = 70,
  compute_64f_pedantic = 71,
  compute_32f_bf16 = 75,
  compute_32f_tf32 = 77,
};

// An epilogue's number is made of what it does. With `aux` there is another matrix: a bit for each
// of D's elements, which relu writes and drelu reads, or the input of gelu, likewise.
enum Epilogue : unsigned {
  plain = 1,
  relu = 2,
  bias = 4,
  drelu = 8,
  bias_gradient = 16,
  gelu = 32,
  dgelu = 64,
  aux = 128,
  sums_of_a = 256,
  sums_of_b = 512,
};
constexpr unsigned writes_bias = bias_gradient | sums_of_a | sums_of_b;
constexpr unsigned epilogues[] = {
    plain,
    relu,
    relu | aux,
    bias,
    relu | bias,
    relu | aux | bias,
    drelu | aux,
    drelu | aux | bias_gradient,
    gelu,
    gelu | aux,
    gelu | bias,
    gelu | aux | bias,
    dgelu | aux,
    dgelu | aux | bias_gradient,
    sums_of_a,
    sums_of_b,
};

size_t bytes_of(int type) { return type == float64 ? 8 : type == bfloat16 ? 2 : 4; }

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

  size_t element() const { return bytes_of(type); }
  // Elements from the first to behind the last.
  uint64_t extent() const {
    const uint64_t lines = order == 0 ? columns : rows, line = order == 0 ? rows : columns;
    return lines == 0 || line == 0 ? 0 : (lines - 1) * ld + line;
  }
  uint64_t bytes() const { return extent() * element(); }
};

struct Description : Kind<Description> {
  static constexpr const char* kind = "matmul description";
  int compute, scale, pointer_mode = 0, transpose_a = 0, transpose_b = 0, transpose_c = 0;
  unsigned epilogue = plain;
  void* bias_pointer = nullptr;  // or that of the gradient or sums, which are written
  int bias_type = -1;            // as D
  void* aux_pointer = nullptr;
  int64_t aux_ld = 0;

  bool does(unsigned what) const { return (epilogue & what) != 0; }
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
  uint32_t alignment[4], bias_alignment, aux_alignment;
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
  return {{0, 4, &x.compute},     {1, 4, &x.scale},        {2, 4, &x.pointer_mode},
          {3, 4, &x.transpose_a}, {4, 4, &x.transpose_b},  {5, 4, &x.transpose_c},
          {7, 4, &x.epilogue},    {8, 8, &x.bias_pointer}, {11, 8, &x.aux_pointer},
          {12, 8, &x.aux_ld},     {26, 4, &x.bias_type}};
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

// D = alpha op(A) op(B) + beta C, with D m by n, and what the epilogue makes of it.
struct Problem {
  Description description;
  Layout a, b, c, d;
  uint64_t m, n, k;

  bool doubles() const { return description.scale == float64; }
  uint64_t bias_bytes() const { return (description.does(sums_of_b) ? n : m) * d.element(); }
  // Bytes that a column of the bit mask takes up: words of 16, with bits that no row has.
  uint64_t mask_column() const { return (m + 127) / 128 * 16; }
  uint64_t aux_bytes() const {
    if (m == 0 || n == 0) return 0;
    const uint64_t before = (n - 1) * description.aux_ld;
    return description.does(relu | drelu) ? before / 8 + mask_column() : (before + m) * d.element();
  }

  uint64_t hash() const {
    uint64_t h = 1469598103934665603ull;
    auto mix = [&](uint64_t x) { h = (h ^ x) * 1099511628211ull; };
    const Description& o = description;
    for (int x : {o.compute, o.scale, o.transpose_a, o.transpose_b, o.transpose_c}) mix(x);
    for (const Layout* x : {&a, &b, &c, &d}) {
      mix(x->type), mix(x->order), mix(x->rows), mix(x->columns), mix(x->ld);
    }
    mix(o.epilogue), mix(o.aux_ld);
    return h;
  }
};

bool types_meet(int compute, int factors, int result) {
  switch (compute) {
    case compute_32f:
    case compute_32f_pedantic:
      return factors == float32 ? result == float32
                                : factors == bfloat16 && (result == float32 || result == bfloat16);
    case compute_32f_bf16:
    case compute_32f_tf32: return factors == float32 && result == float32;
    default: return factors == float64 && result == float64;
  }
}

void check_epilogue(const Problem& p) {
  const Description& o = p.description;
  if (std::find(std::begin(epilogues), std::end(epilogues), o.epilogue) == std::end(epilogues))
    refuse(not_supported, "there is no epilogue %u", o.epilogue);
  if (o.bias_type != -1 && o.bias_type != p.d.type)
    refuse(not_supported, "the bias is of type %d, D of type %d", o.bias_type, p.d.type);
  // Documented of activations and the bias; what the others do is not known.
  if (o.epilogue != plain && p.d.order != 0)
    refuse(not_supported, "epilogue %u takes D by columns only", o.epilogue);
  if (!o.does(aux)) return;
  if (o.aux_ld < int64_t(p.m))
    refuse(invalid_value, "aux has leading dimension %lld, less than D's %llu rows",
           (long long)o.aux_ld, (unsigned long long)p.m);
  const int multiple = o.does(relu | drelu) ? 128 : 8;
  if (o.aux_ld % multiple != 0)
    refuse(invalid_value, "aux has leading dimension %lld, which is no multiple of %d",
           (long long)o.aux_ld, multiple);
}

Problem problem_of(void* handle, void* description, void* a, void* b, void* c, void* d) {
  find<Handle>(handle);
  Problem p{*find<Description>(description), *find<Layout>(a), *find<Layout>(b),
            *find<Layout>(c),                *find<Layout>(d), 0, 0, 0};
  const Description& o = p.description;
  if (o.transpose_c != 0 || o.pointer_mode != 0)
    refuse(not_supported, "Cᵀ, or alpha and beta on the device");
  const bool doubles = o.compute == compute_64f || o.compute == compute_64f_pedantic;
  if (!doubles && o.compute != compute_32f && o.compute != compute_32f_pedantic &&
      o.compute != compute_32f_tf32 && o.compute != compute_32f_bf16)
    refuse(not_supported, "compute type %d", o.compute);
  if (o.scale != (doubles ? float64 : float32))
    refuse(not_supported, "scale type %d for compute type %d", o.scale, o.compute);
  if (p.a.type != p.b.type || p.c.type != p.d.type || !types_meet(o.compute, p.a.type, p.d.type))
    refuse(not_supported, "A, B, C and D are of types %d, %d, %d and %d, for compute type %d",
           p.a.type, p.b.type, p.c.type, p.d.type, o.compute);
  const struct {
    const char* name;
    const Layout* x;
  } all[] = {{"A", &p.a}, {"B", &p.b}, {"C", &p.c}, {"D", &p.d}};
  for (const auto& [name, x] : all) {
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
  check_epilogue(p);
  return p;
}

// Of a bias or aux: what an algorithm may reckon with, up to the widest load. Null is any place.
uint32_t alignment_of(const void* address) {
  const auto x = reinterpret_cast<uintptr_t>(address);
  return x == 0 ? 16 : std::min<uintptr_t>(16, x & -x);
}

void check_there_is_one(unsigned epilogue) {
  const char* const text = getenv("STANDIN_NO_EPILOGUES");
  if (text == nullptr) return;
  for (const char* rest = text; *rest != '\0';) {
    char* end;
    const unsigned long number = strtoul(rest, &end, 10);
    if (end == rest || (*end != ',' && *end != '\0'))
      refuse(invalid_value, "STANDIN_NO_EPILOGUES, \"%s\", is not numbers and commas", text);
    if (number == epilogue)
      refuse(not_supported, "STANDIN_NO_EPILOGUES: no algorithm has epilogue %u", epilogue);
    rest = *end == ',' ? end + 1 : end;
  }
}

// A tile for the shape, and k split where there are few tiles for many multiprocessors.
Algorithm algorithm_for(const Problem& p, const Preference& preference, int rank) {
  constexpr uint32_t tile_32x32 = 11, tile_64x64 = 15, tile_128x128 = 20, compute_type = 2;
  check_there_is_one(p.description.epilogue);
  Algorithm found{};
  found.magic = magic;
  found.problem = p.hash();
  found.splits = 1;
  const uint64_t smaller = std::min(p.m, p.n);
  found.tile = smaller >= 128 ? tile_128x128 : smaller >= 64 ? tile_64x64 : tile_32x32;
  found.id = rank;
  found.stages = 1 + rank;
  const uint64_t tiles = ((p.m + 31) / 32) * ((p.n + 31) / 32);
  const uint64_t bytes = p.m * p.n * (p.doubles() ? 8 : 4);  // of a part of the sums
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
  const uint32_t element = p.d.element();
  found.bias_alignment = std::max(alignment_of(p.description.bias_pointer), element);
  found.aux_alignment = std::max(alignment_of(p.description.aux_pointer),
                                 p.description.does(relu | drelu) ? 1 : element);
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

// What a product reads or writes.
struct Range {
  const char* name;
  const void* address;
  uint64_t bytes;
  bool written;

  bool overlaps(const Range& other) const {
    const auto x = reinterpret_cast<uintptr_t>(address);
    const auto y = reinterpret_cast<uintptr_t>(other.address);
    return x < y + other.bytes && y < x + bytes;
  }
};

// ------------------------------------------------------------------------------- numbers

// The upper half of a float32.
struct Bfloat16 {
  uint16_t bits;

  Bfloat16() = default;
  // To the nearest, of two the even one; at once, as by way of float32 it would be rounded twice.
  explicit Bfloat16(double x) {
    if (isfinite(x)) {
      int exponent;
      frexp(x, &exponent);
      const int last = std::max(exponent - 8, -133);  // what its last bit counts
      x = ldexp(nearbyint(ldexp(x, -last)), last);
    }
    const float wide = x;
    uint32_t upper;
    memcpy(&upper, &wide, 4);
    bits = upper >> 16;
  }
  explicit operator double() const {
    const uint32_t upper = uint32_t(bits) << 16;
    float wide;
    memcpy(&wide, &upper, 4);
    return wide;
  }
};

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

// Numbers of a type in memory, a step apart.
struct Line {
  int type;
  char* first;
  int64_t step;
  uint64_t count;

  // use(the place of number i, i) for each
  template <class Use> void each(Use use) const {
    auto all = [&](auto* place) {
      for (uint64_t i = 0; i < count; ++i) use(place[int64_t(i) * step], i);
    };
    switch (type) {
      case float64: return all(reinterpret_cast<double*>(first));
      case bfloat16: return all(reinterpret_cast<Bfloat16*>(first));
      default: return all(reinterpret_cast<float*>(first));
    }
  }
  void read(double* out) const {
    each([=](const auto& x, uint64_t i) { out[i] = double(x); });
  }
  void read_factors(double* out, int compute) const {
    each([=](const auto& x, uint64_t i) { out[i] = double(rounded(x, compute)); });
  }
  void write(const double* in) const {
    each([=](auto& x, uint64_t i) { x = std::decay_t<decltype(x)>(in[i]); });
  }
};

// A matrix in memory, or its transpose, by rows.
struct Matrix {
  int type;
  char* first;
  int64_t row, column;
  uint64_t columns;

  Matrix(const Layout& x, const void* address, bool transposed = false)
      : type(x.type),
        first(static_cast<char*>(const_cast<void*>(address))),
        row(x.order == 0 ? 1 : x.ld),
        column(x.order == 0 ? x.ld : 1),
        columns(transposed ? x.rows : x.columns) {
    if (transposed) std::swap(row, column);
  }
  Line line(uint64_t i) const {
    return {type, first + int64_t(i) * row * int64_t(bytes_of(type)), column, columns};
  }
};

double gelu_of(double x) {
  return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

double gelu_slope(double x) {
  const double c = sqrt(2 / M_PI), t = tanh(c * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}

// ------------------------------------------------------------------------------- the product

// An epilogue, row by row of D.
class Rows {
 public:
  explicit Rows(const Problem& p) : p(p), o(p.description), biases(p.m), line(p.n) {
    if (o.does(bias))
      Line{p.d.type, static_cast<char*>(o.bias_pointer), 1, p.m}.read(biases.data());
    // Ones in the bits behind the last row, too: nobody may reckon with what they are.
    if (o.does(relu) && o.does(aux))
      for (uint64_t j = 0; j < p.n; ++j) memset(&mask(0, j), 0xFF, p.mask_column());
  }

  // x is alpha AB + beta C; D afterwards.
  void finish(uint64_t row, double* x) {
    if (o.does(bias))
      for (uint64_t j = 0; j < p.n; ++j) x[j] += biases[row];
    if (o.does(relu)) {
      for (uint64_t j = 0; j < p.n; ++j) {
        if (o.does(aux) && !(x[j] > 0)) mask(row, j) &= ~bit(row);
        if (!(x[j] > 0)) x[j] = 0;  // what is no number, too
      }
    } else if (o.does(drelu)) {
      for (uint64_t j = 0; j < p.n; ++j)
        if (!(mask(row, j) & bit(row))) x[j] = 0;
    } else if (o.does(gelu)) {
      if (o.does(aux)) aux_line(row).write(x);
      for (uint64_t j = 0; j < p.n; ++j) x[j] = gelu_of(x[j]);
    } else if (o.does(dgelu)) {
      aux_line(row).read(line.data());
      for (uint64_t j = 0; j < p.n; ++j) x[j] *= gelu_slope(line[j]);
    }
    if (o.does(bias_gradient)) write_bias(row, sum(x, p.n));
  }

  void write_bias(uint64_t i, double value) const {
    Line{p.d.type, static_cast<char*>(o.bias_pointer) + i * p.d.element(), 1, 1}.write(&value);
  }

  static double sum(const double* x, uint64_t count) {
    double sum = 0;
    for (uint64_t i = 0; i < count; ++i) sum += x[i];
    return sum;
  }

 private:
  uint8_t& mask(uint64_t row, uint64_t column) const {
    return static_cast<uint8_t*>(o.aux_pointer)[(column * o.aux_ld + row) / 8];
  }
  static uint8_t bit(uint64_t row) { return 1 << row % 8; }
  Line aux_line(uint64_t row) const {
    return {p.d.type, static_cast<char*>(o.aux_pointer) + row * p.d.element(), o.aux_ld, p.n};
  }

  const Problem& p;
  const Description& o;
  std::vector<double> biases, line;
};

// A row of the product: where the time goes.
__attribute__((optimize("O3"))) void multiply_row(const double* left, const double* right,
                                                  uint64_t k, uint64_t n, double* sums) {
  std::fill(sums, sums + n, 0.0);
  for (uint64_t i = 0; i < k; ++i) {
    const double factor = left[i];
    const double* line = right + i * n;
    for (uint64_t j = 0; j < n; ++j) sums[j] += factor * line[j];
  }
}

void multiply(const Problem& p, double alpha, const void* a, const void* b, double beta,
              const void* c, void* d) {
  const Description& o = p.description;
  const Matrix op_a(p.a, a, o.transpose_a != 0), op_b(p.b, b, o.transpose_b != 0);
  const Matrix in(p.c, c), out(p.d, d);
  std::vector<double> left(p.k), right(p.k * p.n), sums(p.n), added(p.n);
  for (uint64_t i = 0; i < p.k; ++i) op_b.line(i).read_factors(&right[i * p.n], o.compute);
  Rows rows(p);
  for (uint64_t row = 0; row < p.m; ++row) {
    op_a.line(row).read_factors(left.data(), o.compute);
    if (o.does(sums_of_a)) rows.write_bias(row, Rows::sum(left.data(), p.k));
    multiply_row(left.data(), right.data(), p.k, p.n, sums.data());
    for (uint64_t j = 0; j < p.n; ++j) sums[j] *= alpha;
    if (beta != 0) {
      in.line(row).read(added.data());
      for (uint64_t j = 0; j < p.n; ++j) sums[j] += beta * added[j];
    }
    rows.finish(row, sums.data());
    out.line(row).write(sums.data());
  }
  if (o.does(sums_of_b)) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (uint64_t i = 0; i < p.k; ++i)
      for (uint64_t j = 0; j < p.n; ++j) sums[j] += right[i * p.n + j];
    for (uint64_t j = 0; j < p.n; ++j) rows.write_bias(j, sums[j]);
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
    *found = 0;
    if (!state.captures.empty())
      refuse(not_supported, "a stream is being captured: choose the algorithm before");
    if (asked < 1) refuse(invalid_value, "%d algorithms were asked for", asked);
    const Problem problem = problem_of(handle, description, a, b, c, d);
    const auto wanted = find<Preference>(preference);
    for (int rank = 0; rank < std::min(asked, 2); ++rank) {
      HeuristicResult& result = results[rank];
      memset(&result, 0, sizeof result);
      result.algorithm = algorithm_for(problem, *wanted, rank);
      result.workspace = result.algorithm.workspace;
      result.waves = 1;
      ++*found;
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

    const double times = p.doubles() ? *static_cast<const double*>(alpha)
                                     : *static_cast<const float*>(alpha);
    const double plus = p.doubles() ? *static_cast<const double*>(beta)
                                    : *static_cast<const float*>(beta);
    Work work{"cublasLtMatmul", {}, {}};
    std::vector<Range> ranges;
    auto use = [&](const char* name, const void* address, uint64_t bytes, uint32_t alignment,
                   bool written) {
      if (auto memory = operand(name, address, bytes, alignment, context)) {
        work.memory.push_back(std::move(memory));
        ranges.push_back({name, address, bytes, written});
      }
    };
    const Description& o = p.description;
    auto use_pointer = [&](const char* name, const void* address, uint64_t bytes,
                           uint32_t alignment, bool written) {
      if (address == nullptr)
        refuse(invalid_value, "the pointer to %s, which epilogue %u needs, is null", name,
               o.epilogue);
      if (reinterpret_cast<uintptr_t>(address) % alignment != 0)
        refuse(not_supported,
               "%s, %p, is less aligned than the one the algorithm was chosen for (%u bytes)", name,
               address, alignment);
      use(name, address, bytes, 0, written);
    };
    use("A", a, p.a.bytes(), used.alignment[0], false);
    use("B", b, p.b.bytes(), used.alignment[1], false);
    use("D", d, p.d.bytes(), used.alignment[3], true);
    if (o.does(bias | writes_bias))
      use_pointer("the bias", o.bias_pointer, p.bias_bytes(), used.bias_alignment,
                  o.does(writes_bias));
    if (o.does(aux))
      use_pointer("aux", o.aux_pointer, p.aux_bytes(), used.aux_alignment, o.does(relu | gelu));
    use("the workspace", workspace, workspace_bytes, 256, true);
    if (plus != 0) use("C", c, p.c.bytes(), used.alignment[2], false);
    for (size_t i = 0; i < ranges.size(); ++i)
      for (size_t j = i + 1; j < ranges.size(); ++j) {
        const Range &x = ranges[i], &y = ranges[j];
        const bool in_place = c == d && x.address == d && strcmp(y.name, "C") == 0;
        if ((x.written || y.written) && !in_place && x.overlaps(y))
          refuse(invalid_value, "%s and %s overlap", x.name, y.name);
      }
    if (plus != 0 && c == d && p.c.ld != p.d.ld)
      refuse(invalid_value, "C is D, with another leading dimension");

    work.alone = true;
    work.run = [=] {
      if (used.workspace > 0) memset(workspace, 0xFF, used.workspace);  // partial sums
      multiply(p, times, a, b, plus, c, d);
    };
    submit(lock, *stream, std::move(work));
  });
}
