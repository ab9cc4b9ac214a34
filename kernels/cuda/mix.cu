// Mixed rows (mixup):  out[i] = s_i source[rows[i]] + (1 - s_i) source[partners[i]]
//
//   source (n, n_x)   rows, partners, s (m)   ->   out (m, n_x)
//
// source is of T, or of bytes. A thread 16 bytes of out (map.cuh), in runs where a row is made of
// whole ones. It takes the time of its bytes, m n_x · (sizeof(T) + 2 sizeof(From)); where the rows of
// a mini-batch are each other's partners, the second reading is from the L2 cache.
#include "map.cuh"
#include "primitives/launch.cuh"

template <class T, class From>
__global__ void mix(const From* source, const int* rows, const int* partners, const T* s, T* out,
                    long long count, int n_x) {
  await_prerequisites();
  const Share<T> share(count, n_x % Share<T>::N == 0, source, out);
  const auto place = [=](const int* of, size_t at) { return size_t(of[at / n_x]) * n_x + at % n_x; };
  const auto own = share.get(source, [=](size_t at) { return place(rows, at); });
  const auto other = share.get(source, [=](size_t at) { return place(partners, at); });
  Run<T, Share<T>::N> mixed = {};
  for (int i = 0; i < share.N; ++i) {
    if (share.at(i) >= share.count) break;
    const T of_own = s[share.at(i) / n_x];
    mixed.x[i] = of_own * T(own.x[i]) + (T(1) - of_own) * T(other.x[i]);
  }
  share.put(out, mixed);
}
