// BP2:  δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l)
//
//   delta_next (m, k)   w_next (k, n)   saved (m, n)   ->   δ (m, n)
//
// k neurons in layer l+1, n in layer l. A block makes BM × BN of the result
// (gemm.cuh); grid (⌈m/BM⌉, ⌈n/BN⌉). `saved` is z or a, whichever σ' is computed
// from. pull_back is the second half alone, a thread 16 bytes (map.cuh), after a product
// made by cuBLAS or the gradient of a user's cost.
#include "activations.cuh"
#include "bf16.cuh"
#include "gemm.cuh"
#include "map.cuh"
#include "primitives/launch.cuh"

template <class T, class Sigma, class Tile>
__global__ void __launch_bounds__(Tile::threads, least_blocks<T, Tile>)
    hidden_error(const T* w_next, const T* delta_next, const T* saved, T* delta, int m, int n, int k) {
  await_prerequisites();
  gemm<T, Tile, Contiguous::p, Contiguous::result>(
      delta_next, w_next, m, n, 0, k, k, n,
      [=](int x, int j) { return saved[size_t(x) * n + j]; },
      [=](int x, int j, T product, T of_slope) {
        delta[size_t(x) * n + j] = product * Sigma::derivative(of_slope);
      });
}

// `rounded` is δ in bf16, or null.
template <class T, class Sigma>
__global__ void pull_back(const T* saved, T* delta, BFloat16* rounded, int m, int n) {
  await_prerequisites();
  const Share<T> share(size_t(m) * n, true, saved, delta, rounded);
  const auto from = share.get(saved);
  auto error = share.get(delta);
  for (int i = 0; i < share.N; ++i) error.x[i] *= Sigma::derivative(from.x[i]);
  share.put(delta, error);
  put_rounded(share, rounded, error);
}
