// The second half of a split sum:  out = scale · Σ_s parts[s]
//
//   parts (splits, count)   ->   out (count)
//
// A thread an element, which adds its parts in order: the same bits every time.
template <class T>
__global__ void sum_splits(const T* parts, T* out, long long count, int splits, T scale) {
  const long long at = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  T sum = 0;
  for (int s = 0; s < splits; ++s) sum += parts[s * count + at];
  out[at] = sum * scale;
}
