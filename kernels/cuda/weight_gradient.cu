// BP4:  ∂C/∂w = δᵀ a' / m,  and beside it BP3:  ∂C/∂b = mean of δ over the rows
//
//   delta (m, n)   a_prev (m, k)   ->   weights (n, k), biases (n) unless it is null
//
// The sum runs over the m rows of the batch. A block makes BM × BN of the result
// (gemm.cuh) from `rows` of them; grid (⌈n/BM⌉, ⌈k/BN⌉, splits). With one split
// the result is scaled and done; with more, split s writes its part to
// weights[s] (n, k) and biases[s] (n), and sum_splits (reduce.cu) adds the parts in order.
//
// A thread adds up what it sees of one column of δ on the way, and the threads of a column add their
// sums in order.
#include "gemm.cuh"
#include "primitives/launch.cuh"

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, least_blocks<T, Tile>)
    weight_gradient(const T* delta, const T* a_prev, T* weights, T* biases, int m, int n, int k,
                    int rows, T scale) {
  await_prerequisites();
  static_assert(Tile::threads % Tile::BM == 0, "a thread sees elements of one column");
  constexpr int share = Tile::threads / Tile::BM;  // threads of a column
  __shared__ T sums[share][Tile::BM];
  const int begin = blockIdx.z * rows;
  const int end = begin + rows < m ? begin + rows : m;
  T* part = weights + size_t(blockIdx.z) * n * k;
  T sum = 0;
  gemm<T, Tile, Contiguous::result, Contiguous::result>(
      delta, a_prev, n, k, begin, end, n, k, Nothing{},
      [=](int j, int i, T product, Nothing) { part[size_t(j) * k + i] = product * scale; },
      [&](T element) { sum += element; });

  if (biases == nullptr || blockIdx.y != 0) return;  // the whole block
  const int thread = threadIdx.x;
  sums[thread / Tile::BM][thread % Tile::BM] = sum;
  __syncthreads();
  const int j = blockIdx.x * Tile::BM + thread;
  if (thread >= Tile::BM || j >= n) return;
  for (int other = 1; other < share; ++other) sum += sums[other][thread];
  biases[size_t(blockIdx.z) * n + j] = sum * scale;
}
