// The rows of this step's mini-batch, of X and of Y:  out[i] = source[order[step · batch + i]]
//
//   x (rows, n_x)   y (rows, n_y)   order, weights (rows)
//   ->   x_out (m, n_x)   y_out (m, n_y)   weights_out (m)
//
// and x_out in bf16 too, where it is wanted; weights, which are in the order of the steps, may be
// null. A thread 16 bytes (map.cuh), in runs where a row is made of whole ones; blocks for x, for y,
// and for weights. It takes the time of its bytes,
// 2 m (n_x + n_y) · sizeof(T). The step is read from device memory, so that one captured launch
// serves every step of an epoch; the rows may be those of a step `ahead`, of whole ones so many.
#include "bf16.cuh"
#include "map.cuh"
#include "primitives/launch.cuh"

template <class T>
__device__ void gather_rows(unsigned block, const T* source, const int* rows, T* out,
                            BFloat16* rounded, size_t count, int n) {
  const Share<T> share(block, count, n % Share<T>::N == 0, source, out, rounded);
  const auto values =
      share.get(source, [=](size_t at) { return size_t(rows[at / n]) * n + at % n; });
  share.put(out, values);
  put_rounded(share, rounded, values);
}

template <class T>
__global__ void gather(const T* x, const T* y, const int* order, const T* weights, const int* step,
                       T* x_out, BFloat16* x_rounded, T* y_out, T* weights_out, int batch, int m,
                       int n_x, int n_y, int ahead, int whole) {
  await_prerequisites();
  const int of_step = *step + ahead;
  if (ahead != 0 && of_step >= whole) return;
  const int* rows = order + size_t(of_step) * batch;
  const size_t of_x = size_t(m) * n_x, of_y = size_t(m) * n_y, of_block = blockDim.x * Share<T>::N;
  const unsigned blocks_of_x = (of_x + of_block - 1) / of_block;
  const unsigned blocks_of_y = (of_y + of_block - 1) / of_block;
  if (blockIdx.x < blocks_of_x) {
    gather_rows(blockIdx.x, x, rows, x_out, x_rounded, of_x, n_x);
  } else if (blockIdx.x < blocks_of_x + blocks_of_y) {
    gather_rows<T>(blockIdx.x - blocks_of_x, y, rows, y_out, nullptr, of_y, n_y);
  } else {
    const T* const from = weights + size_t(of_step) * batch;
    const Share<T> share(blockIdx.x - blocks_of_x - blocks_of_y, m, true, from, weights_out);
    share.put(weights_out, share.get(from));
  }
}

// One thread: the step is over.
__global__ void advance(int* step) {
  await_prerequisites();
  ++*step;
}
