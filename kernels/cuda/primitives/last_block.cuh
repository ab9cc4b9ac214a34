// Which block of a launch is the last to come: it sees what the threads of all others wrote to
// device memory before they came, and does what needs that. So a sum over blocks takes one launch.
//
// The memory model's message passing. A barrier brings a block's writes before its first thread's
// fence and count; to the block that finds all others counted, a fence and a barrier bring them.
#pragma once

// All threads of a block call it, in a grid along x; true in all of the last block. `finished` is
// device memory that holds 0, and does again when the launch is over.
__device__ inline bool last_block(unsigned* finished) {
  __shared__ bool last;
  __syncthreads();
  if (gridDim.x == 1) return true;
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    __threadfence();
    last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
    if (last) __threadfence();
  }
  __syncthreads();
  return last;
}
