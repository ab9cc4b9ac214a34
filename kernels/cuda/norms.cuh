// Norms of rows, a warp each, also where a square is no normal number. A row is read two or three times,
// the first time from where it lies, then from the cache.
#pragma once

#include "primitives/warp.cuh"

// ‖x‖ of n numbers.
template <class T> __device__ T warp_norm(const T* x, int n, int lane) {
  T largest = 0;
  for (int j = lane; j < n; j += 32) {
    const T size = x[j] < T(0) ? -x[j] : x[j];
    largest = size > largest ? size : largest;
  }
  largest = warp_max(largest);
  const T scale = largest > T(0) ? largest : T(1);
  T sum = 0;
  for (int j = lane; j < n; j += 32) sum += (x[j] / scale) * (x[j] / scale);
  return scale * sqrt(warp_sum(sum));
}

// x ← x min(1, limit / ‖x‖); put(j, x_j) where it has changed.
template <class T, class Put>
__device__ void limit_row(T* x, int n, T limit, int lane, Put put) {
  const T norm = warp_norm(x, n, lane);
  if (!(norm > limit)) return;
  const T scale = limit / norm;
  for (int j = lane; j < n; j += 32) put(j, x[j] *= scale);
}
template <class T> __device__ void limit_row(T* x, int n, T limit, int lane) {
  limit_row(x, n, limit, lane, [](int, T) {});
}
