// Copies from device to shared memory that arrive while the thread computes. copy() starts one,
// commit() closes a group of them, wait<n>() returns when all but this thread's latest n groups
// have arrived; other threads see them after a barrier. Both addresses are multiples of BYTES:
// 1, 4, 8 or 16. A single byte, and before 8.0 all, is an ordinary copy: there is no other.
#pragma once
#ifdef __CUDACC__

struct AsyncCopies {
  template <int BYTES> __device__ void copy(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    if constexpr (BYTES == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                       unsigned(__cvta_generic_to_shared(to))),
                   "l"(__cvta_generic_to_global(from))
                   : "memory");
    } else if constexpr (BYTES == 1) {
      *static_cast<unsigned char*>(to) = *static_cast<const unsigned char*>(from);
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(
                       unsigned(__cvta_generic_to_shared(to))),
                   "l"(__cvta_generic_to_global(from)), "n"(BYTES)
                   : "memory");
    }
#else
    if constexpr (BYTES == 16)
      *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
    else if constexpr (BYTES == 8)
      *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
    else if constexpr (BYTES == 4)
      *static_cast<unsigned*>(to) = *static_cast<const unsigned*>(from);
    else
      *static_cast<unsigned char*>(to) = *static_cast<const unsigned char*>(from);
#endif
  }

  __device__ void commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  template <int GROUPS> __device__ void wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
  }
};

#else
#include <stdlib.h>

// A copy arrives as late as it may, and until then its place holds NaN, or 255 for a byte: who
// reads too early, or still reads what was there, gets nonsense.
struct AsyncCopies {
  struct Copy {
    void* to;
    const void* from;
    int bytes, group;
  };
  Copy* started = nullptr;
  int count = 0, group = 0;

  template <int BYTES> void copy(void* to, const void* from) {
    static_assert(BYTES == 1 || BYTES == 4 || BYTES == 8 || BYTES == 16, "as on the device");
    if (uintptr_t(to) % BYTES != 0 || uintptr_t(from) % BYTES != 0)
      cuda_host::fail("a copy of %d bytes from or to another multiple", BYTES);
    started = static_cast<Copy*>(realloc(started, sizeof(Copy) * (count + 1)));
    started[count++] = {to, from, BYTES, group};
    memset(to, 0xFF, BYTES);
  }

  void commit() { ++group; }

  template <int GROUPS> void wait() {
    int left = 0;
    for (int i = 0; i < count; ++i) {
      if (started[i].group < group - GROUPS) {
        memcpy(started[i].to, started[i].from, started[i].bytes);
      } else {
        started[left++] = started[i];
      }
    }
    count = left;
  }

  ~AsyncCopies() { free(started); }
};

#endif
