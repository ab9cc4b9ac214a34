// What stands for a GPU: every CUDA thread is a fiber, a stack with a saved stack
// pointer, and all fibers of a block take turns on one OS thread. So a run is
// deterministic, and a barrier costs a switch of stacks, not a system call.
//
// The fibers in the run queue take turns, first come first served; a fiber leaves
// it at a barrier and returns when the last participant arrives. If the queue runs
// dry while fibers still wait, that is a deadlock, and the launch fails with a
// message that names kernel, block, threads and source lines.
//
// Blocks run one cluster after another (today a cluster is one block). Only one
// OS thread ever runs at a time, so the scheduler has no locks.
//
// This header has what device code needs inline. The scheduler (fibers.cpp) is
// compiled without sanitizers, which would otherwise watch its bookkeeping, and
// tells them about switches and barriers itself.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

// Of the fiber that runs: switching to another one sets the first two.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_host {

constexpr int lanes_of_warp = 32;
constexpr int threads_of_block = 1024;
constexpr int named_barriers = 16;
// An H100's and B200's limit a block, with the opt-in.
constexpr size_t largest_dynamic_shared = 227 * 1024;
constexpr size_t guard = 256;  // bytes behind it that must stay as they are

struct Fiber;
struct Block;

// A place in device code; "kind" is the intrinsic that was called there.
struct Site {
  const char* kind;
  const char* file;
  int line;
};

// Opens when `expected` participants have arrived, then starts over. A barrier of a
// warp, of part of a block, of a block and of a cluster differ in who takes part.
struct Barrier {
  int expected = 0;
  int arrived = 0;
  unsigned generation = 0;
  Fiber* first_waiting = nullptr;
  Fiber* last_waiting = nullptr;
  Site site{};  // of the first to arrive
  Fiber* first_arrived = nullptr;
  bool one_site = true;  // all must come from the same line
  bool orders = true;    // memory; a shuffle does not
  // What ThreadSanitizer orders by. Two, in turn: a participant that is already on its
  // way to the next opening must not be taken for ordered before one that has yet to
  // wake up from this one.
  char clocks[2] = {};
};

// How the last lane to arrive serves all of them; the answer is Fiber::received.
enum class Exchange { none, shuffle, ballot };

struct WarpBarrier : Barrier {
  uint32_t mask = 0;
  Exchange exchange = Exchange::none;
};

struct Warp {
  uint32_t live = 0;  // lanes that have not returned
  Fiber* lanes[lanes_of_warp] = {};
  // By the lowest lane of the mask: groups that are at a barrier at once are disjoint.
  WarpBarrier barriers[lanes_of_warp];
};

struct Fiber {
  uint3 thread{};  // threadIdx
  int index = 0;   // in the block: x fastest, as warps are cut
  int lane = 0;
  Block* block = nullptr;
  Warp* warp = nullptr;

  Fiber* next = nullptr;  // in the run queue, or of those who wait at a barrier
  bool done = false;
  Site site{};  // where it waits

  uint64_t offered = 0, received = 0;  // a warp's exchange
  int source = 0;

  void* stack_pointer = nullptr;  // while another fiber runs
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan = nullptr;
  void* tsan = nullptr;
};

struct Block {
  uint3 index{};  // blockIdx
  Fiber* fibers = nullptr;
  int threads = 0;
  int live = 0;
  Warp* warps = nullptr;
  Barrier barriers[named_barriers];  // 0 is __syncthreads
};

struct Launch {
  const char* kernel;
  uint3 grid, block;
  size_t dynamic_shared_bytes;
  unsigned char* (*dynamic_shared)();  // where this OS thread's lies
  void (*body)(void** arguments);      // one CUDA thread
  void** arguments;
};

// Runs the grid. Returns null, or what went wrong.
const char* run(const Launch& launch);

// What a library has for each kernel (launch.h). Sizes are the grid's x, y, z and the block's.
using Parameter = const char*(unsigned parameter, size_t* bytes);
using Start = const char*(const unsigned* sizes, size_t dynamic_shared_bytes, void** arguments);

extern Fiber* current;

unsigned arrive(Barrier& barrier, Site site);  // returns the generation to wait for
void wait(Barrier& barrier, unsigned generation);
void yield();  // for a loop that waits for another thread
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void block_barrier(Site site);
// PTX's bar.sync and bar.arrive: `participants` of the block, from any lines.
void named_barrier(int id, int participants, Site site);
void named_arrive(int id, int participants, Site site);
uint64_t warp_barrier(uint32_t mask, Site site, Exchange exchange, uint64_t offered, int source);
void fence();
int lane();

}  // namespace cuda_host
