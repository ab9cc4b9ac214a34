// A copy of another type:  out_j = source_j as a T, rounded to the nearest
//
//   source (count)   ->   out (count)
//
// A thread an element. It takes the time of its bytes, count · (sizeof(From) + sizeof(T)).
template <class T, class From>
__global__ void convert(const From* source, T* out, long long count) {
  const long long at = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < count) out[at] = T(source[at]);
}
