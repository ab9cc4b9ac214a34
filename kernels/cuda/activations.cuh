// a = σ(z) and σ'(z), elementwise. The same functions stand in
// backprop_gpu/activations.py, where each has its formula.
//
// `from_z` says what σ' is computed from: z where true, otherwise a, so that a
// layer need not store z. Kernels pass that one as `saved`. `second` and `third` are σ'' and σ'''
// of the same, 0 at a kink.
#pragma once

struct Sigmoid {
  static constexpr bool from_z = false;
  // exp(-z) may become infinite, and 1 / inf = 0 is the right answer.
  template <class T> static __device__ T value(T z) { return T(1) / (T(1) + exp(-z)); }
  template <class T> static __device__ T derivative(T a) { return a * (T(1) - a); }
  template <class T> static __device__ T second(T a) { return a * (T(1) - a) * (T(1) - T(2) * a); }
  template <class T> static __device__ T third(T a) {
    const T p = a * (T(1) - a);
    return p * (T(1) - T(6) * p);
  }
};

struct Tanh {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return tanh(z); }
  template <class T> static __device__ T derivative(T a) { return T(1) - a * a; }
  template <class T> static __device__ T second(T a) { return T(-2) * a * (T(1) - a * a); }
  template <class T> static __device__ T third(T a) {
    const T p = T(1) - a * a;
    return p * (T(4) - T(6) * p);
  }
};

struct Relu {
  static constexpr bool from_z = false;
  // Not fmax: a NaN must stay one, so that a diverged cost is seen.
  template <class T> static __device__ T value(T z) { return z < T(0) ? T(0) : z; }
  template <class T> static __device__ T derivative(T a) { return a > T(0) ? T(1) : T(0); }
  template <class T> static __device__ T second(T) { return T(0); }
  template <class T> static __device__ T third(T) { return T(0); }
};

struct LeakyRelu {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return z < T(0) ? T(0.01) * z : z; }
  template <class T> static __device__ T derivative(T a) { return a > T(0) ? T(1) : T(0.01); }
  template <class T> static __device__ T second(T) { return T(0); }
  template <class T> static __device__ T third(T) { return T(0); }
};

struct Elu {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return z < T(0) ? expm1(z) : z; }
  template <class T> static __device__ T derivative(T a) { return a < T(0) ? a + T(1) : T(1); }
  template <class T> static __device__ T second(T a) { return a < T(0) ? a + T(1) : T(0); }
  template <class T> static __device__ T third(T a) { return second(a); }
};

struct Gelu {
  static constexpr bool from_z = true;
  // Φ(z); erfc keeps the digits of the left tail that 1 + erf cancels.
  template <class T> static __device__ T cdf(T z) { return T(0.5) * erfc(T(-0.70710678118654752) * z); }
  template <class T> static __device__ T value(T z) { return z * cdf(z); }
  template <class T> static __device__ T derivative(T z) {
    return cdf(z) + z * T(0.39894228040143268) * exp(T(-0.5) * z * z);
  }
  template <class T> static __device__ T density(T z) {
    return T(0.39894228040143268) * exp(T(-0.5) * z * z);
  }
  template <class T> static __device__ T second(T z) { return density(z) * (T(2) - z * z); }
  template <class T> static __device__ T third(T z) { return density(z) * z * (z * z - T(4)); }
};

struct Silu {
  static constexpr bool from_z = true;
  template <class T> static __device__ T value(T z) { return z * Sigmoid::value(z); }
  template <class T> static __device__ T derivative(T z) {
    const T s = Sigmoid::value(z);
    return s + z * s * (T(1) - s);
  }
  template <class T> static __device__ T second(T z) {
    const T s = Sigmoid::value(z);
    return T(2) * s * (T(1) - s) + z * Sigmoid::second(s);
  }
  template <class T> static __device__ T third(T z) {
    const T s = Sigmoid::value(z);
    return T(3) * Sigmoid::second(s) + z * Sigmoid::third(s);
  }
};

struct Softplus {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) {
    return z < T(0) ? log1p(exp(z)) : z + log1p(exp(-z));
  }
  template <class T> static __device__ T derivative(T a) { return -expm1(-a); }
  template <class T> static __device__ T second(T a) { return -expm1(-a) * exp(-a); }
  template <class T> static __device__ T third(T a) { return second(a) * (exp(-a) + expm1(-a)); }
};

struct Identity {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return z; }
  template <class T> static __device__ T derivative(T) { return T(1); }
  template <class T> static __device__ T second(T) { return T(0); }
  template <class T> static __device__ T third(T) { return T(0); }
};

struct Exponential {
  static constexpr bool from_z = false;
  template <class T> static __device__ T value(T z) { return exp(z); }
  template <class T> static __device__ T derivative(T a) { return a; }
  template <class T> static __device__ T second(T a) { return a; }
  template <class T> static __device__ T third(T a) { return a; }
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
