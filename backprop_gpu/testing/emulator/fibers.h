// What stands for a GPU: every CUDA thread is a fiber, a stack with a saved stack
// pointer, and all fibers of a block take turns on one OS thread. So a run is
// deterministic, and a barrier costs a switch of stacks, not a system call.
//
// The fibers in the run queue take turns, first come first served; a fiber leaves
// it at a barrier and returns when the last participant arrives. If the queue runs
// dry while fibers still wait, that is a deadlock, and the launch fails with a
// message that names kernel, block, threads and source lines.
//
// Clusters run one after another; the blocks of a cluster run side by side, each on
// an OS thread of its own, because shared memory is thread-local. The first block's is
// the caller's, the others are kept for the next launch. Only the one that has the baton
// runs, and it passes it on when the next fiber in the queue is another's, so the
// scheduler has no locks. A block's shared memory is gone when its last thread has
// returned: a peer that still reads it gets nonsense or a sanitizer's report.
//
// A launch is cooperative if the size of its clusters is 0, 0, 0. All its blocks run at once on a
// device; here up to 16 do, of a larger grid so many as a power of 2 divides it, the others after them.
// Blocks that wait for such as come later wait for ever, so who waits in a loop needs a limit.
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
constexpr int blocks_of_cluster = 16;  // H100's and B200's limit, with the opt-in
// An H100's and B200's limit a block, with the opt-in.
constexpr size_t largest_dynamic_shared = 227 * 1024;
constexpr size_t guard = 256;  // bytes behind it that must stay as they are

struct Fiber;
struct Block;
struct Carrier;

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
  bool in_cluster_barrier = false;  // between arrive and wait
  unsigned cluster_generation = 0;  // at the latest arrival

  void* stack_pointer = nullptr;  // while another fiber runs
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan = nullptr;
  void* tsan = nullptr;
};

struct Block {
  uint3 index{};                     // blockIdx
  unsigned rank = 0;                 // in the cluster
  Carrier* carrier = nullptr;        // its OS thread
  Fiber* fibers = nullptr;
  Warp* warps = nullptr;
  int live = 0;                      // threads that have not returned
  char ended = 0;                    // a clock of those that have
  Barrier barriers[named_barriers];  // 0 is __syncthreads
};

struct Launch {
  const char* kernel;
  uint3 grid, block, cluster;  // the last 0, 0, 0 if cooperative
  size_t dynamic_shared_bytes;
  unsigned char* (*dynamic_shared)();  // where this OS thread's lies
  void (*body)(void** arguments);      // one CUDA thread
  void** arguments;
};

// Runs the grid. Returns null, or what went wrong.
const char* run(const Launch& launch);

// Set for a programmatic launch, else null. Called with false before a cluster's threads start: the
// kernels before may still run, so nothing that they use may be touched. Called with true when all
// its threads that can have come to await_prerequisites: they have ended. The launch fails if no
// thread waits, since who comes next would take them for ended, too.
using Prerequisites = void(bool ended);
extern Prerequisites* prerequisites;

// What a library has for each kernel (launch.h). Sizes are x, y, z of the grid, the block and
// the cluster.
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
void need_whole_warp(Site site);  // for what is undefined when a lane has returned
void fence();
void await_prerequisites(Site site);  // griddepcontrol.wait
int lane();

// barrier.cluster.arrive and .wait, which order memory as release and acquire do. All threads
// of the cluster that have not returned take part, from any lines.
void cluster_arrive(Site site);
void cluster_wait(Site site);
unsigned cluster_rank();  // of this block
unsigned cluster_blocks();
uint3 cluster_size();   // in blocks
uint3 cluster_block();  // this block's place in it
// Where the block of that rank has in shared memory what this one has at `mine`.
void* map_shared(const void* mine, unsigned rank);

}  // namespace cuda_host
