// ‖x‖ of n numbers by a warp, also where a square is no normal number: it reads them twice, the second
// time from the cache.
#pragma once

#include "primitives/warp.cuh"

template <class T> __device__ T warp_norm(const T* x, int n) {
  T largest = 0;
  for (int j = threadIdx.x; j < n; j += 32) {
    const T size = x[j] < T(0) ? -x[j] : x[j];
    largest = size > largest ? size : largest;
  }
  largest = warp_max(largest);
  const T scale = largest > T(0) ? largest : T(1);
  T sum = 0;
  for (int j = threadIdx.x; j < n; j += 32) sum += (x[j] / scale) * (x[j] / scale);
  return scale * sqrt(warp_sum(sum));
}
