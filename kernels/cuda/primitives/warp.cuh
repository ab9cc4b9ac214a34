// Sums and maxima over groups of neighbouring lanes, all 32 of a warp or a power of 2 of them. Every
// lane gets its group's result, and the order of the additions is fixed (a butterfly).
#pragma once

template <int LANES = 32, class T> __device__ T warp_sum(T value) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

template <int LANES = 32, class T> __device__ T warp_max(T value) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// Lanes for a row of n numbers: no more than it needs, a whole warp at most. More of them would add
// zeros, and so the sum has the same bits.
template <int n> constexpr int lanes_of = n > 16 ? 32 : n > 8 ? 16 : n > 4 ? 8 : 4;
