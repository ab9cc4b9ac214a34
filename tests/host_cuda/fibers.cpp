#include "fibers.h"

#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

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

namespace {

constexpr size_t page = 4096;
constexpr size_t stack_bytes = 256 * 1024;  // mapped: only what is touched costs memory

// ThreadSanitizer orders what one identity does, so threads of different blocks, which
// nothing orders, need different ones. An identity costs 1 ms and 1 MB, so blocks share
// them in sets, and a race is seen if the two blocks drew different sets: always for blocks 0
// and 1, and since the draw is the sum of a block's digits, for about half of the pairs at
// any distance.
#ifdef CUDA_HOST_TSAN
unsigned identity_sets(unsigned threads) { return threads < 128 ? 256 / threads : 2; }
#else
unsigned identity_sets(unsigned) { return 1; }
#endif

unsigned identity_set(unsigned block, unsigned threads) {
  const unsigned sets = identity_sets(threads);
  unsigned sum = 0;
  for (; sets > 1 && block > 0; block /= sets) sum += block % sets;
  return sum % sets;
}

struct Stack {
  char* bottom;
  void* tsan;
};

// The blocks that run side by side. A new one each time: ThreadSanitizer then knows that
// its barriers' clocks have nothing to do with those of the cluster before.
struct Cluster {
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;  // of all blocks
  std::vector<Warp> warps;
  int live = 0;
  Barrier barrier;
};

struct Scheduler {
  const Launch* launch = nullptr;
  Cluster* cluster = nullptr;
  std::vector<Stack> stacks;
  Fiber host;  // who called run()
  Fiber* first = nullptr;  // the run queue
  Fiber* last = nullptr;
  Fiber* came_from = nullptr;  // by the latest switch
  bool failed = false;
  char message[4096];
  char started = 0, ended = 0, fenced = 0;  // clocks: see Barrier::clocks
} scheduler;

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
  if (from == &scheduler.host) {
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
  if (to != &scheduler.host) {
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

[[noreturn]] void deadlock() {
  // Threads that wait at the same line are one group of the message.
  std::vector<const Fiber*> waiting;
  for (const Fiber& fiber : scheduler.cluster->fibers)
    if (!fiber.done) waiting.push_back(&fiber);
  char text[3000];
  size_t used = 0;
  auto add = [&](auto... arguments) {
    if (used < sizeof text) used += snprintf(text + used, sizeof text - used, arguments...);
  };
  while (!waiting.empty()) {
    const Site site = waiting.front()->site;
    std::vector<const Fiber*> others;
    int count = 0;
    add("\n  at %s, %s:%d:", site.kind, site.file, site.line);
    for (const Fiber* fiber : waiting) {
      if (fiber->site.line != site.line || fiber->site.kind != site.kind) {
        others.push_back(fiber);
      } else if (++count <= 4) {
        add(" (%u,%u,%u)", fiber->thread.x, fiber->thread.y, fiber->thread.z);
      }
    }
    add(count > 4 ? " and others, %d threads" : ", %d threads", count);
    waiting = others;
  }
  const Block& block = *scheduler.cluster->fibers[0].block;
  fail("deadlock: %d of %d threads returned, nobody can open the barriers where the rest wait%s",
       block.threads - block.live, block.threads, text);
}

// Goes on with the next fiber in the queue; the caller comes back when it is in the
// queue again and its turn comes.
void give_way() {
  Fiber* next = scheduler.first;
  if (next == nullptr) {
    if (scheduler.cluster->live > 0) deadlock();
    next = &scheduler.host;
  } else {
    scheduler.first = next->next;
  }
  if (next != current) switch_to(next);
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

// A thread that returned is not waited for, as on the device.
void retire(Fiber& fiber) {
  fiber.done = true;
  --scheduler.cluster->live;
  Block& block = *fiber.block;
  --block.live;
  if (block.barriers[0].arrived > 0 && block.barriers[0].arrived == block.live)
    open(block.barriers[0]);
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
  __tsan_release(&scheduler.ended);
  retire(*current);
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

// Shared memory is thread-local storage of the kernel's module (see __shared__), so the
// linker knows where all of it lies.
struct SharedMemory {
  const void* code;  // in the module
  char* begin = nullptr;
  char* end = nullptr;
};

int find_shared_memory(dl_phdr_info* info, size_t, void* out) {
  auto& found = *static_cast<SharedMemory*>(out);
  bool is_module = false;
  size_t bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    const uintptr_t code = reinterpret_cast<uintptr_t>(found.code);
    if (header.p_type == PT_LOAD) is_module |= begin <= code && code < begin + header.p_memsz;
    if (header.p_type == PT_TLS) bytes = header.p_memsz;
  }
  if (!is_module) return 0;
  found.begin = static_cast<char*>(info->dlpi_tls_data);
  found.end = found.begin + bytes;
  return 1;
}

// 0xFF bytes are NaNs and -1: a block that reads what it has not written gets nonsense,
// instead of what the block before it left.
void poison(char* begin, char* end) {
  memset(begin, 0xFF, end - begin);
#ifdef CUDA_HOST_TSAN
  // Fresh memory, as it would be from malloc: what the block before did with it, in no
  // order with the next, is no race.
  const uintptr_t aligned = reinterpret_cast<uintptr_t>(begin) & ~uintptr_t{7};
  __tsan_java_alloc(aligned, (reinterpret_cast<uintptr_t>(end) - aligned + 7) & ~uintptr_t{7});
#endif
}

void poison_shared(const SharedMemory& shared, char* dynamic, size_t dynamic_bytes) {
#ifdef CUDA_HOST_ASAN
  __asan_unpoison_memory_region(dynamic, largest_dynamic_shared + guard);
#endif
  poison(shared.begin, dynamic);
  poison(dynamic, dynamic + dynamic_bytes + guard);
  poison(dynamic + largest_dynamic_shared + guard, shared.end);
#ifdef CUDA_HOST_ASAN
  __asan_poison_memory_region(dynamic + dynamic_bytes,
                              largest_dynamic_shared + guard - dynamic_bytes);
#endif
}

// `from` says which kernel and block it was.
void report(const Fiber& from, const char* format, va_list arguments) {
  Scheduler& s = scheduler;
  const uint3 b = from.block->index;
  const int used = snprintf(s.message, sizeof s.message, "kernel %s, block (%u,%u,%u): ",
                            s.launch->kernel, b.x, b.y, b.z);
  vsnprintf(s.message + used, sizeof s.message - used, format, arguments);
  s.failed = true;
  s.first = nullptr;
}

void complain(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(scheduler.cluster->fibers[0], format, arguments);
  va_end(arguments);
}

void check_guard(const char* dynamic, size_t dynamic_bytes) {
#ifndef CUDA_HOST_ASAN
  for (size_t i = 0; i < guard; ++i)
    if (dynamic[dynamic_bytes + i] != '\xFF')
      return complain("byte %zu of dynamic shared memory was written, the launch asked for %zu",
                      dynamic_bytes + i, dynamic_bytes);
#endif
}

void run_block(uint3 index, const SharedMemory& shared, char* dynamic) {
  const Launch& launch = *scheduler.launch;
  const uint3 size = launch.block;
  const unsigned threads = size.x * size.y * size.z;
  poison_shared(shared, dynamic, launch.dynamic_shared_bytes);

  delete scheduler.cluster;
  scheduler.cluster = new Cluster;
  Cluster& cluster = *scheduler.cluster;
  cluster.fibers.resize(threads);
  cluster.blocks.resize(1);
  Block& block = cluster.blocks[0];
  block.index = index;
  block.fibers = cluster.fibers.data();
  cluster.warps.resize((threads + lanes_of_warp - 1) / lanes_of_warp);
  block.warps = cluster.warps.data();
  block.threads = block.live = cluster.live = threads;
  const uint3 grid = launch.grid;
  const size_t set = identity_set((index.z * grid.y + index.y) * grid.x + index.x, threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.index = i;
    fiber.thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    fiber.lane = i % lanes_of_warp;
    fiber.block = &block;
    fiber.warp = &block.warps[i / lanes_of_warp];
    fiber.warp->live |= 1u << fiber.lane;
    fiber.warp->lanes[fiber.lane] = &fiber;
    prepare(fiber, set * threads + i);
    enqueue(&fiber, &fiber);
  }
  give_way();
  __tsan_acquire(&scheduler.ended);
  if (!scheduler.failed) check_guard(dynamic, launch.dynamic_shared_bytes);
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(*current, format, arguments);
  va_end(arguments);
  switch_to(&scheduler.host);  // the other fibers are abandoned where they stand
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
  if (barrier.orders) __tsan_acquire(&barrier.clocks[generation % 2]);
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

// Orders the threads that pass one, in the order they do: more than the device promises,
// and enough for "write, fence, count; the last reads what all wrote".
void fence() {
  __tsan_acquire(&scheduler.fenced);
  __tsan_release(&scheduler.fenced);
}

int lane() { return current->lane; }

const char* run(const Launch& launch) {
  Scheduler& s = scheduler;
  s.launch = &launch;
  s.failed = false;
  s.first = nullptr;
  blockDim = {launch.block.x, launch.block.y, launch.block.z};
  gridDim = {launch.grid.x, launch.grid.y, launch.grid.z};
  const size_t threads = size_t{launch.block.x} * launch.block.y * launch.block.z;
  const char* complaint =
      threads == 0 || threads > threads_of_block     ? "a block has 1 to 1024 threads"
      : launch.block.z > 64                          ? "a block is at most 64 deep"
      : launch.grid.x == 0 || launch.grid.x >> 31    ? "the grid's x is 1 to 2^31 - 1"
      : launch.grid.y == 0 || launch.grid.y > 65535  ? "the grid's y is 1 to 65535"
      : launch.grid.z == 0 || launch.grid.z > 65535  ? "the grid's z is 1 to 65535"
      : launch.dynamic_shared_bytes > largest_dynamic_shared ? "too much dynamic shared memory"
                                                             : nullptr;
  if (complaint != nullptr) {
    snprintf(s.message, sizeof s.message,
             "kernel %s, grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of dynamic shared memory: %s",
             launch.kernel, launch.grid.x, launch.grid.y, launch.grid.z, launch.block.x,
             launch.block.y, launch.block.z, launch.dynamic_shared_bytes, complaint);
    return s.message;
  }
  char* dynamic = reinterpret_cast<char*>(launch.dynamic_shared());
  SharedMemory shared{reinterpret_cast<const void*>(launch.body)};
  dl_iterate_phdr(find_shared_memory, &shared);
  current = &s.host;
#ifdef CUDA_HOST_TSAN
  s.host.tsan = __tsan_get_current_fiber();
  static const bool once = (__tsan_java_init(page, 1ul << 47), true);
  (void)once;
  // All identities exist before the first block runs: one made later would be ordered
  // after the blocks before it.
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  const unsigned sets = identity_sets(threads);
  stack((blocks < sets ? blocks : sets) * threads - 1);
#endif
  __tsan_release(&s.started);
  for (unsigned z = 0; z < launch.grid.z && !s.failed; ++z)
    for (unsigned y = 0; y < launch.grid.y && !s.failed; ++y)
      for (unsigned x = 0; x < launch.grid.x && !s.failed; ++x)
        run_block({x, y, z}, shared, dynamic);
  return s.failed ? s.message : nullptr;
}

}  // namespace cuda_host
