// c(a, y) and ∂c/∂a of one output, C_x = Σ_j c(a_j, y_j). The same functions
// stand in backprop_gpu/costs.py, where each has its formula.
//
// `term_from_z` is c(σ(z), y) for the one σ with which BP1 collapses to a - y,
// without the rounding of a. Softmax needs two numbers of its row for that.
#pragma once

// The floats strictly inside (0, 1) or (0, inf): rounding may have put a on the edge.
template <class T> __device__ T smallest();
template <> __device__ inline float smallest<float>() { return 1.17549435e-38f; }
template <> __device__ inline double smallest<double>() { return 2.2250738585072014e-308; }
template <class T> __device__ T below_one();
template <> __device__ inline float below_one<float>() { return 0.99999994f; }
template <> __device__ inline double below_one<double>() { return 0.99999999999999989; }

template <class T> __device__ T largest();
template <> __device__ inline float largest<float>() { return 3.40282347e+38f; }
template <> __device__ inline double largest<double>() { return 1.7976931348623157e+308; }

template <class T> __device__ T clip_positive(T a) { return a < smallest<T>() ? smallest<T>() : a; }
template <class T> __device__ T clip_unit(T a) {
  return a > below_one<T>() ? below_one<T>() : clip_positive(a);
}

struct Quadratic {
  static constexpr bool row_of_softmax = false;
  template <class T> static __device__ T term(T a, T y) { return T(0.5) * (a - y) * (a - y); }
  template <class T> static __device__ T gradient(T a, T y) { return a - y; }
  template <class T> static __device__ T term_from_z(T, T a, T y) { return term(a, y); }
};

struct BinaryCrossEntropy {
  static constexpr bool row_of_softmax = false;
  template <class T> static __device__ T term(T a, T y) {
    a = clip_unit(a);
    const T other = log1p(-a);
    return -(y * (log(a) - other) + other);
  }
  template <class T> static __device__ T gradient(T a, T y) {
    const T inside = clip_unit(a);
    return (a - y) / (inside * (T(1) - inside));
  }
  // ln(1 + e^z) - y z
  template <class T> static __device__ T term_from_z(T z, T, T y) {
    return (z < T(0) ? log1p(exp(z)) : z + log1p(exp(-z))) - y * z;
  }
};

struct CategoricalCrossEntropy {
  static constexpr bool row_of_softmax = true;
  template <class T> static __device__ T term(T a, T y) { return -y * log(clip_positive(a)); }
  template <class T> static __device__ T gradient(T a, T y) { return -y / clip_positive(a); }
  // ln a_j = z_j - max z + ln max a, since the largest a is 1 / Σ e^(z - max z).
  template <class T> static __device__ T term_of_row(T z, T y, T z_max, T a_max) {
    return -y * (z - z_max + log(a_max));
  }
};

struct Poisson {
  static constexpr bool row_of_softmax = false;
  template <class T> static __device__ T term(T a, T y) { return a - y * log(clip_positive(a)); }
  // Where y / a would be infinite σ' is 0, and their product should not be NaN.
  template <class T> static __device__ T gradient(T a, T y) {
    const T ratio = y / clip_positive(a);
    return T(1) - (ratio > largest<T>() ? largest<T>() : ratio);
  }
  template <class T> static __device__ T term_from_z(T z, T a, T y) { return a - y * z; }
};
