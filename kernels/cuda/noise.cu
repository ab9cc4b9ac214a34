// Noise on a gradient, g ← g + σ n with n of N(0, 1): what `gradient_noise` of an optimizer asks for
//
//   gradients g (count), from element `start` of all parameters on, a multiple of 4
//   coefficients (steps, 6), of which the last is σ
//
// A thread has four neighbours, which have a counter (philox.cuh): (element / 4, 0, 0, step). Each two
// words are a point in a disc (Box & Muller 1958): with u = (word + 1/2) / 2³²,
//
//   n_0 = √(-2 ln u_0) cos 2πu_1,   n_1 = √(-2 ln u_0) sin 2πu_1
//
// `key` are its two words, and the number of the first step. It takes the time of its bytes, 2 count ·
// sizeof(T), or of some 150 operations a counter, where g lies in a cache.
#include "activations.cuh"
#include "philox.cuh"
#include "primitives/launch.cuh"

// ln u; of a u near 1 from 1 - u, which has more of its digits.
template <class T> __device__ T log_of_uniform(unsigned word) {
  const T part = T(1) / T(4294967296.0);
  return word < 0x80000000u ? log((T(word) + T(0.5)) * part) : log1p(-(T(~word) + T(0.5)) * part);
}

template <class T>
__global__ void add_noise(T* g, const double* coefficients, const int* step, const unsigned* key,
                          unsigned start, int count) {
  await_prerequisites();
  const int e = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  const Philox bits((start + e) / 4, 0, 0, key[2] + *step, key[0], key[1]);
  const T sigma = T(coefficients[size_t(*step) * 6 + 5]);
  for (int i = 0; i < 4 && e + i < count; i += 2) {
    const T radius = sigma * sqrt(T(-2) * log_of_uniform<T>(bits.word[i]));
    T sine, cosine;
    sincospi((T(bits.word[i + 1]) + T(0.5)) * T(2.0 / 4294967296.0), &sine, &cosine);
    g[e + i] += radius * cosine;
    if (e + i + 1 < count) g[e + i + 1] += radius * sine;
  }
}
