// Loops over kernels/cuda/elementary.cuh, for its test.
#define __device__ inline __attribute__((always_inline))
namespace elementary {
__device__ int bits(float x) { int i; __builtin_memcpy(&i, &x, sizeof i); return i; }
__device__ long long bits(double x) { long long i; __builtin_memcpy(&i, &x, sizeof i); return i; }
__device__ float number(int i) { float x; __builtin_memcpy(&x, &i, sizeof x); return x; }
__device__ double number(long long i) { double x; __builtin_memcpy(&x, &i, sizeof x); return x; }
#ifdef __FMA__
__device__ float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
__device__ double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
__device__ float fused(float a, float b, float c) { return a * b + c; }
__device__ double fused(double a, double b, double c) { return a * b + c; }
#endif
#include "elementary.cuh"
template <class T> __device__ T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }
}  // namespace elementary

#define LOOP(f, T)                                                                      \
  extern "C" void f##_##T(const T* __restrict x, T* __restrict y, long n) {             \
    for (long i = 0; i < n; ++i) y[i] = elementary::f(x[i]);                            \
  }
#define BOTH(f) LOOP(f, float) LOOP(f, double)
BOTH(exp)
BOTH(expm1)
BOTH(log)
BOTH(log1p)
BOTH(tanh)
BOTH(erfc)
BOTH(sigmoid)
