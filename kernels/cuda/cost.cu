// C = 1/m Σ_x C_x,  C_x = Σ_j c(a_j, y_j)
//
//   z, a, y (m, n)   ->   samples (m)   ->   costs[step]
//
// sample_costs: block (32, rows), a warp a row. mean_cost: one block of 256,
// which adds the samples in float64 and in a fixed order.
#include "costs.cuh"
#include "primitives/warp.cuh"

// from_z: the activation is the cost's partner, so c is computed from z.
template <class T, class Cost, bool from_z>
__global__ void sample_costs(const T* z, const T* a, const T* y, T* samples, int m, int n) {
  const int x = blockIdx.x * blockDim.y + threadIdx.y;
  if (x >= m) return;  // a whole warp leaves
  const size_t row = size_t(x) * n;
  T sum = 0;
  if constexpr (!from_z) {
    for (int j = threadIdx.x; j < n; j += 32) sum += Cost::term(a[row + j], y[row + j]);
  } else if constexpr (Cost::row_of_softmax) {
    T z_max = z[row], a_max = a[row];
    for (int j = threadIdx.x; j < n; j += 32) {
      z_max = z[row + j] > z_max ? z[row + j] : z_max;
      a_max = a[row + j] > a_max ? a[row + j] : a_max;
    }
    z_max = warp_max(z_max);
    a_max = warp_max(a_max);
    for (int j = threadIdx.x; j < n; j += 32)
      sum += Cost::term_of_row(z[row + j], y[row + j], z_max, a_max);
  } else {
    for (int j = threadIdx.x; j < n; j += 32)
      sum += Cost::term_from_z(z[row + j], a[row + j], y[row + j]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) samples[x] = sum;
}

template <class T>
__global__ void __launch_bounds__(256)
    mean_cost(const T* samples, double* costs, const int* step, int m) {
  __shared__ double sums[256];
  double sum = 0;
  for (int x = threadIdx.x; x < m; x += 256) sum += double(samples[x]);
  sums[threadIdx.x] = sum;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) costs[*step] = sums[0] / m;
}
