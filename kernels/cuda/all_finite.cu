// Whether an array is finite:  parts[block] = 1 if all of the block's share is, else 0
//
//   x (count)   ->   parts (blocks of the grid)
//
// 256 threads per block, any grid; a thread takes every (256 · grid)-th element. The array is finite
// where all parts are 1. It takes the time of its bytes, count · sizeof(T).
#include "primitives/launch.cuh"

template <class T>
__global__ void __launch_bounds__(256) all_finite(const T* x, int* parts, long long count) {
  await_prerequisites();
  __shared__ int all;
  if (threadIdx.x == 0) all = 1;
  int finite = 1;
  const long long stride = (long long)(gridDim.x) * 256;
  for (long long at = (long long)(blockIdx.x) * 256 + threadIdx.x; at < count; at += stride)
    finite = finite && x[at] - x[at] == T(0);  // of ∞ and NaN it is NaN
  __syncthreads();
  if (!finite) atomicExch(&all, 0);
  __syncthreads();
  if (threadIdx.x == 0) parts[blockIdx.x] = all;
}
