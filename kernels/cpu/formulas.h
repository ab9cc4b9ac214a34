// The formulas of the CUDA kernels, compiled for a CPU: σ, C and the rules stand once.
#pragma once
#include "vector.h"

#define __device__ INLINE
#define __forceinline__

namespace {
INLINE int bits(float x) { return __builtin_bit_cast(int, x); }
INLINE long long bits(double x) { return __builtin_bit_cast(long long, x); }
INLINE float number(int x) { return __builtin_bit_cast(float, x); }
INLINE double number(long long x) { return __builtin_bit_cast(double, x); }
}  // namespace

namespace {
#include "../cuda/elementary.cuh"
#include "../cuda/activations.cuh"
#include "../cuda/costs.cuh"
#include "../cuda/philox.cuh"
#include "../cuda/rules.cuh"
}  // namespace
