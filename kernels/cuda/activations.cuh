// a = σ(z) and σ'(z), elementwise. The same functions stand in
// backprop_gpu/activations.py, where each has its formula.
//
// `from_z` says what σ' is computed from: z where true, otherwise a, so that a
// layer need not store z. Kernels pass that one as `saved`.
#pragma once

struct Sigmoid {
  static constexpr bool from_z = false;
  // exp(-z) may become infinite, and 1 / inf = 0 is the right answer.
  template <class T> static __device__ T value(T z) { return T(1) / (T(1) + exp(-z)); }
  template <class T> static __device__ T derivative(T a) { return a * (T(1) - a); }
};

struct Tanh {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return tanh(z); }
  template <class T> static __device__ T derivative(T a) { return T(1) - a * a; }
};

struct Relu {
  static constexpr bool from_z = false;
  // Not fmax: a NaN must stay one, so that a diverged cost is seen.
  template <class T> static __device__ T value(T z) { return z < T(0) ? T(0) : z; }
  template <class T> static __device__ T derivative(T a) { return a > T(0) ? T(1) : T(0); }
};

struct LeakyRelu {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return z < T(0) ? T(0.01) * z : z; }
  template <class T> static __device__ T derivative(T a) { return a > T(0) ? T(1) : T(0.01); }
};

struct Elu {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return z < T(0) ? expm1(z) : z; }
  template <class T> static __device__ T derivative(T a) { return a < T(0) ? a + T(1) : T(1); }
};

struct Gelu {
  static constexpr bool from_z = true;
  // Φ(z); erfc keeps the digits of the left tail that 1 + erf cancels.
  template <class T> static __device__ T cdf(T z) { return T(0.5) * erfc(T(-0.70710678118654752) * z); }
  template <class T> static __device__ T value(T z) { return z * cdf(z); }
  template <class T> static __device__ T derivative(T z) {
    return cdf(z) + z * T(0.39894228040143268) * exp(T(-0.5) * z * z);
  }
};

struct Silu {
  static constexpr bool from_z = true;
  template <class T> static __device__ T value(T z) { return z * Sigmoid::value(z); }
  template <class T> static __device__ T derivative(T z) {
    const T s = Sigmoid::value(z);
    return s + z * s * (T(1) - s);
  }
};

struct Softplus {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) {
    return z < T(0) ? log1p(exp(z)) : z + log1p(exp(-z));
  }
  template <class T> static __device__ T derivative(T a) { return -expm1(-a); }
};

struct Identity {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return z; }
  template <class T> static __device__ T derivative(T) { return T(1); }
};

struct Exponential {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return exp(z); }
  template <class T> static __device__ T derivative(T a) { return a; }
};

#ifdef BACKPROP_USER_ACTIVATION
// A user's σ, written in Python: Numba compiles both functions and the linker inlines them.
extern "C" __device__ float backprop_user_value_float32(float z);
extern "C" __device__ float backprop_user_derivative_float32(float z);
extern "C" __device__ double backprop_user_value_float64(double z);
extern "C" __device__ double backprop_user_derivative_float64(double z);

struct User {
  static constexpr bool from_z = true;
  static __device__ float value(float z) { return backprop_user_value_float32(z); }
  static __device__ float derivative(float z) { return backprop_user_derivative_float32(z); }
  static __device__ double value(double z) { return backprop_user_value_float64(z); }
  static __device__ double derivative(double z) { return backprop_user_derivative_float64(z); }
};
#endif
