// Derivatives beyond BP1 to BP4: what is elementwise in products with a Hessian, Jacobians, Laplacians
// and the norms of gradients.
//
//   slopes             s1 = σ'(z), s2 = σ''(z), s3 = σ'''(z)          z, s (count)
//   tangent            t ← t + more;  out = s t + bend ⊙ error      R{a} of R{z}, and R{δ} of R{wᵀ δ}
//   directions         out_k = s1 u_k                               ∂a/∂x_k of u_k = ∂z/∂x_k
//                      out_K = s1 u_K + s2 Σ_k u_k²                 Σ_k ∂²a/∂x_k², where s2 is given
//   directions_error   error ← s1 error + s2 Σ_k≤K t_k u_k + s3 t_K Σ_k<K u_k²
//                      t_k ← s1 t_k + 2 s2 u_k t_K,  t_K ← s1 t_K   the way back
//   row_norms          out_i = ‖x_i‖                                x (m, n)   ->   out (m)
//
// z, s, t, error (m, n) and u, out (K, m, n), row-major. slopes and tangent are maps (map.cuh): a thread
// 16 bytes. In the two of directions a thread has one j of a sample and walks along its K directions,
// m n apart, so that a warp's accesses are neighbours; where u is every sample's, (K, 1, n), it is
// `shared`. Of row_norms a warp takes a row, twice: the second time from the cache. Each takes the
// time of its bytes: directions 2 m K n · sizeof(T), less where u is one.
#include "activations.cuh"
#include "map.cuh"
#include "norms.cuh"
#include "primitives/launch.cuh"

// `saved` is z or a, whichever σ' is computed from. s2 and s3 may be null.
template <class T, class Sigma>
__global__ void slopes(const T* saved, T* s1, T* s2, T* s3, long long count) {
  await_prerequisites();
  const Share<T> share(count, true, saved, s1, s2, s3);
  const auto x = share.get(saved);
  Run<T, Share<T>::N> slope;
  for (int i = 0; i < share.N; ++i) slope.x[i] = Sigma::derivative(x.x[i]);
  share.put(s1, slope);
  if (s2 == nullptr) return;
  for (int i = 0; i < share.N; ++i) slope.x[i] = Sigma::second(x.x[i]);
  share.put(s2, slope);
  if (s3 == nullptr) return;
  for (int i = 0; i < share.N; ++i) slope.x[i] = Sigma::third(x.x[i]);
  share.put(s3, slope);
}

// more may be null, and bend with error.
template <class T>
__global__ void tangent(const T* s, T* t, const T* more, const T* bend, const T* error, T* out,
                        long long count) {
  await_prerequisites();
  const Share<T> share(count, true, s, t, more, bend, error, out);
  const auto slope = share.get(s);
  auto sum = share.get(t);
  if (more != nullptr) {
    const auto term = share.get(more);
    for (int i = 0; i < share.N; ++i) sum.x[i] += term.x[i];
    share.put(t, sum);
  }
  for (int i = 0; i < share.N; ++i) sum.x[i] *= slope.x[i];
  if (bend != nullptr) {
    const auto left = share.get(bend), right = share.get(error);
    for (int i = 0; i < share.N; ++i) sum.x[i] += left.x[i] * right.x[i];
  }
  share.put(out, sum);
}

// u and out may be one. `stride` is from a sample's u to the next's.
template <class T>
__global__ void directions(const T* s1, const T* s2, const T* u, T* out, int m, int n, int K,
                           int shared) {
  await_prerequisites();
  const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x, step = size_t(m) * n;
  if (at >= step) return;
  const T* from = u + (shared ? at % n : at);
  const size_t from_step = shared ? n : step;
  T* to = out + at;
  const T slope = s1[at];
  const int firsts = s2 == nullptr ? K : K - 1;
  T squares = 0;
  for (int k = 0; k < firsts; ++k) {
    const T value = from[k * from_step];
    squares += value * value;
    to[k * step] = slope * value;
  }
  if (s2 != nullptr) to[firsts * step] = slope * from[firsts * from_step] + s2[at] * squares;
}

template <class T>
__global__ void directions_error(const T* s1, const T* s2, const T* s3, const T* u, T* t, T* error,
                                 int m, int n, int K, int shared) {
  await_prerequisites();
  const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x, step = size_t(m) * n;
  if (at >= step) return;
  const T* from = u + (shared ? at % n : at);
  const size_t from_step = shared ? n : step;
  T* to = t + at;
  const T slope = s1[at], of_sum = to[(K - 1) * step];
  const T twice = T(2) * s2[at] * of_sum;
  T squares = 0, product = of_sum * from[(K - 1) * from_step];
  for (int k = 0; k < K - 1; ++k) {
    const T value = from[k * from_step], given = to[k * step];
    squares += value * value;
    product += given * value;
    to[k * step] = slope * given + twice * value;
  }
  to[(K - 1) * step] = slope * of_sum;
  error[at] = slope * error[at] + s2[at] * product + s3[at] * of_sum * squares;
}

// Block (32, rows).
template <class T> __global__ void row_norms(const T* x, T* out, int m, int n) {
  await_prerequisites();
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= m) return;  // a whole warp leaves
  const T norm = warp_norm(x + size_t(row) * n, n);
  if (threadIdx.x == 0) out[row] = norm;
}
