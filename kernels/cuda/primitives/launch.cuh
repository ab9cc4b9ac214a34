// The first statement of a kernel that may be launched programmatically, that is before the kernels
// before it in the stream have ended (griddepcontrol, from 9.0 on). The next kernel may start as
// soon as all blocks of this one have come here; this one goes on when all before it have ended and
// what they wrote is visible. So memory is touched behind it only, through no pointer that is
// __restrict__: such a load may move up. In an ordinary launch it does nothing.
#pragma once
#ifdef __CUDACC__

__device__ __forceinline__ void await_prerequisites() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#else

inline void await_prerequisites(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_host::await_prerequisites({"await_prerequisites", file, line});
}

#endif
