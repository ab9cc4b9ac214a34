// C = 1/m Σ_x w_x C_x,  C_x = Σ_j c(a_j, y_j)
//
//   z, a, y (m, n)   weights w (m), or null where all are 1   ->   costs[step]
//
// Block (32, 8), any grid along x: a warp takes samples in turn and leaves the float64 sum of
// theirs in parts (8 · blocks); the last block to come adds the parts in order. It takes the time of
// its bytes, 2 m n · sizeof(T), and a count in device memory where there are several blocks.
#include "costs.cuh"
#include "primitives/last_block.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp.cuh"

// C_x as they are, n = 1: a user's.
struct Given : SumOverOutputs {
  template <class T> __device__ T term(T a, T, int) const { return a; }
};

// from_z: the activation is the cost's partner, so c is computed from z.
template <class T, class Cost, bool from_z>
__global__ void __launch_bounds__(256)
    mean_cost(const T* z, const T* a, const T* y, const T* weights, double* parts,
              unsigned* finished, double* costs, const int* step, int m, int n) {
  await_prerequisites();
  __shared__ double sums[8];
  const int warp = blockIdx.x * 8 + threadIdx.y, warps = gridDim.x * 8;
  const Cost cost;
  double total = 0;
  for (int x = warp; x < m; x += warps) {
    const size_t row = size_t(x) * n;
    T sum = 0;
    if constexpr (Cost::by_row) {
      OutputRow<T, Cost> outputs;
      for (int j = threadIdx.x; j < n; j += 32) outputs.add(a[row + j], y[row + j], j);
      for (T& each : outputs.sums) each = warp_sum(each);
      outputs.finish();
      for (int j = threadIdx.x; j < n; j += 32) sum += outputs.term(a[row + j], y[row + j], j);
    } else if constexpr (Cost::pairs) {
      for (int j = threadIdx.x; j < n / 2; j += 32)
        sum += pair_of(cost, a[row + j], a[row + n / 2 + j], y[row + j], T(1), T(1)).term;
    } else if constexpr (!from_z) {
      for (int j = threadIdx.x; j < n; j += 32) sum += term_of(cost, a[row + j], y[row + j], j);
    } else if constexpr (Cost::row_of_softmax) {
      T z_max = z[row], a_max = a[row];
      for (int j = threadIdx.x; j < n; j += 32) {
        z_max = z[row + j] > z_max ? z[row + j] : z_max;
        a_max = a[row + j] > a_max ? a[row + j] : a_max;
      }
      z_max = warp_max(z_max);
      a_max = warp_max(a_max);
      for (int j = threadIdx.x; j < n; j += 32)
        sum += term_of_softmax(cost, z[row + j], y[row + j], z_max, a_max);
    } else {
      for (int j = threadIdx.x; j < n; j += 32)
        sum += term_of_z(cost, z[row + j], a[row + j], y[row + j]);
    }
    total += double(weights == nullptr ? sum : sum * weights[x]);
  }
  total = warp_sum(total);
  if (threadIdx.x == 0) parts[warp] = total;
  if (!last_block(finished)) return;

  total = 0;
  for (int part = threadIdx.y * 32 + threadIdx.x; part < warps; part += 256) total += parts[part];
  total = warp_sum(total);
  if (threadIdx.x == 0) sums[threadIdx.y] = total;
  __syncthreads();
  if (threadIdx.x != 0 || threadIdx.y != 0) return;
  for (int other = 1; other < 8; ++other) total += sums[other];
  costs[*step] = total / m;
}
