// BP3:  ∂C/∂b = mean of δ over the rows
//
//   delta (m, n)   ->   gradient (n)
//
// Block (32, 8): a warp reads 32 neighbouring columns of a row, the eight warps
// take rows in turn, and the eight sums of a column are added in order. Grid
// (⌈n/32⌉, splits): split s takes `rows` rows and writes out[s] (n); with more
// than one split sum_splits (reduce.cu) adds the parts in order.
#include "primitives/launch.cuh"

template <class T>
__global__ void __launch_bounds__(256)
    bias_gradient(const T* delta, T* out, int m, int n, int rows, T scale) {
  await_prerequisites();
  __shared__ T sums[8][32];
  const int j = blockIdx.x * 32 + threadIdx.x;
  const int begin = blockIdx.y * rows;
  const int end = begin + rows < m ? begin + rows : m;
  T sum = 0;
  if (j < n)
    for (int x = begin + threadIdx.y; x < end; x += 8) sum += delta[size_t(x) * n + j];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || j >= n) return;
  for (int y = 1; y < 8; ++y) sum += sums[y][threadIdx.x];
  out[size_t(blockIdx.y) * n + j] = sum * scale;
}
