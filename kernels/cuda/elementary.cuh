// exp, expm1, log, log1p, tanh and erfc for float and double. The same source gives the same
// bits on every machine with fma: only + - * /, fused, comparisons and integers, in a fixed
// order, without a table or a branch, so that a loop over an array becomes SIMD code.
// Compile with -ffp-contract=off (CUDA: --fmad=false). How the coefficients were made: fit.py.
//
// Include it inside a namespace that has defined, for float and double,
//   fused(a, b, c)   a b + c, rounded once
//   bits(x)          float -> int, double -> long long
//   number(i)        the inverse of bits
// and, for a CPU, __device__ as `inline __attribute__((always_inline))`.
// Without fma, a b + c may stand in for fused: about 1 ulp is lost.
#pragma once

template <class T> struct Format;

template <> struct Format<float> {
  using Int = int;
  using Word = unsigned;
  static constexpr int fraction = 23;              // bits after the leading 1
  static constexpr Word one = 0x3f800000;          // the bits of 1
  static constexpr Word infinity = 0x7f800000;
  static constexpr Word root_half = 0x3f3504f3;    // the bits of sqrt(1/2)
  static constexpr Word upper_half = 0xfffff000;   // keeps 12 bits: the square is exact
  static constexpr float magic = 0x1.8p23f;        // x + magic has round(x) in its last bits
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float ln2_hi = 0x1.62e4p-1f;    // 15 bits: n ln2_hi is exact
  static constexpr float ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float exp_min = -104, exp_max = 89;  // exp is 0 and inf here
  static constexpr float erfc_max = 10.1f;              // erfc is 0 here
  static constexpr float erfc_k = 3;
  static constexpr float smallest_normal = 0x1p-126f;
};

template <> struct Format<double> {
  using Int = long long;
  using Word = unsigned long long;
  static constexpr int fraction = 52;
  static constexpr Word one = 0x3ff0000000000000;
  static constexpr Word infinity = 0x7ff0000000000000;
  static constexpr Word root_half = 0x3fe6a09e667f3bcd;
  static constexpr Word upper_half = 0xfffffffff8000000;
  static constexpr double magic = 0x1.8p52;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_hi = 0x1.62e42fefa38p-1;
  static constexpr double ln2_lo = 0x1.ef35793c7673p-45;
  static constexpr double exp_min = -746, exp_max = 710;
  static constexpr double erfc_max = 27.3;
  static constexpr double erfc_k = 3.5;
  static constexpr double smallest_normal = 0x1p-1022;
};

template <class T> using WordOf = typename Format<T>::Word;

template <class T> __device__ WordOf<T> word(T x) { return WordOf<T>(bits(x)); }

template <class T> __device__ T from_word(WordOf<T> w) {
  return number(typename Format<T>::Int(w));
}

template <class T> __device__ T magnitude(T x) { return from_word<T>(word(x) & (~WordOf<T>(0) >> 1)); }

// c0 + c1 x + c2 x² + ...
#ifdef PAIRS
template <class T> __device__ T pairs(T, T, T c0) { return c0; }
template <class T> __device__ T pairs(T x, T, T c0, T c1) { return fused(x, c1, c0); }
template <class T, class... Rest> __device__ T pairs(T x, T z, T c0, T c1, Rest... rest) {
  return fused(z, pairs(x, z, rest...), fused(x, c1, c0));
}
template <class T, class... Rest> __device__ T horner(T x, Rest... rest) {
  return pairs(x, x * x, rest...);
}
#else
template <class T> __device__ T horner(T, T c0) { return c0; }
template <class T, class... Rest> __device__ T horner(T x, T c0, Rest... rest) {
  return fused(x, horner(x, rest...), c0);
}
#endif

// (e^r - 1 - r) / r² for |r| <= ln2 / 2.
__device__ float exp_tail(float r) {
  return horner(r, 0x1.fffffep-2f, 0x1.5554b0p-3f, 0x1.555674p-5f, 0x1.1227b0p-7f,
                0x1.6bebfap-10f);
}
__device__ double exp_tail(double r) {
  return horner(r, 0x1.0000000000005p-1, 0x1.5555555555539p-3, 0x1.555555555228ep-5,
                0x1.1111111119010p-7, 0x1.6c16c17ee727ep-10, 0x1.a01a0174fb3e7p-13,
                0x1.a019a74a6b443p-16, 0x1.71de8824f9d45p-19, 0x1.28a2069aea4b3p-22,
                0x1.ae6baba0943d2p-26);
}
template <class T> __device__ T small_expm1(T r) { return fused(r * r, exp_tail(r), r); }

// x - n ln2
template <class T> __device__ T without_ln2(T x, T n) {
  return fused(n, -Format<T>::ln2_lo, fused(n, -Format<T>::ln2_hi, x));
}

// The magic number of `scaled`: twice the exponent's bias is added to n.
template <class T> struct Scale {
  static constexpr T magic = Format<T>::magic + T(2 * (Format<T>::one >> Format<T>::fraction));
};

// y 2^n, where t = n + magic. Two factors, for a result that is subnormal or infinite.
template <class T> __device__ T scaled(T y, T t) {
  constexpr int fraction = Format<T>::fraction;
  const WordOf<T> w = word(t), half = w >> 1;
  return y * from_word<T>(half << fraction) * from_word<T>((w - half) << fraction);
}

// e^x = 2^n e^r, n = round(x / ln2). Out of range the clamped x gives 0 or inf.
template <class T> __device__ T exp(T x) {
  using F = Format<T>;
  x = x < F::exp_min ? F::exp_min : x;
  x = x > F::exp_max ? F::exp_max : x;  // a NaN stays one
  const T t = fused(x, F::log2_e, Scale<T>::magic);
  const T p = small_expm1(without_ln2(x, t - Scale<T>::magic));
  return scaled(T(1) + p, t);
}

// e^x - 1 = 2 (2^(n-1) (e^r - 1) + (2^(n-1) - 1/2)): half of 2^n is finite. hi = x - n ln2_hi is
// exact, and what is small is added last. Tiny x is its own result: -0 and subnormals.
template <class T> __device__ T expm1(T x) {
  using F = Format<T>;
  constexpr T magic = F::magic + T((F::one >> F::fraction) - 1);
  T c = x < T(-40) ? T(-40) : x;
  c = c > F::exp_max ? F::exp_max : c;
  const T t = fused(c, F::log2_e, magic), n = t - magic;
  const T s = from_word<T>(word(t) << F::fraction);
  const T hi = fused(n, -F::ln2_hi, c), lo = n * F::ln2_lo, r = hi - lo;
  const T h = fused(s, fused(r * r, exp_tail(r), -lo), fused(s, hi, s - T(0.5)));
  return magnitude(x) < T(0x1p-60) ? x : h + h;
}

// (tanh(r) / r - 1) / z for |r| <= ln2 / 4, z = r².
__device__ float tanh_tail(float z) {
  return horner(z, -0x1.555508p-2f, 0x1.10da34p-3f, -0x1.a3d1eap-5f);
}
__device__ double tanh_tail(double z) {
  return horner(z, -0x1.55555555554b8p-2, 0x1.11111110f3c78p-3, -0x1.ba1ba17f21aabp-5,
                0x1.664f2c542ef61p-6, -0x1.2266fde8f4cccp-7, 0x1.d4c9a77369b1cp-9, -0x1.56fc6e92f5259p-10);
}

// |x| = n ln2 / 2 + r, and tanh(n ln2 / 2) = (2^n - 1) / (2^n + 1), so by the sum formula
// tanh|x| = (2^n - 1 + (2^n + 1) tanh r) / (2^n + 1 + (2^n - 1) tanh r). Here s = 2^(n-1).
template <class T> __device__ T tanh(T x) {
  using F = Format<T>;
  constexpr T magic = F::magic + T((F::one >> F::fraction) - 1);
  T a = magnitude(x);
  a = a > T(20) ? T(20) : a;
  const T t = fused(a - T(0.0859375), T(2) * F::log2_e, magic), n = t - magic;
  const T s = from_word<T>(word(t) << F::fraction), minus = s - T(0.5), plus = s + T(0.5);
  const T hi = fused(n, T(-0.5) * F::ln2_hi, a), r = fused(n, T(-0.5) * F::ln2_lo, hi);
  const T z = r * r, h = fused(r * z, tanh_tail(z), r);
  const T p = fused(plus, h, minus);
  const T q = p / (p + (T(1) - h));
  constexpr WordOf<T> sign = ~(~WordOf<T>(0) >> 1);
  return from_word<T>(word(q) | (word(x) & sign));
}

// log(1 + f) - f + more for 1 + f in [sqrt(1/2), sqrt(2)].
__device__ float log_tail(float f, float more) {
  return fused(f * f, horner(f, -0x1.fffff8p-2f, 0x1.555550p-2f, -0x1.000426p-2f, 0x1.99a3f2p-3f,
                             -0x1.54276cp-3f, 0x1.22719cp-3f, -0x1.0f376ap-3f, 0x1.084868p-3f,
                             -0x1.383010p-4f), more);
}
// With s = f / (2 + f): log(1 + f) = 2 s + s z P(z), z = s²; and 2 s = f - s f.
__device__ double log_tail(double f, double more) {
  const double s = f / (2.0 + f), z = s * s, h = 0.5 * f * f;
  const double p = horner(z, 0x1.5555555555592p-1, 0x1.999999997fd77p-2, 0x1.24924941f4f9cp-2,
                          0x1.c71c52060867fp-3, 0x1.74663fa22cbb2p-3, 0x1.39a1a6f48a9d6p-3,
                          0x1.2f0634af9975fp-3);
  return fused(s, fused(z, p, h), more - h);
}

// x = 2^k m, m in [sqrt(1/2), sqrt(2)): m's bits are w's fraction + root_half, and k + the bias
// are w's upper bits.
template <class T> __device__ WordOf<T> split(T x) {
  return word(x) + (Format<T>::one - Format<T>::root_half);
}
template <class T> __device__ T mantissa(WordOf<T> w) {
  constexpr WordOf<T> mask = (WordOf<T>(1) << Format<T>::fraction) - 1;
  return from_word<T>((w & mask) + Format<T>::root_half);
}
template <class T> __device__ T exponent(WordOf<T> w, T more) {
  using F = Format<T>;
  constexpr WordOf<T> bias = F::one >> F::fraction;
  return from_word<T>((w >> F::fraction) + word(F::magic)) - (F::magic + T(bias) + more);
}

// log's value at the edges: the result stands for 0 < x < inf only.
template <class T> __device__ T log_edges(T x, T result) {
  const T infinity = from_word<T>(Format<T>::infinity);
  const T outside = x == T(0) ? -infinity : infinity - infinity;
  return x > T(0) ? (x < infinity ? result : x) : outside;
}

// n ln2 + log(1 + f). A subnormal x is scaled up first.
template <class T> __device__ T log(T x) {
  using F = Format<T>;
  const bool subnormal = x < F::smallest_normal;
  const WordOf<T> w = split(subnormal ? x * T(0x1p60) : x);
  const T n = exponent(w, subnormal ? T(60) : T(0));
  const T f = mantissa<T>(w) - T(1);
  return log_edges(x, fused(n, F::ln2_hi, f + log_tail(f, n * F::ln2_lo)));
}

// u + c = 1 + x exactly (Knuth's two-sum), u = 2^k (1 + f), and c joins f.
template <class T> __device__ T log1p(T x) {
  using F = Format<T>;
  const T u = T(1) + x, v = u - T(1), c = (T(1) - (u - v)) + (x - v);
  const WordOf<T> w = split(u);
  constexpr WordOf<T> mask = (WordOf<T>(1) << F::fraction) - 1;
  const T scale = from_word<T>(2 * F::one - (w & ~mask));
  const T small = x < T(0x1p60) ? c * scale : T(0);
  const T n = exponent(w, T(0));
  const T g = mantissa<T>(w) - T(1);
  const T f = g + small;
  const T more = small - (f - g);
  const T y = fused(n, F::ln2_hi, f + log_tail(f, fused(n, F::ln2_lo, more)));
  return log_edges(u, x == T(0) ? x : y);
}

// (a + K) / (2 K) e^(a²) erfc(a) in w = (a - K) / (a + K).
__device__ float erfc_factor(float w) {
  return horner(w, 0x1.6e9828p-3f, -0x1.2d8830p-3f, 0x1.92ede0p-4f, -0x1.a7e3c0p-5f,
                0x1.4664cep-6f, -0x1.2528eep-8f, -0x1.ac7480p-13f, 0x1.0d23e6p-11f, -0x1.5299a2p-14f,
                -0x1.c7b6bap-15f);
}
__device__ double erfc_factor(double w) {
  return horner(w, 0x1.3e0a99a0ee914p-3, -0x1.125f977a879f6p-3, 0x1.9627d82db8ac1p-4,
                -0x1.fd5fb892e8489p-5, 0x1.082dbe3d58bc2p-5, -0x1.b02834b390f8fp-7,
                0x1.f08cbf2e1bef1p-9, -0x1.dbe947a0269fbp-12, -0x1.871347ff513c2p-13,
                0x1.ac2339f775e3dp-14, -0x1.933fa58ed5d81p-18, -0x1.66719c5d2baf9p-17,
                0x1.65894deccc720p-19, 0x1.15cf00e575dbdp-20, -0x1.041d2d2d7ae76p-21,
                -0x1.e8d1ae2883324p-24, 0x1.514f39980b89cp-24, 0x1.1d3f65d46cf3ep-26,
                -0x1.96cc667d65b9ep-27, -0x1.a877bc4d16a93p-29, 0x1.5a6930e875611p-30,
                0x1.f6a7c381c7eb1p-32);
}

// e^(-a²) m P(w) for a = |x|, m = 2 K / (a + K) and w = 1 - m, after Shepherd and Laframboise
// (Math. Comp. 36, 1981). a² = hi² + (a - hi) (a + hi), hi the upper half of a's bits: hi² is
// exact. c is the relative error of m; m (1 + c) = m e^c. For x < 0: 2 - that.
template <class T> __device__ T erfc(T x) {
  using F = Format<T>;
  constexpr T k = F::erfc_k, k2 = k + k;
  T a = magnitude(x);
  a = a > F::erfc_max ? F::erfc_max : a;
  const T hi = from_word<T>(word(a) & F::upper_half);
  const T t = fused(a * a, -F::log2_e, Scale<T>::magic);
  const T r = fused(hi - a, hi + a, without_ln2(-hi * hi, t - Scale<T>::magic));
  const T d = a + k, m = k2 / d;
  const T c = fused(-m, a - (d - k), fused(-m, d, k2)) * (1 / k2);
  const T g = m * erfc_factor(fused(-m, c, T(1) - m));
  const T y = scaled(fused(g, small_expm1(r + c), g), t);
  return x < T(0) ? T(2) - y : y;
}
