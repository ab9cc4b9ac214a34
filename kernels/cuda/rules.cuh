// The rules by which a gradient g changes a parameter p, elementwise:
//
//   Sgd        p ← p - c0 g
//   Momentum   v ← μ v - c0 g,  p ← p + v
//   Nesterov   v ← μ v - c0 g,  p ← p + μ v - c0 g
//   Adam       m ← β1 m + (1-β1) g,  v ← β2 v + (1-β2) g²,  p ← p - c1 m / (√v c2 + ε)
//   AdamW      Adam, after w ← w - c3 w
//
// c0 … c3 are the step's row of the coefficients (backprop_gpu/optimizers.py). Adam takes 1-β1 and
// 1-β2: in float, 1 - 0.999 would be off by a hundred-thousandth of itself.
#pragma once

struct Sgd {
  static constexpr int slots = 0;
  template <class T> static __device__ T apply(T p, T g, T&, T&, const T* c, T, T, T, bool) {
    return p - c[0] * g;
  }
};

struct Momentum {
  static constexpr int slots = 1;
  template <class T> static __device__ T apply(T p, T g, T& v, T&, const T* c, T mu, T, T, bool) {
    v = mu * v - c[0] * g;
    return p + v;
  }
};

struct Nesterov {
  static constexpr int slots = 1;
  template <class T> static __device__ T apply(T p, T g, T& v, T&, const T* c, T mu, T, T, bool) {
    v = mu * v - c[0] * g;
    return p + mu * v - c[0] * g;
  }
};

struct Adam {
  static constexpr int slots = 2;
  template <class T>
  static __device__ T apply(T p, T g, T& m, T& v, const T* c, T rest1, T rest2, T epsilon, bool) {
    m = (T(1) - rest1) * m + rest1 * g;
    v = (T(1) - rest2) * v + rest2 * g * g;
    return p - c[1] * m / (sqrt(v) * c[2] + epsilon);
  }
};

struct AdamW {
  static constexpr int slots = 2;
  template <class T>
  static __device__ T apply(T p, T g, T& m, T& v, const T* c, T rest1, T rest2, T epsilon,
                            bool weight) {
    if (weight) p -= c[3] * p;
    return Adam::apply(p, g, m, v, c, rest1, rest2, epsilon, weight);
  }
};

template <class T> __device__ T largest();
template <> __device__ float largest<float>() { return 3.40282347e+38f; }
template <> __device__ double largest<double>() { return 1.7976931348623157e+308; }

template <class T> __device__ T clip_by_value(T g, T limit) {
  return g > limit ? limit : g < -limit ? -limit : g;
}


// What a penalty l1 |w| + ½ l2 w² adds to the gradient of a weight.
template <class T> __device__ T penalized(T g, T w, T l1, T l2) {
  g += l2 * w;
  return g + (w > T(0) ? l1 : w < T(0) ? -l1 : T(0));
}
