// A kernel for each primitive, for tests/test_primitives.py.
#include "../../kernels/cuda/primitives/warp.cuh"

// Of a warp's 32 numbers, what each lane gets. Block 32.
template <class T> __global__ void sum_of_warp(const T* in, T* out) {
  out[threadIdx.x] = warp_sum(in[threadIdx.x]);
}

template <class T> __global__ void max_of_warp(const T* in, T* out) {
  out[threadIdx.x] = warp_max(in[threadIdx.x]);
}
