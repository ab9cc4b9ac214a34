// BP4:  ∂C/∂w = δᵀ a' / m
//
//   delta (m, n)   a_prev (m, k)   ->   gradient (n, k)
//
// The sum runs over the m rows of the batch. A block makes BM × BN of the result
// (gemm.cuh) from `rows` of them; grid (⌈n/BM⌉, ⌈k/BN⌉, splits). With one split
// the result is scaled and done; with more, split s writes its part to
// out[s] (n, k), and sum_splits (reduce.cu) adds the parts in order.
#include "gemm.cuh"

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    weight_gradient(const T* delta, const T* a_prev, T* out, int m, int n, int k, int rows, T scale) {
  const int begin = blockIdx.z * rows;
  const int end = begin + rows < m ? begin + rows : m;
  T* part = out + size_t(blockIdx.z) * n * k;
  gemm<T, Tile, Contiguous::result, Contiguous::result>(
      delta, a_prev, n, k, begin, end, n, k,
      [=](int j, int i, T product) { part[size_t(j) * k + i] = product * scale; });
}
