// A barrier for all threads of a launch whose blocks all run at once (a cooperative launch). What a
// thread wrote to device memory before it, all others see after it.
//
// The memory model's message passing, as in last_block.cuh: a barrier of the block brings its writes
// before its first thread's release, which all who acquire that count have then seen.
#pragma once
#ifdef __CUDACC__

// The `number`-th of a launch, from 1 on. `arrived` is device memory that holds 0 at first; a launch
// has less than 2^31 / blocks of them.
__device__ inline void grid_barrier(unsigned* arrived, unsigned number) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto place = __cvta_generic_to_global(arrived);
#if __CUDA_ARCH__ >= 700
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(place) : "memory");
    unsigned here;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(place) : "memory");
    while (int(here - number * gridDim.x) < 0);
#endif
  }
  __syncthreads();
}

#else

inline void grid_barrier(unsigned* arrived, unsigned number, const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) {
  constexpr int patience = 100000;  // turns of all other threads
  __syncthreads(file, line);
  if (threadIdx.x == 0) {
    __atomic_fetch_add(arrived, 1, __ATOMIC_ACQ_REL);
    for (int looks = 0; int(__atomic_load_n(arrived, __ATOMIC_ACQUIRE) - number * gridDim.x) < 0;
         ++looks) {
      if (looks == patience) cuda_host::fail("the barrier of the grid at %s:%d is not met", file, line);
      cuda_host::yield();
    }
  }
  __syncthreads(file, line);
}

#endif
