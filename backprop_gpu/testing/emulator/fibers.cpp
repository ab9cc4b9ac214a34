#include "fibers.h"

#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

// What the sanitizers ask of code that switches stacks. Empty in the plain build.
#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUDA_HOST_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* clock);
void __tsan_release(void* clock);
void __tsan_java_init(uintptr_t heap, uintptr_t bytes);
void __tsan_java_alloc(uintptr_t begin, uintptr_t bytes);
}
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

// switch_stack(&from, to): saves what a call must preserve, and the stack pointer.
extern "C" void cuda_host_switch_stack(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_host_switch_stack
.type cuda_host_switch_stack, @function
cuda_host_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch_stack, .-cuda_host_switch_stack
)");
constexpr int saved_words = 8, entry_word = 6;  // the last stands for a return address
#elif defined(__aarch64__)
asm(R"(
.text
.globl cuda_host_switch_stack
.type cuda_host_switch_stack, %function
cuda_host_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_host_switch_stack, .-cuda_host_switch_stack
)");
constexpr int saved_words = 20, entry_word = 11;
#else
#error "no switch of stacks for this processor"
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {

Fiber* current = nullptr;
Prerequisites* prerequisites = nullptr;

namespace {

constexpr size_t page = 4096;
constexpr size_t stack_bytes = 256 * 1024;  // mapped: only what is touched costs memory

// ThreadSanitizer orders what one identity does, so threads of different blocks, which
// nothing orders, need different ones: those of a cluster always have them. An identity costs
// 1 ms and 1 MB, so clusters share them in sets, and a race is seen if the two clusters drew
// different sets: always for clusters 0 and 1, and since the draw is the sum of a cluster's
// digits, for about half of the pairs at any distance. Large clusters have one set.
#ifdef CUDA_HOST_TSAN
constexpr unsigned most_identities = 4096;  // with 8000 its memory runs out
unsigned identity_sets(unsigned threads) {
  return threads < 128 ? 256 / threads : threads <= 1024 ? 2 : 1;
}
#else
constexpr unsigned most_identities = ~0u;
unsigned identity_sets(unsigned) { return 1; }
#endif

unsigned identity_set(unsigned cluster, unsigned threads) {
  const unsigned sets = identity_sets(threads);
  unsigned sum = 0;
  for (; sets > 1 && cluster > 0; cluster /= sets) sum += cluster % sets;
  return sum % sets;
}

struct Stack {
  char* bottom;
  void* tsan;
};

// Where the kernel's module has its thread-local storage, all of it shared memory (see
// __shared__), and in it the array of dynamic size.
struct SharedMemory {
  char* begin = nullptr;
  char* end = nullptr;
  char* dynamic = nullptr;
};

}  // namespace

// An OS thread. Fibers of other threads are reached through `home`, its own stack.
struct Carrier {
  Fiber home;
  SharedMemory shared;
  sem_t baton;

  Carrier() { sem_init(&baton, 0, 0); }
};

namespace {

// The blocks that run side by side. A new one each time: ThreadSanitizer then knows that
// its barriers' clocks have nothing to do with those of the cluster before.
struct Cluster {
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;  // of all blocks
  std::vector<Warp> warps;
  int live = 0;
  Barrier barrier;
  Barrier prerequisites;  // opens once, when nobody gets further without
};

struct Scheduler {
  const Launch* launch = nullptr;
  Cluster* cluster = nullptr;
  std::vector<Stack> stacks;
  std::vector<Carrier*> carriers;  // by rank; 0 is who called run()
  pid_t process = 0;               // of the carriers; a fork leaves them behind
  Fiber* first = nullptr;  // the run queue
  Fiber* last = nullptr;
  Fiber* next = nullptr;       // to run; null when the cluster is done
  Fiber* came_from = nullptr;  // by the latest switch
  bool cooperative = false;  // the cluster is none: only blocks that run side by side
  bool waited = false;       // a thread did, for the prerequisites
  bool failed = false;
  char message[8192];
  char started = 0, ended = 0, fenced = 0;  // clocks: see Barrier::clocks
} scheduler;

bool is_home(const Fiber* fiber) { return fiber->block == nullptr; }

void enqueue(Fiber* first, Fiber* last) {
  if (scheduler.first == nullptr) {
    scheduler.first = first;
  } else {
    scheduler.last->next = first;
  }
  scheduler.last = last;
  last->next = nullptr;
}

void landed(Fiber* from) {
#ifdef CUDA_HOST_ASAN
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(current->asan, &stack, &bytes);
  if (is_home(from)) {
    from->stack = stack;
    from->stack_bytes = bytes;
  }
#else
  (void)from;
#endif
}

void switch_to(Fiber* to) {
  Fiber* from = scheduler.came_from = current;
  current = to;
  if (!is_home(to)) {
    threadIdx = to->thread;
    blockIdx = to->block->index;
  }
#ifdef CUDA_HOST_ASAN
  // A fiber that is done gives its fake stack back.
  __sanitizer_start_switch_fiber(from->done ? nullptr : &from->asan, to->stack, to->stack_bytes);
#endif
#ifdef CUDA_HOST_TSAN
  constexpr unsigned without_ordering = 1;
  __tsan_switch_to_fiber(to->tsan, without_ordering);
#endif
  cuda_host_switch_stack(&from->stack_pointer, to->stack_pointer);
  landed(scheduler.came_from);
}

// From home to home: so ThreadSanitizer, which takes a semaphore for an order, orders these
// and not the fibers.
void pass_baton(Carrier& to) { sem_post(&to.baton); }

void await_baton(Carrier& mine) {
  while (sem_wait(&mine.baton) != 0) {  // a signal
  }
}

// Runs this OS thread's fibers for as long as it is their turn.
void carry(Carrier& mine) {
  current = &mine.home;
  while (scheduler.next != nullptr && scheduler.next->block->carrier == &mine)
    switch_to(scheduler.next);
}

[[noreturn]] void deadlock() {
  // Threads that wait at the same line are one group of the message.
  const Cluster& cluster = *scheduler.cluster;
  std::vector<const Fiber*> waiting;
  for (const Fiber& fiber : cluster.fibers)
    if (!fiber.done) waiting.push_back(&fiber);
  char text[7000];
  size_t used = 0;
  auto add = [&](auto... arguments) {
    if (used < sizeof text) used += snprintf(text + used, sizeof text - used, arguments...);
  };
  while (!waiting.empty()) {
    const Site site = waiting.front()->site;
    const Block* block = waiting.front()->block;
    std::vector<const Fiber*> others;
    int count = 0;
    add("\n  at %s, %s:%d:", site.kind, site.file, site.line);
    if (cluster.blocks.size() > 1)
      add(" block (%u,%u,%u):", block->index.x, block->index.y, block->index.z);
    for (const Fiber* fiber : waiting) {
      if (fiber->site.line != site.line || fiber->site.kind != site.kind ||
          fiber->block != block) {
        others.push_back(fiber);
      } else if (++count <= 4) {
        add(" (%u,%u,%u)", fiber->thread.x, fiber->thread.y, fiber->thread.z);
      }
    }
    add(count > 4 ? " and others, %d threads" : ", %d threads", count);
    waiting = others;
  }
  const int threads = cluster.fibers.size();
  fail("deadlock: %d of %d threads returned, nobody can open the barriers where the rest wait%s",
       threads - cluster.live, threads, text);
}

// Leaves this fiber for one of its OS thread, or for home, which passes the baton on.
void go_to(Fiber* next) {
  Carrier* mine = current->block->carrier;
  scheduler.next = next;
  switch_to(next != nullptr && next->block->carrier == mine ? next : &mine->home);
}

void open(Barrier& barrier);

// Goes on with the next fiber in the queue; the caller comes back when it is in the
// queue again and its turn comes.
void give_way() {
  Barrier& early = scheduler.cluster->prerequisites;
  if (scheduler.first == nullptr && early.first_waiting != nullptr) {
    prerequisites(true);
    open(early);
  }
  Fiber* next = scheduler.first;
  if (next != nullptr) {
    scheduler.first = next->next;
  } else if (scheduler.cluster->live > 0) {
    deadlock();
  }
  if (next != current) go_to(next);
}

void open(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
  if (barrier.first_waiting != nullptr) enqueue(barrier.first_waiting, barrier.last_waiting);
  barrier.first_waiting = nullptr;
}

bool same(Site a, Site b) {
  return a.line == b.line && a.kind == b.kind && strcmp(a.file, b.file) == 0;
}

void serve(Warp& warp, const WarpBarrier& barrier) {
  const uint32_t participants = barrier.mask & warp.live;
  if (barrier.exchange == Exchange::none) return;
  uint64_t ballot = 0;
  for (int lane = 0; lane < lanes_of_warp; ++lane)
    if (participants >> lane & 1) ballot |= (warp.lanes[lane]->offered & 1) << lane;
  for (int lane = 0; lane < lanes_of_warp; ++lane) {
    if (!(participants >> lane & 1)) continue;
    Fiber& fiber = *warp.lanes[lane];
    if (barrier.exchange == Exchange::ballot) {
      fiber.received = ballot;
    } else if (participants >> fiber.source & 1) {
      fiber.received = warp.lanes[fiber.source]->offered;
    } else {
      fail("%s, %s:%d: lane %d reads lane %d, which does not take part", barrier.site.kind,
           barrier.site.file, barrier.site.line, lane, fiber.source);
    }
  }
}

// 0xFF bytes are NaNs and -1. What the launch did not ask for is left alone.
void fill(const SharedMemory& shared) {
  auto fill_range = [](char* begin, char* end) { memset(begin, 0xFF, end - begin); };
  char* dynamic = shared.dynamic;
  fill_range(shared.begin, dynamic);
  fill_range(dynamic, dynamic + scheduler.launch->dynamic_shared_bytes + guard);
  fill_range(dynamic + largest_dynamic_shared + guard, shared.end);
}

// To ThreadSanitizer, memory as malloc gives it: what somebody else did with it, in no order
// with what comes, is no race.
void make_fresh(const SharedMemory& shared) {
#ifdef CUDA_HOST_TSAN
  const uintptr_t begin = reinterpret_cast<uintptr_t>(shared.begin) & ~uintptr_t{7};
  const uintptr_t end = (reinterpret_cast<uintptr_t>(shared.end) + 7) & ~uintptr_t{7};
  __tsan_java_alloc(begin, end - begin);
#else
  (void)shared;
#endif
}

// A block that reads what it has not written gets nonsense, instead of what the block before
// it left.
void begin_block(const SharedMemory& shared) {
#ifdef CUDA_HOST_ASAN
  __asan_unpoison_memory_region(shared.begin, shared.end - shared.begin);
#endif
  fill(shared);
  make_fresh(shared);
#ifdef CUDA_HOST_ASAN
  const size_t asked = scheduler.launch->dynamic_shared_bytes;
  __asan_poison_memory_region(shared.dynamic + asked, largest_dynamic_shared + guard - asked);
#endif
}

// All its threads have returned, the last one just now.
void end_block(Block& block) {
  const SharedMemory& shared = block.carrier->shared;
#ifndef CUDA_HOST_ASAN
  const size_t asked = scheduler.launch->dynamic_shared_bytes;
  for (size_t i = 0; i < guard; ++i)
    if (shared.dynamic[asked + i] != '\xFF')
      fail("byte %zu of dynamic shared memory was written, the launch asked for %zu", asked + i,
           asked);
#endif
  if (scheduler.cluster->blocks.size() == 1) return;
  // Shared memory is no longer the block's. ThreadSanitizer takes memset for a write, after
  // all that the block's own threads did, and so sees a peer's access that nothing orders
  // before.
  __tsan_acquire(&block.ended);
#ifdef CUDA_HOST_ASAN
  __asan_poison_memory_region(shared.begin, shared.end - shared.begin);
#else
  fill(shared);
#endif
}

// A thread that returned is not waited for, as on the device.
void retire(Fiber& fiber) {
  fiber.done = true;
  Cluster& cluster = *scheduler.cluster;
  --cluster.live;
  Block& block = *fiber.block;
  if (cluster.blocks.size() > 1) __tsan_release(&block.ended);
  if (--block.live == 0) end_block(block);
  if (block.barriers[0].arrived > 0 && block.barriers[0].arrived == block.live)
    open(block.barriers[0]);
  if (fiber.in_cluster_barrier && fiber.cluster_generation == cluster.barrier.generation)
    --cluster.barrier.arrived;
  if (cluster.barrier.arrived > 0 && cluster.barrier.arrived == cluster.live)
    open(cluster.barrier);
  Warp& warp = *fiber.warp;
  const uint32_t bit = 1u << fiber.lane;
  warp.live &= ~bit;
  for (WarpBarrier& barrier : warp.barriers) {
    if (barrier.arrived == 0 || !(barrier.mask & bit) || --barrier.expected > barrier.arrived)
      continue;
    serve(warp, barrier);
    open(barrier);
  }
}

void fiber_main() {
  landed(scheduler.came_from);
  __tsan_acquire(&scheduler.started);
  scheduler.launch->body(scheduler.launch->arguments);
  retire(*current);
  __tsan_release(&scheduler.ended);
  give_way();
  __builtin_unreachable();
}

Stack& stack(size_t i) {
  while (scheduler.stacks.size() <= i) {
    void* memory = mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mprotect(memory, page, PROT_NONE);  // so that an overflow is a fault, not a riddle
    Stack stack{static_cast<char*>(memory) + page, nullptr};
#ifdef CUDA_HOST_TSAN
    stack.tsan = __tsan_create_fiber(0);
#endif
    scheduler.stacks.push_back(stack);
  }
  return scheduler.stacks[i];
}

// What fibers that were abandoned have left on theirs is nobody's, in a sanitizer's eyes, too.
void forget_stacks() {
  for (const Stack& stack : scheduler.stacks) {
#ifdef CUDA_HOST_ASAN
    __asan_unpoison_memory_region(stack.bottom, stack_bytes);
#endif
#ifdef CUDA_HOST_TSAN
    __tsan_destroy_fiber(stack.tsan);
#endif
    munmap(stack.bottom - page, stack_bytes + page);
  }
  scheduler.stacks.clear();
}

// Puts a fiber at the start of fiber_main.
void prepare(Fiber& fiber, size_t number) {
  const Stack& own = stack(number);
  fiber.stack = own.bottom;
  fiber.stack_bytes = stack_bytes;
  fiber.tsan = own.tsan;
  // Stacks that start at the same offset of a page would compete for the same cache sets.
  const size_t colour = number % 32 * 448;
  void** top = reinterpret_cast<void**>(own.bottom + stack_bytes - colour);
  void** frame = top - saved_words;
  for (int i = 0; i < saved_words; ++i) frame[i] = nullptr;
  frame[entry_word] = reinterpret_cast<void*>(&fiber_main);
  fiber.stack_pointer = frame;
}

int find_around_dynamic(dl_phdr_info* info, size_t, void* out) {
  auto& shared = *static_cast<SharedMemory*>(out);
  char* begin = static_cast<char*>(info->dlpi_tls_data);  // of this OS thread
  for (int i = 0; begin != nullptr && i < info->dlpi_phnum; ++i) {
    char* end = begin + info->dlpi_phdr[i].p_memsz;
    if (info->dlpi_phdr[i].p_type != PT_TLS || shared.dynamic < begin || shared.dynamic >= end)
      continue;
    shared.begin = begin;
    shared.end = end;
    return 1;
  }
  return 0;
}

void locate_shared(Carrier& mine) {
  mine.shared.dynamic = reinterpret_cast<char*>(scheduler.launch->dynamic_shared());
  dl_iterate_phdr(find_around_dynamic, &mine.shared);
  make_fresh(mine.shared);
}

// What the OS threads of all blocks but the first do.
void* carry_for_ever(void* carrier) {
  Carrier& mine = *static_cast<Carrier*>(carrier);
#ifdef CUDA_HOST_TSAN
  mine.home.tsan = __tsan_get_current_fiber();
#endif
  for (;;) {
    await_baton(mine);
    if (scheduler.next == nullptr) locate_shared(mine);
    carry(mine);
    pass_baton(scheduler.next != nullptr ? *scheduler.next->block->carrier
                                         : *scheduler.carriers[0]);
  }
}

// One for each block of a cluster, each knowing where the kernel's shared memory is.
void muster_carriers(size_t blocks) {
  Scheduler& s = scheduler;
  if (s.process != getpid()) s.carriers.clear();
  s.process = getpid();
  while (s.carriers.size() < blocks) {
    s.carriers.push_back(new Carrier);
    pthread_t thread;
    if (s.carriers.size() > 1 &&
        pthread_create(&thread, nullptr, carry_for_ever, s.carriers.back()) != 0)
      abort();
  }
  s.next = nullptr;
  for (size_t rank = 1; rank < blocks; ++rank) {
    pass_baton(*s.carriers[rank]);
    await_baton(*s.carriers[0]);
  }
  locate_shared(*s.carriers[0]);
#ifdef CUDA_HOST_TSAN
  s.carriers[0]->home.tsan = __tsan_get_current_fiber();
#endif
}

bool is_cooperative(const Launch& launch) {
  return launch.cluster.x == 0 && launch.cluster.y == 0 && launch.cluster.z == 0;
}

// All blocks of a small cooperative grid; of a larger one as many, a power of 2, as it is a multiple of.
unsigned side_by_side(uint3 grid) {
  unsigned blocks = blocks_of_cluster;
  if (grid.x <= blocks) return grid.x;
  while (blocks > 1 && grid.x % blocks != 0) blocks /= 2;
  return blocks;
}

void run_cluster(uint3 index) {
  Scheduler& s = scheduler;
  const Launch& launch = *s.launch;
  const uint3 size = launch.block, shape = launch.cluster, grid = launch.grid;
  const unsigned threads = size.x * size.y * size.z, blocks = shape.x * shape.y * shape.z;
  const unsigned warps = (threads + lanes_of_warp - 1) / lanes_of_warp;
  const unsigned number = (index.z * (grid.y / shape.y) + index.y) * (grid.x / shape.x) + index.x;
  const size_t set = identity_set(number, threads * blocks);

  delete s.cluster;
  s.cluster = new Cluster;
  Cluster& cluster = *s.cluster;
  cluster.blocks.resize(blocks);
  cluster.fibers.resize(blocks * threads);
  cluster.warps.resize(blocks * warps);
  cluster.live = blocks * threads;
  cluster.barrier.one_site = false;
  cluster.prerequisites.orders = false;
  for (unsigned rank = 0; rank < blocks; ++rank) {
    Block& block = cluster.blocks[rank];
    block.rank = rank;
    block.index = {index.x * shape.x + rank % shape.x,
                   index.y * shape.y + rank / shape.x % shape.y,
                   index.z * shape.z + rank / shape.x / shape.y};
    block.carrier = s.carriers[rank];
    block.fibers = &cluster.fibers[rank * threads];
    block.warps = &cluster.warps[rank * warps];
    block.live = threads;
    begin_block(block.carrier->shared);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = block.fibers[i];
      fiber.index = i;
      fiber.thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
      fiber.lane = i % lanes_of_warp;
      fiber.block = &block;
      fiber.warp = &block.warps[i / lanes_of_warp];
      fiber.warp->live |= 1u << fiber.lane;
      fiber.warp->lanes[fiber.lane] = &fiber;
      prepare(fiber, (set * blocks + rank) * threads + i);
      enqueue(&fiber, &fiber);
    }
  }
  if (prerequisites != nullptr) prerequisites(false);
  s.next = s.first;
  s.first = s.first->next;
  for (;;) {
    carry(*s.carriers[0]);
    if (s.next == nullptr) break;
    pass_baton(*s.next->block->carrier);
    await_baton(*s.carriers[0]);
  }
  __tsan_acquire(&s.ended);
}

}  // namespace

void fail(const char* format, ...) {
  Scheduler& s = scheduler;
  const uint3 block = current->block->index;
  const int used = snprintf(s.message, sizeof s.message, "kernel %s, block (%u,%u,%u): ",
                            s.launch->kernel, block.x, block.y, block.z);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(s.message + used, sizeof s.message - used, format, arguments);
  va_end(arguments);
  __tsan_release(&s.ended);  // who called run() reads the message
  s.failed = true;
  s.first = nullptr;
  go_to(nullptr);  // the other fibers are abandoned where they stand
  __builtin_unreachable();
}

unsigned arrive(Barrier& barrier, Site site) {
  if (barrier.arrived == 0) {
    barrier.site = site;
    barrier.first_arrived = current;
  } else if (barrier.one_site && !same(barrier.site, site)) {
    const uint3 a = barrier.first_arrived->thread, b = current->thread;
    fail("threads meet at different barriers: (%u,%u,%u) at %s, %s:%d, but (%u,%u,%u) at %s, %s:%d",
         a.x, a.y, a.z, barrier.site.kind, barrier.site.file, barrier.site.line,  //
         b.x, b.y, b.z, site.kind, site.file, site.line);
  }
  const unsigned generation = barrier.generation;
  if (barrier.orders) __tsan_release(&barrier.clocks[generation % 2]);
  current->site = site;
  if (++barrier.arrived == barrier.expected) open(barrier);
  return generation;
}

void wait(Barrier& barrier, unsigned generation) {
  const bool orders = barrier.orders;  // who comes next may use it for something else
  if (barrier.generation == generation) {
    Fiber* fiber = current;
    fiber->next = nullptr;
    if (barrier.first_waiting == nullptr) {
      barrier.first_waiting = fiber;
    } else {
      barrier.last_waiting->next = fiber;
    }
    barrier.last_waiting = fiber;
    give_way();
  }
  if (orders) __tsan_acquire(&barrier.clocks[generation % 2]);
}

void yield() {
  enqueue(current, current);
  give_way();
}

void block_barrier(Site site) {
  Block& block = *current->block;
  block.barriers[0].expected = block.live;
  wait(block.barriers[0], arrive(block.barriers[0], site));
}

namespace {
Barrier& named(int id, int participants) {
  if (id < 1 || id >= named_barriers) fail("no barrier %d: 1 to 15, and 0 is the block's", id);
  Barrier& barrier = current->block->barriers[id];
  if (barrier.arrived > 0 && barrier.expected != participants)
    fail("barrier %d: %d participants or %d?", id, barrier.expected, participants);
  barrier.expected = participants;
  barrier.one_site = false;
  return barrier;
}
}  // namespace

void named_barrier(int id, int participants, Site site) {
  Barrier& barrier = named(id, participants);
  wait(barrier, arrive(barrier, site));
}

void named_arrive(int id, int participants, Site site) { arrive(named(id, participants), site); }

uint64_t warp_barrier(uint32_t mask, Site site, Exchange exchange, uint64_t offered, int source) {
  Fiber& fiber = *current;
  Warp& warp = *fiber.warp;
  if (!(mask >> fiber.lane & 1))
    fail("%s, %s:%d: lane %d is not in its mask %08x", site.kind, site.file, site.line, fiber.lane,
         mask);
  WarpBarrier& barrier = warp.barriers[__builtin_ctz(mask)];
  if (barrier.arrived == 0) {
    barrier.mask = mask;
    barrier.exchange = exchange;
    barrier.orders = exchange == Exchange::none;
    barrier.expected = __builtin_popcount(mask & warp.live);
  } else if (barrier.mask != mask) {
    fail("%s, %s:%d: lane %d comes with mask %08x, others with %08x", site.kind, site.file,
         site.line, fiber.lane, mask, barrier.mask);
  }
  fiber.offered = offered;
  fiber.source = source;
  if (barrier.arrived + 1 == barrier.expected) serve(warp, barrier);
  const unsigned generation = arrive(barrier, site);
  wait(barrier, generation);
  return fiber.received;
}

void need_whole_warp(Site site) {
  if (current->warp->live != 0xffffffffu)
    fail("%s, %s:%d: of the warp's lanes only %08x are there", site.kind, site.file, site.line,
         current->warp->live);
}

// Orders the threads that pass one, in the order they do: more than the device promises,
// and enough for "write, fence, count; the last reads what all wrote".
void fence() {
  __tsan_acquire(&scheduler.fenced);
  __tsan_release(&scheduler.fenced);
}

void await_prerequisites(Site site) {
  if (prerequisites == nullptr) return;
  scheduler.waited = true;
  current->site = site;
  wait(scheduler.cluster->prerequisites, 0);
}

int lane() { return current->lane; }

namespace {
void refuse_without_cluster(const char* what) {
  if (scheduler.cooperative) fail("%s: the blocks of a cooperative launch are no cluster", what);
}
}  // namespace

void cluster_arrive(Site site) {
  Fiber& fiber = *current;
  Cluster& cluster = *scheduler.cluster;
  refuse_without_cluster(site.kind);
  if (fiber.in_cluster_barrier)
    fail("%s, %s:%d: thread (%u,%u,%u) arrives again before it has waited", site.kind, site.file,
         site.line, fiber.thread.x, fiber.thread.y, fiber.thread.z);
  fiber.in_cluster_barrier = true;
  cluster.barrier.expected = cluster.live;
  fiber.cluster_generation = arrive(cluster.barrier, site);
}

void cluster_wait(Site site) {
  Fiber& fiber = *current;
  if (!fiber.in_cluster_barrier)
    fail("%s, %s:%d: thread (%u,%u,%u) waits and has not arrived", site.kind, site.file, site.line,
         fiber.thread.x, fiber.thread.y, fiber.thread.z);
  fiber.site = site;
  wait(scheduler.cluster->barrier, fiber.cluster_generation);
  fiber.in_cluster_barrier = false;
}

unsigned cluster_rank() {
  refuse_without_cluster("cluster_rank");
  return current->block->rank;
}

unsigned cluster_blocks() {
  refuse_without_cluster("cluster_blocks");
  return scheduler.cluster->blocks.size();
}

uint3 cluster_size() {
  refuse_without_cluster("cluster_size");
  return scheduler.launch->cluster;
}

uint3 cluster_block() {
  const uint3 size = cluster_size(), block = current->block->index;
  return {block.x % size.x, block.y % size.y, block.z % size.z};
}

void* map_shared(const void* mine, unsigned rank) {
  const SharedMemory& own = current->block->carrier->shared;
  const char* address = static_cast<const char*>(mine);
  if (address < own.begin || address >= own.end)
    fail("map_shared: %p is not in the block's shared memory", mine);
  if (rank >= cluster_blocks())
    fail("map_shared: rank %u in a cluster of %u", rank, cluster_blocks());
  return scheduler.carriers[rank]->shared.begin + (address - own.begin);
}

const char* run(const Launch& asked) {
  Scheduler& s = scheduler;
  Launch launch = asked;
  s.cooperative = is_cooperative(asked);
  if (s.cooperative) launch.cluster = {side_by_side(launch.grid), 1, 1};
  s.launch = &launch;
  s.failed = s.waited = false;
  s.first = nullptr;
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  const uint3 grid = launch.grid, block = launch.block, cluster = launch.cluster;
  const size_t threads = size_t{block.x} * block.y * block.z;
  const size_t blocks = size_t{cluster.x} * cluster.y * cluster.z;
  const char* complaint =
      threads == 0 || threads > threads_of_block ? "a block has 1 to 1024 threads"
      : block.z > 64                             ? "a block is at most 64 deep"
      : grid.x == 0 || grid.x >> 31              ? "the grid's x is 1 to 2^31 - 1"
      : grid.y == 0 || grid.y > 65535            ? "the grid's y is 1 to 65535"
      : grid.z == 0 || grid.z > 65535            ? "the grid's z is 1 to 65535"
      : blocks == 0 || blocks > blocks_of_cluster ? "a cluster has 1 to 16 blocks"
      : s.cooperative && (grid.y > 1 || grid.z > 1) ? "a cooperative grid extends along x here"
      : grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z
          ? "the grid is no multiple of the cluster"
      : blocks * threads > most_identities ? "ThreadSanitizer knows at most 4096 threads at once"
      : launch.dynamic_shared_bytes > largest_dynamic_shared ? "too much dynamic shared memory"
                                                             : nullptr;
  if (complaint != nullptr) {
    snprintf(s.message, sizeof s.message,
             "kernel %s, grid (%u,%u,%u), block (%u,%u,%u), cluster (%u,%u,%u), %zu bytes of "
             "dynamic shared memory: %s",
             launch.kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, cluster.x,
             cluster.y, cluster.z, launch.dynamic_shared_bytes, complaint);
    return s.message;
  }
#ifdef CUDA_HOST_TSAN
  static const bool once = (__tsan_java_init(page, 1ul << 47), true);
  (void)once;
#endif
  muster_carriers(blocks);
  const uint3 clusters{grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z};
#ifdef CUDA_HOST_TSAN
  // All identities exist before the first block runs: one made later would be ordered
  // after the blocks before it.
  const size_t sets = identity_sets(blocks * threads);
  const size_t count = size_t{clusters.x} * clusters.y * clusters.z;
  stack((count < sets ? count : sets) * blocks * threads - 1);
#endif
  __tsan_release(&s.started);
  for (unsigned z = 0; z < clusters.z && !s.failed; ++z)
    for (unsigned y = 0; y < clusters.y && !s.failed; ++y)
      for (unsigned x = 0; x < clusters.x && !s.failed; ++x) run_cluster({x, y, z});
  if (s.failed) {
    forget_stacks();
    return s.message;
  }
  if (prerequisites == nullptr || s.waited) return nullptr;
  snprintf(s.message, sizeof s.message,
           "kernel %s was launched programmatically, and none of its threads has waited for the "
           "kernels before it (griddepcontrol.wait)",
           launch.kernel);
  return s.message;
}

}  // namespace cuda_host
