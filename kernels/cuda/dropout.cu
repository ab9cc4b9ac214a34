// Dropout: out = source ⊙ r, where r_xj is 0 with probability `rate`, else 1 / (1 - rate); of a^l, and
// of δ^l, where it is the same in a step
//
//   source (m, n)   ->   out (m, n), which may be source, and in bf16, too, where it is wanted
//
// A thread has four neighbours of a row, which have a counter (philox.cuh): (x, j / 4, layer, step).
// `key` are its two words, and the number of the first step. It takes the time of its bytes,
// 2 m n · sizeof(T), or of 60 whole-number operations a counter, where a and δ lie in a cache.
#include "bf16.cuh"
#include "philox.cuh"
#include "primitives/launch.cuh"

template <class T>
__global__ void dropout(const T* source, T* out, BFloat16* rounded, const unsigned* key,
                        const int* step, unsigned threshold, T scale, int layer, int first_row, int m,
                        int n) {
  await_prerequisites();
  const int runs = (n + 3) / 4, e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= m * runs) return;
  const int x = e / runs, run = e % runs;
  const Philox bits(first_row + x, run, layer, key[2] + *step, key[0], key[1]);
  for (int i = 0; i < 4; ++i) {
    const int j = 4 * run + i;
    if (j >= n) return;
    const size_t at = size_t(x) * n + j;
    const T kept = bits.word[i] >= threshold ? source[at] * scale : T(0);
    out[at] = kept;
    if (rounded != nullptr) rounded[at] = BFloat16(float(kept));
  }
}
