// C and BP1 of an output. The same formulas stand in backprop_gpu/costs/, where each has its source,
// and BP1 its rule.
//
// Most costs are sums over outputs, C_x = Σ_j c(a_j, y_j). Of those `term` is c; `inside` gives ā, and
// `error` r slope / V at ā: δ where the slope is σ', q where it is ā. j is the output's number.
// `term_from_z` is c(σ(z), y) for the one σ with which BP1 collapses to a - y, without the rounding
// of a; softmax needs two numbers of its row for that.
//
// A cost of `pairs` has outputs j and j + n/2 that belong together, one `by_row` needs sums over the
// row: `OutputRow` makes them, as it does for softmax.
//
// A y that is NaN is a missing label: `term_of` and `error_of` are 0 there. Everybody calls those.
#pragma once

// The floats strictly inside (0, 1) or (0, inf): rounding may have put a on the edge.
template <class T> __device__ T smallest();
template <> __device__ float smallest<float>() { return 1.17549435e-38f; }
template <> __device__ double smallest<double>() { return 2.2250738585072014e-308; }
template <class T> __device__ T below_one();
template <> __device__ float below_one<float>() { return 0.99999994f; }
template <> __device__ double below_one<double>() { return 0.99999999999999989; }

// A NaN stays one.
template <class T> __device__ T clip_positive(T a) { return a < smallest<T>() ? smallest<T>() : a; }
template <class T> __device__ T clip_unit(T a) {
  return a > below_one<T>() ? below_one<T>() : clip_positive(a);
}
template <class T> __device__ T size_of(T x) { return x < T(0) ? -x : x; }
template <class T> __device__ T sign_of(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x; }

// A cost's own numbers, compiled in as the bits of doubles.
template <unsigned long long... BITS> struct Constants {
  static constexpr int count = sizeof...(BITS);
  __device__ double operator[](int i) const {
    constexpr unsigned long long all[] = {BITS...};
    return __builtin_bit_cast(double, all[i]);
  }
};

// What a cost is, unless it says otherwise.
struct SumOverOutputs {
  static constexpr bool row_of_softmax = false, pairs = false, by_row = false;
  template <class T> __device__ T inside(T a) const { return a; }
  // Of costs that collapse with no σ nobody asks.
  template <class T> __device__ T term_from_z(T, T, T) const { return T(0); }
};

struct Quadratic : SumOverOutputs {
  template <class T> __device__ T term(T a, T y, int) const { return T(0.5) * (a - y) * (a - y); }
  template <class T> __device__ T error(T a, T y, T slope, int) const { return (a - y) * slope; }
  template <class T> __device__ T term_from_z(T, T a, T y) const { return term(a, y, 0); }
};

struct BinaryCrossEntropy : SumOverOutputs {
  template <class T> __device__ T term(T a, T y, int) const {
    a = clip_unit(a);
    const T other = log1p(-a);
    return -(y * (log(a) - other) + other);
  }
  template <class T> __device__ T inside(T a) const { return clip_unit(a); }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    return (a - y) * (slope / (a * (T(1) - a)));
  }
  // ln(1 + e^z) - y z
  template <class T> __device__ T term_from_z(T z, T, T y) const {
    return (z < T(0) ? log1p(exp(z)) : z + log1p(exp(-z))) - y * z;
  }
};

struct CategoricalCrossEntropy : SumOverOutputs {
  static constexpr bool row_of_softmax = true;
  template <class T> __device__ T term(T a, T y, int) const { return -y * log(clip_positive(a)); }
  template <class T> __device__ T inside(T a) const { return clip_positive(a); }
  template <class T> __device__ T error(T a, T y, T slope, int) const { return -y * (slope / a); }
  // ln a_j = z_j - max z + ln max a, since the largest a is 1 / Σ e^(z - max z).
  template <class T> __device__ T term_of_row(T z, T y, T z_max, T a_max) const {
    return -y * (z - z_max + log(a_max));
  }
};

struct Poisson : SumOverOutputs {
  template <class T> __device__ T term(T a, T y, int) const { return a - y * log(clip_positive(a)); }
  template <class T> __device__ T inside(T a) const { return clip_positive(a); }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    return (a - y) * (slope / a);
  }
  template <class T> __device__ T term_from_z(T z, T a, T y) const { return a - y * z; }
};

struct AbsoluteError : SumOverOutputs {
  template <class T> __device__ T term(T a, T y, int) const { return size_of(a - y); }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    return sign_of(a - y) * slope;
  }
};

// h = k (|r| - ½ k) with k = min(|r|, δ)
template <class CONSTANTS> struct Huber : SumOverOutputs {
  CONSTANTS constants;
  template <class T> __device__ T term(T a, T y, int) const {
    const T delta = T(constants[0]), r = size_of(a - y), kept = r > delta ? delta : r;
    return kept * (r - T(0.5) * kept);
  }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    const T delta = T(constants[0]), r = a - y;
    return (r > delta ? delta : r < -delta ? -delta : r) * slope;
  }
};

// Output j is of quantile j modulo their count.
template <class CONSTANTS> struct Quantile : SumOverOutputs {
  CONSTANTS constants;
  template <class T> __device__ T above(int j) const {
    return T(1) - T(constants[constants.count == 1 ? 0 : j % constants.count]);
  }
  template <class T> __device__ T term(T a, T y, int j) const {
    const T r = a - y, share = above<T>(j);
    return r > T(0) ? share * r : (share - T(1)) * r;
  }
  template <class T> __device__ T error(T a, T y, T slope, int j) const {
    const T sign = sign_of(a - y), share = above<T>(j);
    return (sign < T(0) ? share - T(1) : sign * share) * slope;
  }
};

// Of these y is -1 or 1.
struct Hinge : SumOverOutputs {
  template <class T> static __device__ T lack(T a, T y) {
    const T lack = T(1) - a * y;
    return lack < T(0) ? T(0) : lack;
  }
  template <class T> __device__ T term(T a, T y, int) const { return lack(a, y); }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    return -(sign_of(lack(a, y)) * y) * slope;
  }
};

struct SquaredHinge : SumOverOutputs {
  template <class T> __device__ T term(T a, T y, int) const {
    const T lack = Hinge::lack(a, y);
    return lack * lack;
  }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    return T(-2) * (Hinge::lack(a, y) * y) * slope;
  }
};

// (1 - a)^γ and a^γ are e^(γ ln(1 - a)) and e^(γ ln a).
template <class CONSTANTS> struct Focal : SumOverOutputs {
  CONSTANTS constants;
  template <class T> __device__ T inside(T a) const { return clip_unit(a); }
  template <class T> __device__ T term(T a, T y, int) const {
    a = clip_unit(a);
    const T gamma = T(constants[0]), ln = log(a), other = log1p(-a);
    T sum = 0;
#pragma unroll 1  // of double precision, two at once would not do without a stack
    for (int right = 0; right < 2; ++right)
      sum += exp(gamma * (right ? other : ln)) * (right ? y * ln : (T(1) - y) * other);
    return -sum;
  }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    const T gamma = T(constants[0]), rest = T(1) - a, ln = log(a), other = log1p(-a);
    const T right = exp(gamma * other) * (gamma * a * ln - rest);
    const T wrong = exp(gamma * ln) * (gamma * rest * other - a);
    return (slope / (a * rest)) * (y * right - (T(1) - y) * wrong);
  }
};

template <class CONSTANTS> struct CategoricalFocal : SumOverOutputs {
  CONSTANTS constants;
  template <class T> __device__ T inside(T a) const { return clip_unit(a); }
  template <class T> __device__ T term(T a, T y, int) const {
    a = clip_unit(a);
    return exp(T(constants[0]) * log1p(-a)) * (-y * log(a));
  }
  template <class T> __device__ T error(T a, T y, T slope, int) const {
    const T gamma = T(constants[0]), rest = T(1) - a;
    const T right = exp(gamma * log1p(-a)) * (gamma * a * log(a) - rest);
    return (slope / (a * rest)) * (y * right);
  }
};

// Output j < n/2 is a mean μ, and j + n/2 the logarithm s of its variance; y stands at both.
struct GaussianNll : SumOverOutputs {
  static constexpr bool pairs = true;
};

struct Cosine : SumOverOutputs {
  static constexpr bool by_row = true;
};

template <class Cost, class T> __device__ T term_of(const Cost& cost, T a, T y, int j) {
  return y == y ? cost.term(a, y, j) : T(0);
}
template <class Cost, class T>
__device__ T error_of(const Cost& cost, T inside, T y, T slope, int j) {
  return y == y ? cost.error(inside, y, slope, j) : T(0);
}
template <class Cost, class T> __device__ T term_of_z(const Cost& cost, T z, T a, T y) {
  return y == y ? cost.term_from_z(z, a, y) : T(0);
}
template <class Cost, class T>
__device__ T term_of_softmax(const Cost& cost, T z, T y, T z_max, T a_max) {
  return y == y ? cost.term_of_row(z, y, z_max, a_max) : T(0);
}

// c and the two δ of outputs that belong together; the slopes are σ'.
template <class T> struct Pair {
  T term, of_first, of_second;
};
template <class T>
__device__ Pair<T> pair_of(const GaussianNll&, T mean, T log_variance, T y, T slope_of_mean,
                           T slope_of_log_variance) {
  if (y != y) return {T(0), T(0), T(0)};
  const T r = mean - y, precision = exp(-log_variance), square = r * r * precision;
  return {T(0.5) * (log_variance + square), r * precision * slope_of_mean,
          T(0.5) * (T(1) - square) * slope_of_log_variance};
}

// Where BP1 collapses.
template <class T> __device__ T difference_of(T a, T y) { return y == y ? a - y : T(0); }

// What an output's δ takes from the others of its row: `add` every output of the row, a lane some of
// them; add the lanes' `sums`; then `finish`, and ask for each `term` and `error`. With softmax,
// δ_j = q_j - ā_j Σ_k q_k.
template <class T, class Cost> struct OutputRow {
  Cost cost;
  T sums[1] = {};  // Σ_k q_k
  __device__ void add(T a, T y, int j) {
    a = cost.inside(a);
    sums[0] += error_of(cost, a, y, a, j);
  }
  __device__ void finish() {}
  __device__ T term(T a, T y, int j) const { return term_of(cost, a, y, j); }
  // `slope` is a with softmax, else σ'.
  __device__ T error(T a, T y, T, int j) const {
    a = cost.inside(a);
    return error_of(cost, a, y, a, j) - a * sums[0];
  }
};

// q = r / (1 - ā). Above ½, where 1 - ā is the sum of the other ā, δ_j is r_j - ā_j Σ_{k≠j} q_k.
template <class T> struct OutputRow<T, BinaryCrossEntropy> {
  BinaryCrossEntropy cost;
  T sums[3] = {};  // Σ q and Σ ā up to ½; r above
  T all = 0;       // Σ_k q_k
  __device__ void add(T a, T y, int) {
    a = clip_positive(a);
    if (a > T(0.5)) {
      sums[2] += difference_of(a, y);
    } else {
      sums[0] += difference_of(a, y) / (T(1) - a);
      sums[1] += a;
    }
  }
  __device__ void finish() { all = sums[0] + sums[2] / sums[1]; }
  __device__ T term(T a, T y, int j) const { return term_of(cost, a, y, j); }
  __device__ T error(T a, T y, T, int) const {
    a = clip_positive(a);
    const T r = difference_of(a, y);
    return a > T(0.5) ? r - a * sums[0] : r / (T(1) - a) - a * all;
  }
};

// 1 - a·y / (‖a‖ ‖y‖) in parts that add up to it. With softmax, too, δ_j is g_j a_j: Σ_k g_k a_k = 0.
template <class T> struct OutputRow<T, Cosine> {
  Cosine cost;
  T sums[3] = {};  // a·y, ‖a‖², ‖y‖²
  T of_both = 0, of_y = 0, ratio = 0;  // 1 / (‖a‖ ‖y‖), 1 / ‖y‖² and a·y / ‖a‖², or 0
  __device__ void add(T a, T y, int) {
    if (y != y) return;
    sums[0] += a * y;
    sums[1] += a * a;
    sums[2] += y * y;
  }
  __device__ void finish() {
    const T both = sqrt(sums[1]) * sqrt(sums[2]);
    if (sums[2] != T(0)) of_y = T(1) / sums[2];
    if (both != T(0)) of_both = T(1) / both, ratio = sums[0] / sums[1];
  }
  __device__ T term(T a, T y, int) const {
    return y == y ? y * y * of_y - a * y * of_both : T(0);
  }
  __device__ T error(T a, T y, T slope, int) const {
    return y == y ? (a * ratio - y) * of_both * slope : T(0);
  }
};
