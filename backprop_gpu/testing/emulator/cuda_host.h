// The part of CUDA C++ that the kernels use, as ordinary C++. Comes before the .cu.
//
// A name that is missing here makes the build fail, which is the moment to add it.
// Dynamic shared memory has one name for all kernels, declared outside of any namespace:
//
//   extern __shared__ alignas(16) unsigned char dynamic_shared[];
#pragma once
#include <cstddef>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // <math.h> compiles in a third of the time without
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <typeinfo>
#include <utility>

#include "fibers.h"

// ---------------------------------------------------------------------- qualifiers

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))

// CUDA allows `__shared__ alignas(16) T x[n]`, C++ does not after `thread_local`. The
// attribute may stand anywhere.
#define alignas(n) __attribute__((aligned(n)))

// One copy for each block: a block's fibers never leave their OS thread, and blocks that
// run side by side (a cluster) get one each. thread_local implies static inside a
// function, and `extern __shared__ unsigned char x[]` stays a declaration. The scheduler
// fills the whole of it with 0xFF before each block.
#define __shared__ thread_local

constexpr int warpSize = cuda_host::lanes_of_warp;

// ------------------------------------------------------------------------- vectors

#define CUDA_HOST_VECTORS(type, name, align2, align4)                                    \
  struct __align__(align2) name##2 {                                                     \
    type x, y;                                                                           \
  };                                                                                     \
  struct name##3 {                                                                       \
    type x, y, z;                                                                        \
  };                                                                                     \
  struct __align__(align4) name##4 {                                                     \
    type x, y, z, w;                                                                     \
  };                                                                                     \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                       \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }            \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

using uint = unsigned;
CUDA_HOST_VECTORS(float, float, 8, 16)
CUDA_HOST_VECTORS(double, double, 16, 16)
CUDA_HOST_VECTORS(int, int, 8, 16)
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
#undef CUDA_HOST_VECTORS

// ------------------------------------------------------------------------ barriers

// The default arguments are evaluated where the function is called, so every barrier
// knows its line.
#define CUDA_HOST_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_HOST_HERE) {
  cuda_host::block_barrier({"__syncthreads", file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_HERE) {
  cuda_host::warp_barrier(mask, {"__syncwarp", file, line}, cuda_host::Exchange::none, 0, 0);
}

inline void __threadfence() { cuda_host::fence(); }
inline void __threadfence_block() { cuda_host::fence(); }

// --------------------------------------------------------------------- warp shuffles

namespace cuda_host {

template <class T> T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_arithmetic_v<T>);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = warp_barrier(mask, site, Exchange::shuffle, bits, source);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned ballot(unsigned mask, bool predicate, Site site) {
  return warp_barrier(mask, site, Exchange::ballot, predicate, 0) & mask;
}

}  // namespace cuda_host

// `width` cuts the warp into groups; a lane that would read beyond its group reads itself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_HOST_HERE) {
  const int group = cuda_host::lane() & ~(width - 1);
  return cuda_host::shuffle(mask, value, group | (source & (width - 1)),
                            {"__shfl_sync", file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_HOST_HERE) {
  const int lane = cuda_host::lane(), source = lane - int(delta);
  return cuda_host::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source,
                            {"__shfl_up_sync", file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_HOST_HERE) {
  const int lane = cuda_host::lane(), source = lane + int(delta);
  return cuda_host::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source,
                            {"__shfl_down_sync", file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, CUDA_HOST_HERE) {
  const int lane = cuda_host::lane(), source = lane ^ bits;
  return cuda_host::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source,
                            {"__shfl_xor_sync", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
  return cuda_host::ballot(mask, predicate != 0, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
  return cuda_host::ballot(mask, predicate != 0, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_HERE) {
  return cuda_host::ballot(mask, predicate == 0, {"__all_sync", file, line}) == 0;
}

// -------------------------------------------------------------------------- memory

template <class T> T __ldg(const T* address) { return *address; }

// Relaxed, as on the device: an atomic orders nothing but itself.
template <class T> T atomicAdd(T* address, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4,
                "float atomics add in no fixed order, so no kernel uses them");
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
// Counts from 0 to `last` and starts over.
inline unsigned atomicInc(unsigned* address, unsigned last) {
  unsigned found = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &found, found >= last ? 0 : found + 1, false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return found;
}
template <class T> T atomicExch(T* address, std::common_type_t<T> value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
  return expected;
}

[[noreturn]] inline void __trap(CUDA_HOST_HERE) { cuda_host::fail("__trap, %s:%d", file, line); }

// ---------------------------------------------------------------------------- math

// The rest is in math.h, with float overloads, as CUDA has it.
#define CUDA_HOST_MIN_MAX(type)                                \
  inline type min(type a, type b) { return b < a ? b : a; }    \
  inline type max(type a, type b) { return a < b ? b : a; }
CUDA_HOST_MIN_MAX(int)
CUDA_HOST_MIN_MAX(unsigned)
CUDA_HOST_MIN_MAX(long)
CUDA_HOST_MIN_MAX(unsigned long)
CUDA_HOST_MIN_MAX(long long)
CUDA_HOST_MIN_MAX(unsigned long long)
#undef CUDA_HOST_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline void sincospi(float x, float* sine, float* cosine) {
  *sine = float(sin(3.14159265358979323846 * x)), *cosine = float(cos(3.14159265358979323846 * x));
}
inline void sincospi(double x, double* sine, double* cosine) {
  *sine = sin(3.14159265358979323846 * x), *cosine = cos(3.14159265358979323846 * x);
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
