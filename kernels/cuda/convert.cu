// out_j = source_j as a T, rounded to the nearest. A thread an element.
template <class T, class From>
__global__ void convert(const From* source, T* out, long long count) {
  const long long at = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < count) out[at] = T(source[at]);
}
