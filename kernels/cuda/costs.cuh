// c(a, y) of one output, C_x = Σ_j c(a_j, y_j), and BP1. The same functions stand in
// backprop_gpu/costs.py, where each has its formula, and BP1 its rule.
//
// `inside` gives ā, and `error` r slope / V at ā: δ where the slope is σ', q where it is ā. A pair
// that collapses needs neither.
//
// `term_from_z` is c(σ(z), y) for the one σ with which BP1 collapses to a - y,
// without the rounding of a. Softmax needs two numbers of its row for that.
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

struct Quadratic {
  static constexpr bool row_of_softmax = false;
  template <class T> static __device__ T term(T a, T y) { return T(0.5) * (a - y) * (a - y); }
  template <class T> static __device__ T inside(T a) { return a; }
  template <class T> static __device__ T error(T a, T y, T slope) { return (a - y) * slope; }
  template <class T> static __device__ T term_from_z(T, T a, T y) { return term(a, y); }
};

struct BinaryCrossEntropy {
  static constexpr bool row_of_softmax = false;
  template <class T> static __device__ T term(T a, T y) {
    a = clip_unit(a);
    const T other = log1p(-a);
    return -(y * (log(a) - other) + other);
  }
  template <class T> static __device__ T inside(T a) { return clip_unit(a); }
  template <class T> static __device__ T error(T a, T y, T slope) {
    return (a - y) * (slope / (a * (T(1) - a)));
  }
  // ln(1 + e^z) - y z
  template <class T> static __device__ T term_from_z(T z, T, T y) {
    return (z < T(0) ? log1p(exp(z)) : z + log1p(exp(-z))) - y * z;
  }
};

struct CategoricalCrossEntropy {
  static constexpr bool row_of_softmax = true;
  template <class T> static __device__ T term(T a, T y) { return -y * log(clip_positive(a)); }
  template <class T> static __device__ T inside(T a) { return clip_positive(a); }
  template <class T> static __device__ T error(T a, T y, T slope) { return -y * (slope / a); }
  // ln a_j = z_j - max z + ln max a, since the largest a is 1 / Σ e^(z - max z).
  template <class T> static __device__ T term_of_row(T z, T y, T z_max, T a_max) {
    return -y * (z - z_max + log(a_max));
  }
};

struct Poisson {
  static constexpr bool row_of_softmax = false;
  template <class T> static __device__ T term(T a, T y) { return a - y * log(clip_positive(a)); }
  template <class T> static __device__ T inside(T a) { return clip_positive(a); }
  template <class T> static __device__ T error(T a, T y, T slope) { return (a - y) * (slope / a); }
  template <class T> static __device__ T term_from_z(T z, T a, T y) { return a - y * z; }
};

// BP1 with softmax, δ_j = q_j - ā_j Σ_k q_k: `add` every output of the row, a lane some of them; add
// the lanes' `sums`; then `finish`, and ask for each `error`.
template <class T, class Cost> struct SoftmaxRow {
  T sums[1] = {};  // Σ_k q_k
  __device__ void add(T a, T y) {
    a = Cost::inside(a);
    sums[0] += Cost::error(a, y, a);
  }
  __device__ void finish() {}
  __device__ T error(T a, T y) const {
    a = Cost::inside(a);
    return Cost::error(a, y, a) - a * sums[0];
  }
};

// q = r / (1 - ā). Above ½, where 1 - ā is the sum of the other ā, δ_j is r_j - ā_j Σ_{k≠j} q_k.
template <class T> struct SoftmaxRow<T, BinaryCrossEntropy> {
  T sums[3] = {};  // Σ q and Σ ā up to ½; r above
  T all = 0;       // Σ_k q_k
  __device__ void add(T a, T y) {
    a = clip_positive(a);
    if (a > T(0.5)) {
      sums[2] += a - y;
    } else {
      sums[0] += (a - y) / (T(1) - a);
      sums[1] += a;
    }
  }
  __device__ void finish() { all = sums[0] + sums[2] / sums[1]; }
  __device__ T error(T a, T y) const {
    a = clip_positive(a);
    return a > T(0.5) ? a - y - a * sums[0] : (a - y) / (T(1) - a) - a * all;
  }
};
