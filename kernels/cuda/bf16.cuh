// Numbers in bf16 as they lie in memory, for products of cuBLASLt: what writes a matrix of factors
// writes them beside it.
#pragma once

#include "map.cuh"
#include "primitives/mma.cuh"

struct BFloat16 {
  unsigned short bits;

  BFloat16() = default;
  __device__ explicit BFloat16(float x) : bits(static_cast<unsigned short>(round_bf16(x, 0))) {}
};

// To the nearest, of two the even one. `out` may be null: nobody wants them.
template <class T>
__device__ void put_rounded(const Share<T>& share, BFloat16* out, const Run<T, Share<T>::N>& values) {
  if (out == nullptr) return;
  Run<BFloat16, Share<T>::N> rounded;
#pragma unroll
  for (int i = 0; i < share.N; ++i) rounded.x[i] = BFloat16(float(values.x[i]));
  share.put(out, rounded);
}
