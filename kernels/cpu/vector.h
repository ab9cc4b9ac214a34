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
  static INLINE Strip load_anywhere(const T* from) {  // needs no alignment
    typedef Register<T> Loose __attribute__((aligned(sizeof(T)), may_alias));
    Strip s;
    for (int i = 0; i < count; ++i) s.r[i] = reinterpret_cast<const Loose*>(from)[i];
    return s;
  }
  INLINE void store(T* to) const {
    for (int i = 0; i < count; ++i) reinterpret_cast<Register<T>*>(to)[i] = r[i];
  }

  INLINE void store_anywhere(T* to) const {
    typedef Register<T> Loose __attribute__((aligned(sizeof(T)), may_alias));
    for (int i = 0; i < count; ++i) reinterpret_cast<Loose*>(to)[i] = r[i];
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

}  // namespace
