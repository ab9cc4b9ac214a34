// The blocks of a thread-block cluster, side by side along x: which of them this one is, a barrier
// for all their threads, and where another block has what this one has at an address in its shared
// memory. Clusters exist from 9.0 on; for what is older no such kernel is compiled.
#pragma once
#ifdef __CUDACC__

#if __CUDA_ARCH__ >= 900
#define CLUSTER_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER_OF(blocks)
#endif

__device__ inline int cluster_rank() {
  int rank;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#else
  __trap();
#endif
  return rank;
}

// What a thread wrote before, all others see after.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

template <class T> __device__ const T* of_block(const T* mine, int rank) {
  const T* theirs;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
#else
  __trap();
#endif
  return theirs;
}

#else

#define CLUSTER_OF(blocks)

inline int cluster_rank() { return cuda_host::cluster_rank(); }

inline void cluster_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_host::cluster_arrive({"cluster_barrier", file, line});
  cuda_host::cluster_wait({"cluster_barrier", file, line});
}

template <class T> const T* of_block(const T* mine, int rank) {
  return static_cast<const T*>(cuda_host::map_shared(mine, rank));
}

#endif
