// Products of small matrices on tensor cores, D = A B + D, by the 32 lanes of a warp together (mma.sync
// of the PTX ISA, from 8.0 on; for what is older no such kernel is compiled), and the roundings of
// their factors. With g = lane / 4 and t = lane % 4 a lane holds
//
//     D (16 × 8):       d[0] (g, 2t)     d[1] (g, 2t + 1)    d[2] (g + 8, 2t)    d[3] (g + 8, 2t + 1)
//     A (16 × 8) tf32:  a[0] (g, t)      a[1] (g + 8, t)     a[2] (g, t + 4)     a[3] (g + 8, t + 4)
//     B (8 × 8) tf32:   b[0] (t, g)      b[1] (t + 4, g)
//     A (16 × 16) bf16: a[0] (g, 2t…)    a[1] (g + 8, 2t…)   a[2] (g, 2t + 8…)   a[3] (g + 8, 2t + 8…)
//     B (16 × 8) bf16:  b[0] (2t…, g)    b[1] (2t + 8…, g)
//
// where of bf16 a register holds two neighbours along the sum, the first in the lower half. Sums are
// float32, but as tensor cores add: what is beyond the last bit of the largest term is cut off.
#pragma once
#ifdef __CUDACC__

// To the nearest number of 10 bits of fraction, of two the larger.
__device__ __forceinline__ unsigned round_tf32(float x) {
  unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
  return bits;
}

// Both to the nearest number of 7 bits of fraction, of two the even one.
__device__ __forceinline__ unsigned round_bf16(float lower, float upper) {
  unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(upper), "f"(lower));
#endif
  return bits;
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4],
                                         const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

#else
#include <math.h>
#include <stdint.h>

inline unsigned round_tf32(float x) {
  const unsigned bits = __builtin_bit_cast(unsigned, x);
  if (x != x) return 0x7fffffffu & ~0x1fffu;
  return (bits + 0x1000u) & ~0x1fffu;
}

inline unsigned round_bf16(float lower, float upper) {
  auto half = [](float x) -> unsigned {
    const unsigned bits = __builtin_bit_cast(unsigned, x);
    if (x != x) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  };
  return half(upper) << 16 | half(lower);
}

namespace cuda_host {

// What the lanes of a warp bring, B by its columns. Blocks that run side by side are on threads of
// their own.
struct Factors {
  double a[16][16], b[8][16];
};
inline thread_local Factors brought[threads_of_block / 32];

inline Factors& of_warp() {
  return brought[(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) / 32];
}

// The sum of float32 d and `count` exact products as tensor cores may form it: each is cut off below
// the last of 24 bits of the largest, and so is the sum. (What was measured on cards keeps a bit or
// two more: A. Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021.)
inline float sum_cut_off(float d, const double* products, int count) {
  double plain = d, largest = fabs(plain);
  for (int i = 0; i < count; ++i) {
    plain += products[i];
    largest = fabs(products[i]) > largest ? fabs(products[i]) : largest;
  }
  if (!(plain - plain == 0) || largest == 0) return float(plain);  // none is finite, or all are 0
  auto power_of_2 = [](int n) { return __builtin_bit_cast(double, int64_t(n + 1023) << 52); };
  const int exponent = int(__builtin_bit_cast(int64_t, largest) >> 52) - 1022;  // below 2^exponent
  const double units = power_of_2(24 - exponent);
  int64_t sum = int64_t(d * units);  // a cast cuts off
  for (int i = 0; i < count; ++i) sum += int64_t(products[i] * units);
  int lost = exponent < -125 ? -125 - exponent : 0;  // bits of it: denormals have fewer than 24
  if (lost > 32) return 0;
  while ((sum < 0 ? -sum : sum) >> lost >= 1 << 24) ++lost;
  const int64_t kept = (sum < 0 ? -(-sum >> lost) : sum >> lost) * (int64_t(1) << lost);
  return float(double(kept) / units);
}

// d += A B, summed over K, when all lanes have brought their numbers.
template <int K> void multiply(float (&d)[4], const Factors& of, Site site) {
  warp_barrier(0xffffffffu, site, Exchange::none, 0, 0);
  need_whole_warp(site);
  const int g = lane() / 4, t = lane() % 4;
  float result[4];
  for (int r = 0; r < 4; ++r) {
    const double *row = of.a[g + r / 2 * 8], *column = of.b[2 * t + r % 2];
    double products[K];
    for (int p = 0; p < K; ++p) products[p] = row[p] * column[p];
    result[r] = sum_cut_off(d[r], products, K);
  }
  warp_barrier(0xffffffffu, site, Exchange::none, 0, 0);  // all have read what was brought
  memcpy(d, result, sizeof result);
}

}  // namespace cuda_host

inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  auto& of = cuda_host::of_warp();
  const int g = cuda_host::lane() / 4, t = cuda_host::lane() % 4;
  auto number = [](unsigned bits) { return __builtin_bit_cast(float, bits & ~0x1fffu); };
  for (int r = 0; r < 4; ++r) of.a[g + r % 2 * 8][t + r / 2 * 4] = number(a[r]);
  for (int r = 0; r < 2; ++r) of.b[g][t + 4 * r] = number(b[r]);
  cuda_host::multiply<8>(d, of, {"mma_tf32", file, line});
}

inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  auto& of = cuda_host::of_warp();
  const int g = cuda_host::lane() / 4, t = cuda_host::lane() % 4;
  auto put = [](double* pair, unsigned bits) {
    pair[0] = __builtin_bit_cast(float, bits << 16);
    pair[1] = __builtin_bit_cast(float, bits & 0xffff0000u);
  };
  for (int r = 0; r < 4; ++r) put(&of.a[g + r % 2 * 8][2 * t + r / 2 * 8], a[r]);
  for (int r = 0; r < 2; ++r) put(&of.b[g][2 * t + 8 * r], b[r]);
  cuda_host::multiply<16>(d, of, {"mma_bf16", file, line});
}

#endif
