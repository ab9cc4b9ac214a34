// Whether all of x (count) is finite:  parts[block] = 1 or 0, for a block's share. Block 256, any
// grid. The array is finite where all parts are 1.
template <class T>
__global__ void __launch_bounds__(256) all_finite(const T* x, int* parts, long long count) {
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
