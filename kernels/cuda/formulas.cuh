// σ, C and the rules over elementary functions of our own. Where every other operation is rounded by
// itself, too (-fmad=false), they give the bits of the CPU's engine, which has the same files.
//
// In a namespace, where exp, tanh, … are found before CUDA's. Outside of it, write formulas::exp.
#pragma once

namespace formulas {
__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ int bits(float x) { return __builtin_bit_cast(int, x); }
__device__ __forceinline__ long long bits(double x) { return __builtin_bit_cast(long long, x); }
__device__ __forceinline__ float number(int x) { return __builtin_bit_cast(float, x); }
__device__ __forceinline__ double number(long long x) { return __builtin_bit_cast(double, x); }

#include "elementary.cuh"

#include "activations.cuh"
#include "costs.cuh"
#include "rules.cuh"
}  // namespace formulas

using namespace formulas;
