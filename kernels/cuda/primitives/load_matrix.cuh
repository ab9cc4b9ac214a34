// Four 8 × 8 matrices of 16-bit numbers from shared memory into the registers of a warp (ldmatrix of
// the PTX ISA, from 7.5 on). Lane l names row l % 8 of matrix l / 8: 16 bytes, at a multiple of 16. With
// g = lane / 4 and t = lane % 4 a lane gets of matrix r, the first in the lower half,
//
//     load_matrices:    x[r]  (g, 2t)  (g, 2t + 1)
//     load_transposed:  x[r]  (2t, g)  (2t + 1, g)
#pragma once
#ifdef __CUDACC__

__device__ __forceinline__ void load_matrices(unsigned (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(unsigned(__cvta_generic_to_shared(row)))
               : "memory");
}

__device__ __forceinline__ void load_transposed(unsigned (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(unsigned(__cvta_generic_to_shared(row)))
               : "memory");
}

#else
#include <stdint.h>

namespace cuda_host {

// What the lanes of a warp name, and what they have read. It is no memory of the kernel's, and its
// barriers order none: who reads what another lane wrote needs __syncwarp, as on the device.
struct Matrices {
  const void* rows[32];
  unsigned words[4][32];
};
inline thread_local Matrices named[threads_of_block / 32];

__attribute__((no_sanitize("thread"), noinline)) inline Matrices& name(const void* row) {
  auto& of = named[(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) / 32];
  of.rows[lane()] = row;
  return of;
}
__attribute__((no_sanitize("thread"), noinline)) inline const void* row_of(Matrices& of, int i) {
  return of.rows[i];
}
__attribute__((no_sanitize("thread"), noinline)) inline void offer(Matrices& of, int r, unsigned x) {
  of.words[r][lane()] = x;
}
__attribute__((no_sanitize("thread"), noinline)) inline unsigned number(Matrices& of, int r, int i,
                                                                        int j) {
  return of.words[r][4 * i + j / 2] >> (j % 2 * 16) & 0xffffu;
}

inline void meet(Site site) { warp_barrier(0xffffffffu, site, Exchange::shuffle, 0, 0); }

// Each lane reads word t of row g of every matrix: a wavefront each, as on the device.
inline Matrices& read_matrices(unsigned (&x)[4], const void* row, Site site) {
  if (uintptr_t(row) % 16 != 0) fail("%s: a row is at a multiple of 16 bytes", site.kind);
  auto& of = name(row);
  meet(site);
  need_whole_warp(site);
  for (int r = 0; r < 4; ++r)
    x[r] = static_cast<const unsigned*>(row_of(of, 8 * r + lane() / 4))[lane() % 4];
  return of;
}

}  // namespace cuda_host

inline void load_matrices(unsigned (&x)[4], const void* row, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  const cuda_host::Site site{"load_matrices", file, line};
  cuda_host::read_matrices(x, row, site);
  cuda_host::meet(site);  // all have read what was named
}

inline void load_transposed(unsigned (&x)[4], const void* row, const char* file = __builtin_FILE(),
                            int line = __builtin_LINE()) {
  const cuda_host::Site site{"load_transposed", file, line};
  auto& of = cuda_host::read_matrices(x, row, site);
  for (int r = 0; r < 4; ++r) cuda_host::offer(of, r, x[r]);
  cuda_host::meet(site);
  const int g = cuda_host::lane() / 4, t = cuda_host::lane() % 4;
  for (int r = 0; r < 4; ++r)
    x[r] = cuda_host::number(of, r, 2 * t, g) | cuda_host::number(of, r, 2 * t + 1, g) << 16;
  cuda_host::meet(site);
}

#endif
