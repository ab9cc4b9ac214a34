// A copy of another type:  out_j = source_j as a T, or in bf16, rounded to the nearest
//
//   source (count)   ->   out (count)
//
// A thread 16 bytes of out, or of what becomes bf16 (map.cuh). It takes the time of its bytes,
// count · (sizeof(From) + sizeof(T)).
#include "bf16.cuh"
#include "map.cuh"
#include "primitives/launch.cuh"

template <class T, class From>
__global__ void convert(const From* source, T* out, long long count) {
  await_prerequisites();
  const Share<T> share(count, true, source, out);
  const auto values = share.get(source);
  Run<T, Share<T>::N> converted;
  for (int i = 0; i < share.N; ++i) converted.x[i] = T(values.x[i]);
  share.put(out, converted);
}

template <class T> __global__ void round_to_bf16(const T* source, BFloat16* out, long long count) {
  await_prerequisites();
  const Share<T> share(count, true, source, out);
  put_rounded(share, out, share.get(source));
}
