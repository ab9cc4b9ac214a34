// exp, expm1, log, log1p, tanh and erfc for float and double. The same source gives the same
// bits on every machine with fma: only + - * /, fused, comparisons and integers, in a fixed
// order. No table and no branch: a loop over an array becomes SIMD code. Compile with
// -ffp-contract=off (CUDA: -fmad=false). The coefficients come from tests/support/fit_elementary.py.
//
// Include it inside a namespace that has defined, for float and double,
//   fused(a, b, c)   a b + c, rounded once
//   bits(x)          float -> int, double -> long long
//   number(i)        the inverse of bits
// and, for a CPU, __device__ as `inline __attribute__((always_inline))`. Without fma, a * b + c
// may stand in for fused: only erfc's error grows, to 4.6 ulp.
//
// NaN gives NaN. Values out of range are put right at the end, one select after the other, on
// results already there: given clamped arguments, g++ makes far more instructions.
#pragma once

template <class T> struct Format;

template <> struct Format<float> {
  using Int = int;
  using Word = unsigned;
  static constexpr int fraction = 23;             // bits after the leading 1
  static constexpr Word sign = 0x80000000;
  static constexpr Word one = 0x3f800000;         // the bits of 1
  static constexpr Word infinity = 0x7f800000;
  static constexpr Word root_half = 0x3f3504f3;   // the bits of sqrt(1/2)
  static constexpr Word upper_half = 0xfffff000;  // keeps 12 bits: the square is exact
  static constexpr float smallest_normal = 0x1p-126f;
  static constexpr float bias = 127;              // of the exponent
  static constexpr float magic = 0x1.8p23f;       // x + magic has round(x) in its last bits
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float ln2_hi = 0x1.62e4p-1f;   // 15 bits: n ln2_hi is exact
  static constexpr float ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float exp_min = -104;          // exp is 0 below
  static constexpr float exp_max = 89;            // and inf above
  static constexpr float erfc_max = 10.1f;        // erfc is 0 above
  static constexpr float erfc_k = 3;
};

template <> struct Format<double> {
  using Int = long long;
  using Word = unsigned long long;
  static constexpr int fraction = 52;
  static constexpr Word sign = 0x8000000000000000;
  static constexpr Word one = 0x3ff0000000000000;
  static constexpr Word infinity = 0x7ff0000000000000;
  static constexpr Word root_half = 0x3fe6a09e667f3bcd;
  static constexpr Word upper_half = 0xfffffffff8000000;
  static constexpr double smallest_normal = 0x1p-1022;
  static constexpr double bias = 1023;
  static constexpr double magic = 0x1.8p52;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_hi = 0x1.62e42fefa38p-1;
  static constexpr double ln2_lo = 0x1.ef35793c7673p-45;
  static constexpr double exp_min = -746;
  static constexpr double exp_max = 710;
  static constexpr double erfc_max = 27.3;
  static constexpr double erfc_k = 3.5;
};

// bits and number, unsigned.
template <class T> using WordOf = typename Format<T>::Word;
template <class T> __device__ WordOf<T> word(T x) { return WordOf<T>(bits(x)); }
template <class T> __device__ T from_word(WordOf<T> w) {
  return number(typename Format<T>::Int(w));
}

template <class T> __device__ T magnitude(T x) { return from_word<T>(word(x) & ~Format<T>::sign); }

// c0 + c1 x + c2 x² + ...
template <class T> __device__ T horner(T, T c0) { return c0; }
template <class T, class... Rest> __device__ T horner(T x, T c0, Rest... rest) {
  return fused(x, horner(x, rest...), c0);
}

// (e^r - 1 - r) / r² for |r| <= ln2 / 2.
__device__ float exp_tail(float r) {
  return horner(r, 0x1.fffffep-2f, 0x1.5554b0p-3f, 0x1.555674p-5f, 0x1.1227b0p-7f, 0x1.6bebfap-10f);
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

// y 2^n from t = n + magic + 2 bias. Two factors, so that only the second one can round.
template <class T> __device__ T scaled(T y, T t) {
  constexpr int fraction = Format<T>::fraction;
  const WordOf<T> w = word(t), half = w >> 1;
  return y * from_word<T>(half << fraction) * from_word<T>((w - half) << fraction);
}

// e^x = 2^n e^r, n = round(x / ln2). 1.05 ulp. Underflows gradually.
template <class T> __device__ T exp(T x) {
  using F = Format<T>;
  constexpr T magic = F::magic + 2 * F::bias;
  const T t = fused(x, F::log2_e, magic);
  const T y = scaled(T(1) + small_expm1(without_ln2(x, t - magic)), t);
  const T above = x < F::exp_min ? T(0) : y;
  return x > F::exp_max ? from_word<T>(F::infinity) : above;
}

// e^x - 1 = 2 (s (e^r - 1) + (s - 1/2)), s = 2^(n-1): finite for the greatest x. hi is exact, and
// what is small is added last. 1.25 ulp. Tiny x is its own result: -0 and subnormals.
template <class T> __device__ T expm1(T x) {
  using F = Format<T>;
  constexpr T magic = F::magic + (F::bias - 1);
  const T t = fused(x, F::log2_e, magic), n = t - magic;
  const T s = from_word<T>(word(t) << F::fraction);
  const T hi = fused(n, -F::ln2_hi, x), lo = n * F::ln2_lo, r = hi - lo;
  const T h = fused(s, fused(r * r, exp_tail(r), -lo), fused(s, hi, s - T(0.5)));
  const T y = magnitude(x) < T(0x1p-60) ? x : h + h;
  const T above = x < T(-40) ? T(-1) : y;
  return x > F::exp_max ? from_word<T>(F::infinity) : above;
}

// (tanh(r) / r - 1) / z for z = r², -0.088 <= r <= 0.26.
__device__ float tanh_tail(float z) {
  return horner(z, -0x1.555508p-2f, 0x1.10da34p-3f, -0x1.a3d1eap-5f);
}
__device__ double tanh_tail(double z) {
  return horner(z, -0x1.55555555554b8p-2, 0x1.11111110f3c78p-3, -0x1.ba1ba17f21aabp-5,
                0x1.664f2c542ef61p-6, -0x1.2266fde8f4cccp-7, 0x1.d4c9a77369b1cp-9,
                -0x1.56fc6e92f5259p-10);
}

// |x| = n ln2 / 2 + r. With h = tanh r and tanh(n ln2 / 2) = (2^n - 1) / (2^n + 1):
// tanh|x| = p / (p + (1 - h)), p = (s - 1/2) + (s + 1/2) h, s = 2^(n-1). For n = 0 that is h.
// The shift of 11/128 makes n = 0 up to 0.26. 1.85 ulp. Odd, -0 too; never beyond 1.
template <class T> __device__ T tanh(T x) {
  using F = Format<T>;
  constexpr T magic = F::magic + (F::bias - 1);
  const T a = magnitude(x);
  const T t = fused(a - T(0.0859375), 2 * F::log2_e, magic), n = t - magic;
  const T s = from_word<T>(word(t) << F::fraction);
  const T r = fused(n, F::ln2_lo / -2, fused(n, F::ln2_hi / -2, a)), z = r * r;
  const T h = fused(r * z, tanh_tail(z), r);
  const T p = fused(s + T(0.5), h, s - T(0.5)), q = p / (p + (T(1) - h));
  return from_word<T>(word(a > T(20) ? T(1) : q) | (word(x) & F::sign));
}

// log(1 + f) - f + more, where 1 + f is in [sqrt(1/2), sqrt(2)].
__device__ float log_tail(float f, float more) {
  return fused(f * f, horner(f, -0x1.fffff8p-2f, 0x1.555550p-2f, -0x1.000426p-2f, 0x1.99a3f2p-3f,
                             -0x1.54276cp-3f, 0x1.22719cp-3f, -0x1.0f376ap-3f, 0x1.084868p-3f,
                             -0x1.383010p-4f), more);
}
// With s = f / (2 + f), z = s²: log(1 + f) = 2 s + s z P(z), and 2 s = f - s f.
__device__ double log_tail(double f, double more) {
  const double s = f / (2.0 + f), z = s * s, h = 0.5 * f * f;
  const double p = horner(z, 0x1.5555555555592p-1, 0x1.999999997fd77p-2, 0x1.24924941f4f9cp-2,
                          0x1.c71c52060867fp-3, 0x1.74663fa22cbb2p-3, 0x1.39a1a6f48a9d6p-3,
                          0x1.2f0634af9975fp-3);
  return fused(s, fused(z, p, h), more - h);
}

// x = 2^k m, m in [sqrt(1/2), sqrt(2)). split(x) holds k + bias in its upper bits, and below them
// what m's bits are beyond root_half.
template <class T> __device__ WordOf<T> split(T x) {
  return word(x) + (Format<T>::one - Format<T>::root_half);
}
template <class T> __device__ T mantissa(WordOf<T> w) {
  return from_word<T>((w & ~(~WordOf<T>(0) << Format<T>::fraction)) + Format<T>::root_half);
}
// k - offset
template <class T> __device__ T exponent(WordOf<T> w, T offset) {
  using F = Format<T>;
  return from_word<T>((w >> F::fraction) + word(F::magic)) - (F::magic + F::bias + offset);
}

// log x, given what it is for 0 < x < inf. log 0 = -inf, and NaN below.
template <class T> __device__ T log_edges(T x, T result) {
  const T infinity = from_word<T>(Format<T>::infinity);
  const T finite = x < infinity ? result : x;
  const T outside = magnitude(x) == T(0) ? -infinity : infinity - infinity;
  return x > T(0) ? finite : outside;
}

// log x = k ln2 + log m. 0.87 ulp. A subnormal x is scaled up first.
template <class T> __device__ T log(T x) {
  using F = Format<T>;
  const bool subnormal = x < F::smallest_normal;
  const WordOf<T> w = split(subnormal ? x * T(0x1p60) : x);
  const T k = exponent(w, subnormal ? T(60) : T(0)), f = mantissa<T>(w) - T(1);
  return log_edges(x, fused(k, F::ln2_hi, f + log_tail(f, k * F::ln2_lo)));
}

// log u, u = 1 + x, with u's rounding error c (Knuth's two-sum) scaled as m is: f = m - 1 + c,
// and what that sum loses goes into the tail. 0.98 ulp. 0 is its own result: -0.
template <class T> __device__ T log1p(T x) {
  using F = Format<T>;
  const T u = T(1) + x, v = u - T(1);
  const WordOf<T> w = split(u);
  const T scale = from_word<T>(2 * F::one - (w & (~WordOf<T>(0) << F::fraction)));  // 2^-k
  const T c = x < T(0x1p60) ? ((T(1) - (u - v)) + (x - v)) * scale : T(0);
  const T k = exponent(w, T(0)), g = mantissa<T>(w) - T(1), f = g + c;
  const T tail = log_tail(f, fused(k, F::ln2_lo, c - (f - g)));
  const T y = log_edges(u, fused(k, F::ln2_hi, f + tail));
  return x == T(0) ? x : y;
}

// e^(a²) erfc(a) / m for m = 2 K / (a + K), a polynomial in w = 1 - m.
__device__ float erfc_factor(float w) {
  return horner(w, 0x1.6e9828p-3f, -0x1.2d8830p-3f, 0x1.92ede0p-4f, -0x1.a7e3c0p-5f,
                0x1.4664cep-6f, -0x1.2528eep-8f, -0x1.ac7480p-13f, 0x1.0d23e6p-11f,
                -0x1.5299a2p-14f, -0x1.c7b6bap-15f);
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

// e^(-a²) m P(w) for a = |x|, after Shepherd and Laframboise (Math. Comp. 36, 1981); 2 - that for
// x < 0. a² = hi² + (a - hi) (a + hi), where hi has half of a's bits: hi² is exact. c is the
// relative error of m; m (1 + c) = m e^c. 2.75 ulp. Underflows gradually.
template <class T> __device__ T erfc(T x) {
  using F = Format<T>;
  constexpr T magic = F::magic + 2 * F::bias, k = F::erfc_k;
  const T a = magnitude(x), hi = from_word<T>(word(a) & F::upper_half);
  const T t = fused(a * a, -F::log2_e, magic);
  const T r = fused(hi - a, hi + a, without_ln2(-hi * hi, t - magic));
  const T d = a + k, m = 2 * k / d;
  const T c = fused(-m, a - (d - k), fused(-m, d, 2 * k)) * (1 / (2 * k));
  const T p = erfc_factor(fused(-m, c, T(1) - m));
  const T y = scaled(fused(m, p, m * p * small_expm1(r + c)), t);
  const T right = a > F::erfc_max ? T(0) : y;
  return x < T(0) ? T(2) - right : right;
}
