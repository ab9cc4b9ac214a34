// The blocks of a thread-block cluster, side by side along x: which of them this one is, a barrier
// for all their threads, and numbers that they send into each other's shared memory. Clusters exist
// from 9.0 on; for what is older no such kernel is compiled.
//
// Who waits for numbers knows how many bytes of them will come, and a TransactionBarrier in its
// shared memory counts those that have (an mbarrier of the PTX ISA). In every phase, 0, 1, 2 …, one
// thread of the block tells it the bytes to expect; numbers that come before that are counted, too,
// but none may come before the phase in front is over. A thread that has waited for a phase sees
// what it has counted. Nobody waits for a sender, and no fence is needed: the arrival is what orders.
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

// What a thread wrote before, all others see after. It takes a fence of the whole device, which is
// why no step has one.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

struct alignas(8) TransactionBarrier {
  unsigned long long state;

  __device__ unsigned address() { return unsigned(__cvta_generic_to_shared(this)); }

  // By one thread; others, of other blocks too, use it after a barrier of the cluster.
  __device__ void init() {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address()) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }

  __device__ void expect(int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()),
                 "r"(bytes)
                 : "memory");
#endif
  }

  __device__ void wait(int phase) {
#if __CUDA_ARCH__ >= 900
    unsigned over;
    do {
      asm volatile(
          "{\n\t.reg .pred p;\n\t"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, p;\n\t}"
          : "=r"(over)
          : "r"(address()), "r"(phase & 1)
          : "memory");
    } while (!over);
#endif
  }
};

// The value goes to where the block of that rank has what this one has at `place`, and is counted
// by that block's barrier. Both are in shared memory.
template <class T>
__device__ __forceinline__ void send(T* place, T value, TransactionBarrier& barrier, int rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if __CUDA_ARCH__ >= 900
  unsigned to, counted;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(to)
      : "r"(unsigned(__cvta_generic_to_shared(place))), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(barrier.address()), "r"(rank));
  if constexpr (sizeof(T) == 4) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::
                     "r"(to), "r"(bits), "r"(counted)
                 : "memory");
  } else {
    unsigned long long bits;
    memcpy(&bits, &value, 8);
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::
                     "r"(to), "l"(bits), "r"(counted)
                 : "memory");
  }
#endif
}

#else

#define CLUSTER_OF(blocks)

inline int cluster_rank() { return cuda_host::cluster_rank(); }

inline void cluster_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_host::cluster_arrive({"cluster_barrier", file, line});
  cuda_host::cluster_wait({"cluster_barrier", file, line});
}

// A number comes at once, and what orders is the count: ThreadSanitizer sees a place that is read
// before its phase is over, or written while it may still be read. A count is one access, the last
// of a sender to the block, which may be gone then.
struct alignas(8) TransactionBarrier {
  struct State {
    int missing;           // bytes; below 0 if they came before they were expected
    unsigned over : 31;    // phases
    unsigned expects : 1;  // whether this phase's bytes are known
  };
  State state;

  static constexpr int most = (1 << 20) - 1;

  void init() {
    if (uintptr_t(this) % 8 != 0) cuda_host::fail("an mbarrier is at a multiple of 8 bytes");
    State none{};
    __atomic_store(&state, &none, __ATOMIC_RELEASE);
  }

  void expect(int bytes) {
    if (bytes < 0 || bytes > most) cuda_host::fail("an mbarrier expects %d bytes", bytes);
    count(bytes, true);
  }

  void count(int bytes, bool expects = false) {
    State old, now;
    __atomic_load(&state, &old, __ATOMIC_RELAXED);
    do {
      now = old;
      if (expects && old.expects)
        cuda_host::fail("an mbarrier is told twice in a phase what to expect");
      now.missing += bytes;
      now.expects = old.expects || expects;
      if (now.missing < (now.expects ? 0 : -most))
        cuda_host::fail("an mbarrier counts %d bytes more than it expects", -now.missing);
      if (now.expects && now.missing == 0) now = {0, old.over + 1, 0};
    } while (!__atomic_compare_exchange(&state, &old, &now, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED));
  }

  void wait(int phase) {
    constexpr int patience = 100000;  // turns of all other threads
    for (int looks = 0;; ++looks) {
      State now;
      __atomic_load(&state, &now, __ATOMIC_ACQUIRE);
      if (now.over == unsigned(phase) + 1) return;
      // A device knows phases by their parity only.
      if (now.over != unsigned(phase))
        cuda_host::fail("phase %d is waited for in phase %u", phase, now.over);
      if (looks == patience) cuda_host::fail("the bytes of phase %d do not come", phase);
      cuda_host::yield();
    }
  }
};

template <class T> void send(T* place, T value, TransactionBarrier& barrier, int rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if (uintptr_t(place) % sizeof(T) != 0) cuda_host::fail("a number is sent to where none can be");
  auto* counted = static_cast<TransactionBarrier*>(cuda_host::map_shared(&barrier, rank));
  *static_cast<T*>(cuda_host::map_shared(place, rank)) = value;
  counted->count(-int(sizeof(T)));
}

#endif
