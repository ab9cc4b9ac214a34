// BP1:  δ^L = ∇_a C ⊙ σ'(z^L)
//
//   z, a, y (m, n)   ->   δ (m, n)
//
// A thread 16 bytes (map.cuh); where cost and activation collapse it is a - y. Where softmax or the
// cost couple the outputs of a sample, a warp takes a row. What becomes of saturated outputs stands
// in backprop_gpu/costs/__init__.py. Rows may have weights: `scale_rows` follows then.
#include "activations.cuh"
#include "costs.cuh"
#include "map.cuh"
#include "network.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp.cuh"

template <class T>
__global__ void collapsed_output_error(const T* a, const T* y, T* delta, int m, int n) {
  await_prerequisites();
  const Share<T> share(size_t(m) * n, true, a, y, delta);
  const auto output = share.get(a), target = share.get(y);
  Run<T, Share<T>::N> error;
  for (int i = 0; i < share.N; ++i) error.x[i] = difference_of(output.x[i], target.x[i]);
  share.put(delta, error);
}

// `saved` is z or a, whichever σ' is computed from.
template <class T, class Sigma, class Cost>
__global__ void output_error(const T* saved, const T* a, const T* y, T* delta, int m, int n) {
  await_prerequisites();
  const Share<T> share(size_t(m) * n, true, saved, a, y, delta);
  const auto output = share.get(a), target = share.get(y);
  const auto z = share.get(Sigma::from_z ? saved : a);
  Run<T, Share<T>::N> error;
  const Cost cost;
  for (int i = 0; i < share.N; ++i) {
    const int j = share.at(i) % n;
    const T inside = cost.inside(output.x[i]);
    error.x[i] =
        error_of(cost, inside, target.x[i], Sigma::derivative(Sigma::from_z ? z.x[i] : inside), j);
  }
  share.put(delta, error);
}

// Of a cost of softmax's outputs or by rows; block (32, rows).
template <class T, class Sigma, class Cost>
__global__ void row_output_error(const T* saved, const T* a, const T* y, T* delta, int m, int n) {
  await_prerequisites();
  const int x = blockIdx.x * blockDim.y + threadIdx.y;
  if (x >= m) return;  // a whole warp leaves
  const size_t row = size_t(x) * n;
  OutputRow<T, Cost> outputs;
  for (int j = threadIdx.x; j < n; j += 32) outputs.add(a[row + j], y[row + j], j);
  for (T& sum : outputs.sums) sum = warp_sum(sum);
  outputs.finish();
  for (int j = threadIdx.x; j < n; j += 32) {
    T slope = a[row + j];
    if constexpr (!couples<Sigma>) slope = Sigma::derivative(saved[row + j]);
    delta[row + j] = outputs.error(a[row + j], y[row + j], slope, j);
  }
}

// Of a cost of pairs of outputs: a thread a pair.
template <class T, class Sigma, class Cost>
__global__ void pair_output_error(const T* saved, const T* a, const T* y, T* delta, int m, int n) {
  await_prerequisites();
  const int half = n / 2, e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= m * half) return;
  const size_t first = size_t(e / half) * n + e % half, second = first + half;
  const auto found = pair_of(Cost(), a[first], a[second], y[first], Sigma::derivative(saved[first]),
                             Sigma::derivative(saved[second]));
  delta[first] = found.of_first;
  delta[second] = found.of_second;
}

// δ_xj ← w_x δ_xj, of weights w (m).
template <class T>
__global__ void scale_rows(const T* weights, T* delta, int m, int n) {
  await_prerequisites();
  const Share<T> share(size_t(m) * n, true, delta);
  auto error = share.get(delta);
  for (int i = 0; i < share.N; ++i)
    if (share.at(i) < share.count) error.x[i] *= weights[share.at(i) / n];
  share.put(delta, error);
}

// For a user's cost: δ holds g = ∇_a C and becomes the error, a_j (g_j - Σ_k g_k a_k).
template <class T>
__global__ void softmax_pull_back(const T* a, T* delta, int m, int n) {
  await_prerequisites();
  const int x = blockIdx.x * blockDim.y + threadIdx.y;
  if (x >= m) return;
  const size_t row = size_t(x) * n;
  T mean = 0;
  for (int j = threadIdx.x; j < n; j += 32) mean += delta[row + j] * a[row + j];
  mean = warp_sum(mean);
  for (int j = threadIdx.x; j < n; j += 32) delta[row + j] = a[row + j] * (delta[row + j] - mean);
}
