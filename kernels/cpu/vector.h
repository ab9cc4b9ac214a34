// A strip's row: 64 bytes, 16 floats or 8 doubles, in registers of REGISTER bytes.
//
// The width of a strip is the same on every machine, so that matrices lie alike and sums are made
// alike; only how many registers hold a row differs.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef REGISTER
#if defined(__AVX512F__)
#define REGISTER 64
#elif defined(__AVX__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
#endif

#ifndef INLINE
#define INLINE inline __attribute__((always_inline))
#endif

namespace {

// Lanes of a strip.
template <class T> constexpr int W = 64 / sizeof(T);

template <class T> struct RegisterOf;
template <> struct RegisterOf<float> {
  typedef float Type __attribute__((vector_size(REGISTER)));
};
template <> struct RegisterOf<double> {
  typedef double Type __attribute__((vector_size(REGISTER)));
};
template <class T> using Register = typename RegisterOf<T>::Type;

// ------------------------------------------------------------------- round(a b + c) and √, IEEE

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool has_fma = true;
INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
// Without the instruction a product is rounded before it is added: other bits than elsewhere.
constexpr bool has_fma = false;
INLINE float fused(float a, float b, float c) { return a * b + c; }
INLINE double fused(double a, double b, double c) { return a * b + c; }
#endif

#if defined(__AVX512F__) && REGISTER == 64
#define FUSED_FLOATS(a, b, c) _mm512_fmadd_ps(a, b, c)
#define FUSED_DOUBLES(a, b, c) _mm512_fmadd_pd(a, b, c)
#elif defined(__FMA__) && REGISTER == 32
#define FUSED_FLOATS(a, b, c) _mm256_fmadd_ps(a, b, c)
#define FUSED_DOUBLES(a, b, c) _mm256_fmadd_pd(a, b, c)
#elif defined(__FMA__) && REGISTER == 16
#define FUSED_FLOATS(a, b, c) _mm_fmadd_ps(a, b, c)
#define FUSED_DOUBLES(a, b, c) _mm_fmadd_pd(a, b, c)
#elif defined(__aarch64__) && REGISTER == 16
#define FUSED_FLOATS(a, b, c) vfmaq_f32(c, a, b)
#define FUSED_DOUBLES(a, b, c) vfmaq_f64(c, a, b)
#elif !defined(__FMA__)
#define FUSED_FLOATS(a, b, c) ((a) * (b) + (c))
#define FUSED_DOUBLES(a, b, c) ((a) * (b) + (c))
#else  // wider than the machine's: for tests of the bits
template <class R> INLINE R each_lane(R a, R b, R c) {
  for (size_t i = 0; i < sizeof(R) / sizeof(a[0]); ++i) c[i] = fused(a[i], b[i], c[i]);
  return c;
}
#define FUSED_FLOATS(a, b, c) each_lane(a, b, c)
#define FUSED_DOUBLES(a, b, c) each_lane(a, b, c)
#endif

INLINE Register<float> fused(Register<float> a, Register<float> b, Register<float> c) {
  return FUSED_FLOATS(a, b, c);
}
INLINE Register<double> fused(Register<double> a, Register<double> b, Register<double> c) {
  return FUSED_DOUBLES(a, b, c);
}
#undef FUSED_FLOATS
#undef FUSED_DOUBLES

#if defined(__FMA__) && (REGISTER < 64 || defined(__AVX512F__))
INLINE void add_products(Register<float>& sum, Register<float> a, Register<float> b) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
INLINE void add_products(Register<double>& sum, Register<double> a, Register<double> b) {
  __asm__("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#else
template <class R> INLINE void add_products(R& sum, R a, R b) { sum = fused(a, b, sum); }
#endif

INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
INLINE double sqrt(double x) { return __builtin_sqrt(x); }

// -------------------------------------------------------------------- the first n lanes of a register

#if defined(__AVX512F__) && REGISTER == 64
#define HAS_PARTS 1
INLINE Register<float> load_first(const float* from, int n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), from);
}
INLINE Register<double> load_first(const double* from, int n) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), from);
}
INLINE void store_first(Register<float> r, float* to, int n) {
  _mm512_mask_storeu_ps(to, __mmask16((1u << n) - 1), r);
}
INLINE void store_first(Register<double> r, double* to, int n) {
  _mm512_mask_storeu_pd(to, __mmask8((1u << n) - 1), r);
}
#elif defined(__AVX__) && REGISTER == 32
#define HAS_PARTS 1
// Eight of these numbers, beginning with the one that is n before the zeros.
constexpr int32_t FIRST[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
INLINE __m256i first(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(FIRST + 8 - n));
}
INLINE Register<float> load_first(const float* from, int n) {
  return _mm256_maskload_ps(from, first(n));
}
INLINE Register<double> load_first(const double* from, int n) {
  return _mm256_maskload_pd(from, first(2 * n));
}
INLINE void store_first(Register<float> r, float* to, int n) {
  _mm256_maskstore_ps(to, first(n), r);
}
INLINE void store_first(Register<double> r, double* to, int n) {
  _mm256_maskstore_pd(to, first(2 * n), r);
}
#endif

// ---------------------------------------------------------------------------------- a strip's row

// Arithmetic on W numbers at once, so that a formula written for one number serves them all.
template <class T> struct Strip {
  static constexpr int count = 64 / REGISTER, lanes = REGISTER / sizeof(T);
  Register<T> r[count];

  Strip() = default;
  INLINE Strip(T x) {
    for (int i = 0; i < count; ++i) r[i] = x - Register<T>{};  // x - 0 is x, -0 and NaN, too
  }
  static INLINE Strip zero() {
    Strip s;
    for (int i = 0; i < count; ++i) s.r[i] = Register<T>{};
    return s;
  }
  static INLINE Strip load(const T* from) {
    Strip s;
    for (int i = 0; i < count; ++i) s.r[i] = reinterpret_cast<const Register<T>*>(from)[i];
    return s;
  }
  static INLINE Register<T> load_register(const T* from) {  // needs no alignment
    typedef Register<T> Loose __attribute__((aligned(sizeof(T)), may_alias));
    return *reinterpret_cast<const Loose*>(from);
  }
  static INLINE Strip load_anywhere(const T* from) {
    Strip s;
    for (int i = 0; i < count; ++i) s.r[i] = load_register(from + i * lanes);
    return s;
  }
  INLINE void store(T* to) const {
    for (int i = 0; i < count; ++i) reinterpret_cast<Register<T>*>(to)[i] = r[i];
  }

  INLINE void store_anywhere(T* to) const {
    typedef Register<T> Loose __attribute__((aligned(sizeof(T)), may_alias));
    for (int i = 0; i < count; ++i) reinterpret_cast<Loose*>(to)[i] = r[i];
  }

  // n numbers, W at most, and zeros behind them: what follows them is not touched.
  static INLINE Strip load_part(const T* from, int n) {
#ifdef HAS_PARTS
    Strip s;
    for (int i = 0; i < count; ++i) s.r[i] = load_first(from + i * lanes, of_register(i, n));
    return s;
#else
    alignas(64) T numbers[W<T>];
    for (int j = 0; j < W<T>; ++j) numbers[j] = j < n ? from[j] : T(0);
    return load(numbers);
#endif
  }
  INLINE void store_part(T* to, int n) const {
#ifdef HAS_PARTS
    for (int i = 0; i < count; ++i) store_first(r[i], to + i * lanes, of_register(i, n));
#else
    alignas(64) T numbers[W<T>];
    store(numbers);
    for (int j = 0; j < W<T>; ++j)
      if (j < n) to[j] = numbers[j];
#endif
  }
  static INLINE int of_register(int i, int n) {  // of n lanes of a strip, how many are register i's
    n -= i * lanes;
    return n < 0 ? 0 : n > lanes ? lanes : n;
  }

  // += a b, rounded once. Left to itself, g++ overwrites a factor, and moves sums about and out.
  INLINE void add_product(Strip a, Strip b) {
    for (int i = 0; i < count; ++i) add_products(r[i], a.r[i], b.r[i]);
  }

  INLINE Strip& operator+=(Strip b) { return *this = *this + b; }
  INLINE Strip& operator-=(Strip b) { return *this = *this - b; }
  INLINE Strip& operator*=(Strip b) { return *this = *this * b; }
#define STRIP_OPERATOR(op)                                       \
  friend INLINE Strip operator op(Strip a, Strip b) {            \
    for (int i = 0; i < count; ++i) a.r[i] = a.r[i] op b.r[i];   \
    return a;                                                    \
  }
  STRIP_OPERATOR(+)
  STRIP_OPERATOR(-)
  STRIP_OPERATOR(*)
  STRIP_OPERATOR(/)
#undef STRIP_OPERATOR
  friend INLINE Strip fused(Strip a, Strip b, Strip c) {
    for (int i = 0; i < count; ++i) c.r[i] = ::fused(a.r[i], b.r[i], c.r[i]);
    return c;
  }
  friend INLINE Strip sqrt(Strip a) {
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < lanes; ++j) a.r[i][j] = ::sqrt(a.r[i][j]);
    return a;
  }
};

// ------------------------------------------------------------------------------ the other way round

#if defined(__clang__)
#define SHUFFLED(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

// A square of numbers, rows of 16 bytes.
template <class T> struct Square;
template <> struct Square<float> {
  typedef float Row __attribute__((vector_size(16)));
  typedef int Places __attribute__((vector_size(16)));
  static constexpr int side = 4;

  static INLINE void transpose(Row (&r)[4]) {
    const Row a = SHUFFLED(Places, r[0], r[1], 0, 4, 1, 5), b = SHUFFLED(Places, r[2], r[3], 0, 4, 1, 5);
    const Row c = SHUFFLED(Places, r[0], r[1], 2, 6, 3, 7), d = SHUFFLED(Places, r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLED(Places, a, b, 0, 1, 4, 5);
    r[1] = SHUFFLED(Places, a, b, 2, 3, 6, 7);
    r[2] = SHUFFLED(Places, c, d, 0, 1, 4, 5);
    r[3] = SHUFFLED(Places, c, d, 2, 3, 6, 7);
  }
};
template <> struct Square<double> {
  typedef double Row __attribute__((vector_size(16)));
  typedef long long Places __attribute__((vector_size(16)));
  static constexpr int side = 2;

  static INLINE void transpose(Row (&r)[2]) {
    const Row a = r[0];
    r[0] = SHUFFLED(Places, a, r[1], 0, 2);
    r[1] = SHUFFLED(Places, a, r[1], 1, 3);
  }
};
#undef SHUFFLED

// to(c, r) = scale from(r, c). Rows are so many numbers apart.
template <class T>
inline void copy_transposed(const T* from, ptrdiff_t from_row, int rows, int columns, T* to,
                            ptrdiff_t to_row, T scale = T(1)) {
  typedef typename Square<T>::Row Row;
  typedef Row Loose __attribute__((aligned(sizeof(T)), may_alias));
  constexpr int Q = Square<T>::side;
  for (int c = 0; c < columns; c += Q)
    for (int r = 0; r < rows; r += Q) {
      const T* const here = from + r * from_row + c;
      T* const there = to + c * to_row + r;
      if (columns - c >= Q && rows - r >= Q) {
        Row square[Q];
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i)
          square[i] = *reinterpret_cast<const Loose*>(here + i * from_row) * scale;
        Square<T>::transpose(square);
#pragma GCC unroll 4
        for (int i = 0; i < Q; ++i) *reinterpret_cast<Loose*>(there + i * to_row) = square[i];
        continue;
      }
      for (int i = 0; i < Q && i < columns - c; ++i)
        for (int j = 0; j < Q && j < rows - r; ++j) there[i * to_row + j] = here[j * from_row + i] * scale;
    }
}

}  // namespace
