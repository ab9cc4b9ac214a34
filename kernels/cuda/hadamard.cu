// s ⊙ t:  out_j = s_j t_j. A thread an element.
template <class T>
__global__ void hadamard(const T* s, const T* t, T* out, long long count) {
  const long long at = (long long)(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < count) out[at] = s[at] * t[at];
}
