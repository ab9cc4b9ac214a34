// The rows of this step's mini-batch, of X and of Y:  out[i] = source[order[step · batch + i]]
//
//   x (rows, n_x)   y (rows, n_y)   order (rows)   ->   x_out (m, n_x)   y_out (m, n_y)
//
// A thread an element. The step is read from device memory, so that one captured
// launch serves every step of an epoch.
template <class T>
__global__ void gather(const T* x, const T* y, const int* order, const int* step, T* x_out,
                       T* y_out, int batch, int m, int n_x, int n_y) {
  size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const bool of_x = at < size_t(m) * n_x;
  if (!of_x) at -= size_t(m) * n_x;
  const int n = of_x ? n_x : n_y;
  if (at >= size_t(m) * n) return;
  const size_t row = order[size_t(*step) * batch + at / n];
  const size_t from = row * n + at % n;
  if (of_x) {
    x_out[at] = x[from];
  } else {
    y_out[at] = y[from];
  }
}

// One thread: the step is over.
__global__ void advance(int* step) { ++*step; }
