// One step of an optimizer over all parameters:
//
//   g ← clip(g),  g ← g + l2 w + l1 sign(w)  (weights only),  then a rule of rules.cuh
//
//   parameters p, gradients g, state s0, s1 (count)   coefficients (steps, 6)
//
// and p in bf16 too, where products take it so. `limit_norms` follows where ‖w_j‖ has a limit.
// A thread 16 bytes of each array (map.cuh). It takes the time of its bytes: p and the state read
// and written, g read. Weights stand before biases: element < weights_end is a weight.
#include "bf16.cuh"
#include "map.cuh"
#include "norms.cuh"
#include "primitives/launch.cuh"
#include "rules.cuh"

// clip_value is infinite where there is no limit; clip_scale, rounded, s0 and s1 may be null.
template <class T, class Rule>
__global__ void update(T* p, BFloat16* rounded, const T* g, T* s0, T* s1,
                       const double* coefficients, const int* step, const T* clip_scale,
                       long long count, long long weights_end, T clip_value, T l1, T d1, T d2,
                       T epsilon) {
  await_prerequisites();
  const Share<T> share(count, true, p, rounded, g, s0, s1);
  const auto gradients = share.get(g);
  auto values = share.get(p);
  Run<T, Share<T>::N> state0 = {}, state1 = {};
  if (s0 != nullptr) state0 = share.get(s0);
  if (s1 != nullptr) state1 = share.get(s1);
  T c[5];
  for (int i = 0; i < 5; ++i) c[i] = T(coefficients[size_t(*step) * 6 + i]);
  for (int i = 0; i < share.N; ++i) {
    const bool weight = share.at(i) < weights_end;
    const T old = values.x[i];
    T gradient = clip_by_value(gradients.x[i], clip_value);
    if (clip_scale != nullptr) gradient *= *clip_scale;
    if (weight) gradient = penalized(gradient, old, l1, c[4]);
    values.x[i] =
        Rule::apply(old, gradient, state0.x[i], state1.x[i], c, d1, d2, epsilon, weight);
  }
  share.put(p, values);
  put_rounded(share, rounded, values);
  if (s0 != nullptr) share.put(s0, state0);
  if (s1 != nullptr) share.put(s1, state1);
}

// Σ g² of a block's share, in float64 and in a fixed order; block 256, any grid.
template <class T>
__global__ void __launch_bounds__(256)
    squared_norm(const T* g, double* parts, long long count, T clip_value) {
  await_prerequisites();
  __shared__ double sums[256];
  double sum = 0;
  const long long stride = (long long)(gridDim.x) * 256;
  for (long long at = (long long)(blockIdx.x) * 256 + threadIdx.x; at < count; at += stride) {
    const double value = clip_by_value(g[at], clip_value);
    sum += value * value;
  }
  sums[threadIdx.x] = sum;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
}

// clip_scale = min(1, limit / ‖g‖). One thread: there are at most 256 parts.
template <class T>
__global__ void clip_scale(const double* parts, T* scale, int count, double limit) {
  await_prerequisites();
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += parts[i];
  const double norm = sqrt(sum);
  *scale = norm > limit ? T(limit / norm) : T(1);
}

// w_j ← w_j min(1, limit / ‖w_j‖) of each row of w (n, fan_in), and in bf16 where it is there. Block
// (32, rows). It takes the time of reading w, and of writing the rows beyond the limit: a row is read again
// from the cache.
template <class T>
__global__ void limit_norms(T* w, BFloat16* rounded, T limit, int n, int fan_in) {
  await_prerequisites();
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= n) return;  // a whole warp leaves
  const size_t begin = size_t(row) * fan_in;
  const T norm = warp_norm(w + begin, fan_in);
  if (!(norm > limit)) return;
  for (int k = threadIdx.x; k < fan_in; k += 32) {
    const T scaled = w[begin + k] * (limit / norm);
    w[begin + k] = scaled;
    if (rounded != nullptr) rounded[begin + k] = BFloat16(float(scaled));
  }
}
