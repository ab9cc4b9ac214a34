// Forward:  z = a' wᵀ + b,  a = σ(z)
//
//   a_prev (m, k)   w (n, k)   b (n)   ->   z (m, n), a (m, n)
//
// m rows of a batch, k neurons in, n out. A block of Tile::threads threads makes
// BM × BN of the result (gemm.cuh); grid (⌈m/BM⌉, ⌈n/BN⌉). bias_activation is the
// second half alone, a thread 16 bytes (map.cuh), after a product made by cuBLAS.
// softmax takes z to a where the outputs of a sample are coupled, a warp per row.
#include "activations.cuh"
#include "bf16.cuh"
#include "gemm.cuh"
#include "map.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp.cuh"

// z may be null: then only a is kept.
template <class T, class Sigma, class Tile>
__global__ void __launch_bounds__(Tile::threads, least_blocks<T, Tile>)
    forward(const T* w, const T* b, const T* a_prev, T* z, T* a, int m, int n, int k) {
  await_prerequisites();
  gemm<T, Tile, Contiguous::p, Contiguous::p>(
      a_prev, w, m, n, 0, k, k, k, [=](int, int j) { return b[j]; },
      [=](int x, int j, T product, T bias) {
        const size_t at = size_t(x) * n + j;
        const T weighted_input = product + bias;
        if (z != nullptr) z[at] = weighted_input;
        a[at] = Sigma::value(weighted_input);
      });
}

// product (m, n) -> z, a, and a in bf16; z and `rounded` may be null, z or a `product` itself.
template <class T, class Sigma>
__global__ void bias_activation(const T* product, const T* b, T* z, T* a, BFloat16* rounded, int m,
                                int n) {
  await_prerequisites();
  const Share<T> share(size_t(m) * n, true, product, z, a, rounded);
  auto values = share.get(product);
  int j = share.at(0) % n;
  for (int i = 0; i < share.N; ++i) {
    values.x[i] += b[j];
    j = (j + share.step) % n;
  }
  if (z != nullptr) share.put(z, values);
  for (int i = 0; i < share.N; ++i) values.x[i] = Sigma::value(values.x[i]);
  share.put(a, values);
  put_rounded(share, rounded, values);
}

// a_j = e^(z_j - max z) / Σ_k e^(z_k - max z). Block (32, rows); z and a may be one array.
template <class T>
__global__ void softmax(const T* z, T* a, int m, int n) {
  await_prerequisites();
  const int x = blockIdx.x * blockDim.y + threadIdx.y;
  if (x >= m) return;  // a whole warp leaves
  const T* z_row = z + size_t(x) * n;
  T* a_row = a + size_t(x) * n;

  T largest = z_row[0];
  for (int j = threadIdx.x; j < n; j += 32) largest = z_row[j] > largest ? z_row[j] : largest;
  largest = warp_max(largest);
  T total = 0;
  for (int j = threadIdx.x; j < n; j += 32) total += exp(z_row[j] - largest);
  total = warp_sum(total);
  __syncwarp();  // all lanes have read z_0, which lane 0 may be about to overwrite
  for (int j = threadIdx.x; j < n; j += 32) a_row[j] = exp(z_row[j] - largest) / total;
}
