// The second half of split sums:  out = scale · Σ_s parts[s],  of one array or of two
//
//   parts (splits, count)   ->   out (count)
//   more_parts (splits, more)   ->   more_out (more)
//
// A thread per element, which adds its parts in order: the same bits every time.
#include "primitives/launch.cuh"

template <class T>
__global__ void sum_splits(const T* parts, T* out, long long count, const T* more_parts,
                           T* more_out, int more, int splits, T scale) {
  await_prerequisites();
  long long at = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) {
    at -= count;
    if (at >= more) return;
    parts = more_parts;
    out = more_out;
    count = more;
  }
  T sum = 0;
  for (int s = 0; s < splits; ++s) sum += parts[s * count + at];
  out[at] = sum * scale;
}
