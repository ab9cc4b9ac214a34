// s ⊙ t:  out_j = s_j t_j
//
//   s, t (count)   ->   out (count)
//
// A thread 16 bytes (map.cuh). It takes the time of its bytes, 3 count · sizeof(T).
#include "map.cuh"
#include "primitives/launch.cuh"

template <class T>
__global__ void hadamard(const T* s, const T* t, T* out, long long count) {
  await_prerequisites();
  const Share<T> share(count, true, s, t, out);
  const auto left = share.get(s), right = share.get(t);
  Run<T, Share<T>::N> product;
  for (int i = 0; i < share.N; ++i) product.x[i] = left.x[i] * right.x[i];
  share.put(out, product);
}
