// Accesses whose wavefronts and sectors are known (test_accesses.py).

__global__ void strides(float* out, const float* in) {
  __shared__ alignas(16) float words[32 * 32];
  const int lane = threadIdx.x;
  volatile float* shared = words;
  const volatile float* global = in;
  float sum = 0;
  sum += shared[lane];       // a word
  sum += shared[2 * lane];   // two words
  sum += shared[32 * lane];  // 32 words
  sum += shared[7];          // one word for all
  if (lane < 16)
    sum += shared[2 * lane];  // half a warp
  sum += global[lane];        // neighbours
  sum += global[8 * lane];    // a sector each
  asm volatile("" : : "r"(&words) : "memory");
  typedef int Four __attribute__((vector_size(16)));
  const volatile Four* fours = reinterpret_cast<const volatile Four*>(words);
  const Four near = fours[lane];     // 16 bytes
  const Four far = fours[2 * lane];  // 16 bytes, every other
  out[lane] = sum + float(near[0] + far[0]);
}
