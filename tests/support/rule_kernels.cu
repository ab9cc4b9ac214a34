// What the driver's rules are tried with (driver_rules.py): kernels that keep them or break one.
#include "../../kernels/cuda/primitives/launch.cuh"

extern __shared__ alignas(16) unsigned char dynamic_shared[];

extern "C" __global__ void put(float* out, float value, int count) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < count) out[at] = value;  // AddressSanitizer finds too large a count
}

// out_j = x_j + 1
extern "C" __global__ void add_one(const float* x, float* out, int count) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < count) out[at] = x[at] + 1;
}

// The same, where all threads, one of each block, those of one block or none too early wait for the
// kernels before.
extern "C" __global__ void all_wait(const float* x, float* out, int count) {
  await_prerequisites();
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < count) out[at] = x[at] + 1;
}

extern "C" __global__ void one_of_block_waits(const float* x, float* out, int count) {
  if (threadIdx.x == 0) await_prerequisites();
  __syncthreads();
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < count) out[at] = x[at] + 1;
}

extern "C" __global__ void one_block_waits(const float* x, float* out, int count) {
  if (blockIdx.x == 0) await_prerequisites();
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < count) out[at] = x[at] + 1;
}

extern "C" __global__ void waits_too_late(const float* x, float* out, int count) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  const float old = at < count ? x[at] : 0;
  await_prerequisites();
  if (at < count) out[at] = old + 1;
}

extern "C" __global__ void write_at(float* out, long long at) { out[at] = 1; }

extern "C" __global__ void read_at(const float* x, long long at, float* out) { *out = x[at]; }

extern "C" __global__ void copy_4(const float4* x, float4* out) { *out = *x; }

extern "C" __global__ void through_shared(float* out) {
  float* shared = reinterpret_cast<float*>(dynamic_shared);
  shared[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) bounded(float* out) { out[threadIdx.x] = 1; }

extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_of_4(float* out) {
  out[blockIdx.x] = 1;
}

extern "C" __global__ void trap() { __trap(); }

// A barrier is missing: a warp reads what another writes.
extern "C" __global__ void race(float* out) {
  float* shared = reinterpret_cast<float*>(dynamic_shared);
  shared[threadIdx.x] = float(threadIdx.x);
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];  // ThreadSanitizer finds it
}
