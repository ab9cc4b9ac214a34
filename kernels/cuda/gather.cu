// The rows of this step's mini-batch:  out[x] = source[order[step · batch + x]]
//
//   source (rows, n)   order (rows)   ->   out (m, n)
//
// A thread an element. The step is read from device memory, so that one captured
// launch serves every step of an epoch.
template <class T>
__global__ void gather(const T* source, const int* order, const int* step, T* out, int batch, int m,
                       int n) {
  const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= size_t(m) * n) return;
  const size_t row = order[size_t(*step) * batch + at / n];
  out[at] = source[row * n + at % n];
}

// One thread: the step is over.
__global__ void advance(int* step) { ++*step; }
