// Allocations have pages of their own, which the host may touch only while an operation that
// names them runs, and addresses that are not given out again. What lies before and behind the
// bytes that were asked for must stay as it is.
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fibers.h"
#include "driver.h"

#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace standin {

namespace {

constexpr size_t page = 4096;
constexpr size_t front = 512;     // as far as a driver aligns
constexpr size_t back = 256;      // at least
constexpr char guard = '\xA5';    // fresh memory is 0xFF: NaN and -1
constexpr size_t remembered = 20000;  // freed allocations
#ifdef CUDA_HOST_TSAN
// Where ThreadSanitizer lets programs be.
constexpr size_t arena_bytes = size_t{1} << 38;
constexpr uintptr_t arena_hint = 0x7e9000000000;
#else
constexpr size_t arena_bytes = size_t{1} << 41;
constexpr uintptr_t arena_hint = 0;
#endif

// Addresses, and nothing behind them until they are given out.
struct Arena {
  char* begin = nullptr;
  char* next = nullptr;
  char* end = nullptr;

  void reserve() {
    for (size_t bytes = arena_bytes; bytes >= arena_bytes >> 6; bytes /= 2) {
      void* found = mmap(reinterpret_cast<void*>(arena_hint), bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (found == MAP_FAILED) continue;
      begin = next = static_cast<char*>(found);
      end = begin + bytes;
      return;
    }
    fail(CUDA_ERROR_OUT_OF_MEMORY, "no %zu bytes of addresses are left to reserve", arena_bytes);
  }
} arena;

std::vector<std::shared_ptr<Memory>> opened;

void protect(const Memory& memory, int access) {
  if (mprotect(memory.begin, memory.page_bytes, access) != 0)
    fail(CUDA_ERROR_UNKNOWN, "mprotect failed: too many mappings?");
}

std::shared_ptr<Memory> allocate(Context& context, size_t bytes, bool host) {
  if (bytes == 0) fail(CUDA_ERROR_INVALID_VALUE, "0 bytes were asked for");
  if (arena.begin == nullptr) arena.reserve();
  const size_t pages = (front + bytes + back + page - 1) / page * page;
  if (!host && context.used + bytes > state.card->memory)
    fail(CUDA_ERROR_OUT_OF_MEMORY, "%zu bytes were asked for, and of %zu there are %zu left",
         bytes, state.card->memory, state.card->memory - context.used);
  if (bytes > arena_bytes || arena.next + pages + page > arena.end)
    fail(CUDA_ERROR_OUT_OF_MEMORY, "all addresses were given out once");
  static uint64_t number = 0;
  auto memory = std::make_shared<Memory>();
  memory->number = ++number;
  memory->begin = arena.next + page;  // a page between two that nobody may touch
  memory->page_bytes = pages;
  memory->address = memory->begin + front;
  memory->bytes = bytes;
  memory->context = &context;
  memory->host = host;
  arena.next = memory->begin + pages;
  protect(*memory, PROT_READ | PROT_WRITE);
  memset(memory->begin, guard, front);
  memset(memory->address, 0xFF, bytes);
  char* behind = memory->address + bytes;
  memset(behind, guard, memory->begin + pages - behind);
#ifdef CUDA_HOST_ASAN
  __asan_poison_memory_region(memory->begin, front);
  __asan_poison_memory_region(behind, memory->begin + pages - behind);
#endif
  if (!host) {
    protect(*memory, PROT_NONE);
    context.used += bytes;
  }
  state.memory[reinterpret_cast<uintptr_t>(memory->address)] = memory;
  return memory;
}

// The pages go, the addresses stay taken.
void release(Memory& memory) {
  memory.freed = memory.free_asked = true;
#ifdef CUDA_HOST_ASAN
  __asan_unpoison_memory_region(memory.begin, memory.page_bytes);
#endif
  mmap(memory.begin, memory.page_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  memory.open = false;
  if (!memory.host) memory.context->used -= memory.bytes;
  if (memory.pool != nullptr) memory.pool->used -= memory.bytes;
  static size_t freed = 0;
  if (++freed <= remembered) return;
  for (auto i = state.memory.begin(); i != state.memory.end(); ++i)
    if (i->second->freed) {
      state.memory.erase(i);
      --freed;
      break;
    }
}

std::shared_ptr<Memory> start_of(CUdeviceptr address, const char* what) {
  const auto memory = memory_at(reinterpret_cast<void*>(address));
  if (memory == nullptr || reinterpret_cast<CUdeviceptr>(memory->address) != address)
    fail(CUDA_ERROR_INVALID_VALUE, "%#llx does not begin an allocation", address);
  if (memory->free_asked)
    fail(CUDA_ERROR_INVALID_VALUE, "%s was freed before, by %s", memory->name().c_str(),
         memory->free_by.c_str());
  memory->free_by = what;
  return memory;
}

// The unfinished operations that come before it in any order.
void visit_before(const Operation& last, uint64_t visit) {
  std::vector<const Operation*> open{&last};
  while (!open.empty()) {
    const Operation* next = open.back();
    open.pop_back();
    for (const auto& before : next->after)
      if (!before->done && before->visit != visit) {
        before->visit = visit;
        open.push_back(before.get());
      }
  }
}

}  // namespace

std::string Memory::name() const {
  return text("%s %llu (%zu bytes at %p of %s)", host ? "pinned buffer" : "buffer",
              (unsigned long long)number, bytes, address,
              host ? "the host" : text("device %d", context->device).c_str());
}

bool in_arena(const void* address) {
  return address >= arena.begin && address < arena.next && arena.begin != nullptr;
}

std::shared_ptr<Memory> memory_at(const void* address) {
  if (!in_arena(address)) return nullptr;
  auto found = state.memory.upper_bound(reinterpret_cast<uintptr_t>(address));
  if (found == state.memory.begin()) return nullptr;
  const auto& memory = (--found)->second;
  return address < memory->address + memory->bytes ? memory : nullptr;
}

std::string unusable(const Memory& memory, const Context* context, bool at_submission) {
  if (memory.freed || (at_submission && memory.free_asked))
    return text("%s was freed by %s", memory.name().c_str(), memory.free_by.c_str());
  if (context != nullptr && memory.context != context && !memory.host)
    return text("%s is used on device %d", memory.name().c_str(), context->device);
  if (!at_submission && memory.made != nullptr && !memory.made->done)
    return text("%s was allocated on another stream, and nothing waits for that",
                memory.name().c_str());
  return "";
}

void open_pages(const std::vector<std::shared_ptr<Memory>>& wanted) {
  // What is open from the operation before and wanted again stays open.
  const uint64_t visit = ++state.visits;
  for (const auto& memory : wanted) memory->visit = visit;
  for (const auto& memory : opened) {
    if (memory->visit == visit) continue;
    memory->open = false;
    if (!memory->freed) protect(*memory, PROT_NONE);
  }
  opened.clear();
  for (const auto& memory : wanted) {
    if (memory->host || memory->freed || memory->visit != visit) continue;
    memory->visit = 0;  // it may be named twice
    if (!memory->open) protect(*memory, PROT_READ | PROT_WRITE);
    memory->open = true;
    opened.push_back(memory);
  }
}

void close_pages() { open_pages({}); }

void close_early(const std::vector<std::shared_ptr<Memory>>& named, bool early, bool first) {
  constexpr size_t closed_often = 256 << 10;  // 0.2 us a page
  for (const auto& memory : named) {
    if (memory->host || memory->early == early) continue;  // the host may be at a pinned one
    if (early && !first && memory->page_bytes > closed_often) continue;
    protect(*memory, early ? PROT_NONE : PROT_READ | PROT_WRITE);
    memory->early = early;
  }
}

void check_guards(const std::vector<std::shared_ptr<Memory>>& all, const char* what) {
#ifdef CUDA_HOST_ASAN
  return;  // it sees the write itself
#endif
  static const std::vector<char> intact(page + front + back, guard);
  for (const auto& memory : all) {
    if (memory->freed) continue;
    const char* behind = memory->address + memory->bytes;
    const size_t rest = memory->begin + memory->page_bytes - behind;
    const bool low = memcmp(memory->begin, intact.data(), front) != 0;
    const bool high = memcmp(behind, intact.data(), rest) != 0;
    if (!low && !high) continue;
    const char* at = low ? memory->begin : behind;
    while (*at == guard) ++at;
    const long offset = at - memory->address;
    memset(memory->begin, guard, front);
    memset(const_cast<char*>(behind), guard, rest);
    fail(CUDA_ERROR_ILLEGAL_ADDRESS, "%s wrote at byte %ld of %s", what, offset,
         memory->name().c_str());
  }
}

// -------------------------------------------------------------------------------- faults

Fault* faulting = nullptr;
CUresult fault_result = CUDA_SUCCESS;

namespace {

struct sigaction before[2];

#if defined(CUDA_HOST_ASAN) || defined(CUDA_HOST_TSAN)
constexpr bool survives = false;  // a sanitizer does not follow who leaves a handler by a switch
#else
constexpr bool survives = true;
#endif

// Whether the thread that faulted runs device code: its stack is a fiber's.
bool in_kernel(cuda_host::Fiber* fiber) {
  const char* here = static_cast<const char*>(__builtin_frame_address(0));
  const char* stack = fiber != nullptr ? static_cast<const char*>(fiber->stack) : nullptr;
  return fiber != nullptr && fiber->block != nullptr && here >= stack &&
         here < stack + fiber->stack_bytes;
}

void on_fault(int signal, siginfo_t* info, void*) {
  // Python's faulthandler passes a fault on by raising it again; the instruction that faulted
  // comes back then, and with it the address.
  if (info->si_code <= 0) return;
  const void* address = info->si_addr;
  std::string where;
  const char* why = "which the launch does not name";
  CUresult result = CUDA_ERROR_ILLEGAL_ADDRESS;
  if (info->si_code == SI_KERNEL || (signal == SIGBUS && info->si_code == BUS_ADRALN)) {
    where = "a vector at an address that is not aligned for it";
    result = CUDA_ERROR_MISALIGNED_ADDRESS;
  } else if (in_arena(address)) {
    where = text("address %p", address);
    auto found = state.memory.upper_bound(reinterpret_cast<uintptr_t>(address) + front);
    if (found != state.memory.begin()) {
      const Memory& memory = *(--found)->second;
      where += text(", byte %ld of %s", long((const char*)address - memory.address),
                    memory.name().c_str());
      if (memory.freed) where += ", which was freed by " + memory.free_by;
      if (memory.early) why = "and has not waited for the kernels before (griddepcontrol.wait)";
    }
  } else {
    where = text("address %p", address);
  }
  if (faulting != nullptr) {
    auto** current = static_cast<cuda_host::Fiber**>(
        dlsym(faulting->library, "_ZN9cuda_host7currentE"));
    if (current != nullptr && in_kernel(*current)) {
      using Fail = void(const char*, ...);
      auto* fail = reinterpret_cast<Fail*>(dlsym(faulting->library, "_ZN9cuda_host4failEPKcz"));
      static std::string kept;
      kept = where;
      fault_result = result;
      const uint3 t = (*current)->thread;
      constexpr const char* format = "thread (%u,%u,%u) touched %s, %s";
      if (survives) fail(format, t.x, t.y, t.z, kept.c_str(), why);
      const std::string message =
          "\nCUDA stand-in: " + text(format, t.x, t.y, t.z, kept.c_str(), why);
      if (write(2, message.data(), message.size()) < 0) _exit(1);
    }
  }
  if (in_arena(address) && faulting == nullptr) {
    const std::string message = "\nCUDA stand-in: the host touched device memory: " + where + "\n";
    if (write(2, message.data(), message.size()) < 0) _exit(1);
  }
  sigaction(signal, &before[signal == SIGBUS], nullptr);  // and the fault comes again
}

}  // namespace

void watch_faults() {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;  // no stack of its own: it leaves by switching stacks
  sigaction(SIGSEGV, &action, &before[0]);
  sigaction(SIGBUS, &action, &before[1]);
}

// ----------------------------------------------------------------------- allocating, freeing

namespace {

void free_in_stream(Lock& lock, CUdeviceptr address, CUstream handle, const char* name) {
  const auto stream = stream_of(handle);
  const auto memory = start_of(address, name);
  if (stream->capture != nullptr)
    fail_capture(*stream->capture, CUDA_ERROR_NOT_SUPPORTED,
                 "the stand-in has no allocation nodes: free outside of the capture");
  const auto operation = submit(lock, *stream, {name, {memory}, [memory] { release(*memory); }});
  memory->free_asked = true;
  const uint64_t visit = ++state.visits;
  visit_before(*operation, visit);
  for (const auto& weak : memory->users) {
    const auto user = weak.lock();
    if (user == nullptr || user->done || user->visit == visit || user == operation) continue;
    const std::string reason =
        text("%s uses %s, which another stream frees; nothing makes that wait", user->work.what,
             memory->name().c_str());
    user->work.run = [reason] { throw Failure{CUDA_ERROR_ILLEGAL_ADDRESS, reason}; };
  }
  memory->users.clear();
}

void allocate_in(Lock& lock, CUdeviceptr* out, size_t bytes, const std::shared_ptr<Pool>& pool,
                 CUstream handle, const char* name) {
  if (out == nullptr) fail(CUDA_ERROR_INVALID_VALUE, "the result's address is null");
  const auto stream = stream_of(handle);
  if (stream->capture != nullptr)
    fail_capture(*stream->capture, CUDA_ERROR_NOT_SUPPORTED,
                 "the stand-in has no allocation nodes: allocate before the capture");
  const auto memory = allocate(*stream->context, bytes, pool->host);
  memory->pool = pool;
  pool->used += bytes;
  pool->high = std::max(pool->high, pool->used);
  memory->made = submit(lock, *stream, {name, {}, [] {}});
  *out = reinterpret_cast<CUdeviceptr>(memory->address);
}

}  // namespace
}  // namespace standin

using namespace standin;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  return call("cuMemAlloc", Counted::allocation, [&](Lock&) {
    Context& context = current();
    refuse_in_capture("cuMemAlloc");
    *out = reinterpret_cast<CUdeviceptr>(allocate(context, bytes, false)->address);
  });
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
  return call("cuMemFree", Counted::release, [&](Lock& lock) {
    if (address == 0) return;
    const auto memory = start_of(address, "cuMemFree");
    refuse_in_capture("cuMemFree");
    Context& context = *memory->context;
    if (context.sticky == CUDA_SUCCESS) finish_all(lock, context);
    release(*memory);
    check_sticky(context);
  });
}

EXPORT CUresult cuMemAllocAsync(CUdeviceptr* out, size_t bytes, CUstream stream) {
  return call("cuMemAllocAsync", Counted::allocation, [&](Lock& lock) {
    allocate_in(lock, out, bytes, stream_of(stream)->context->pool, stream, "cuMemAllocAsync");
  });
}

EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr* out, size_t bytes, CUmemoryPool pool,
                                        CUstream stream) {
  return call("cuMemAllocFromPoolAsync", Counted::allocation, [&](Lock& lock) {
    allocate_in(lock, out, bytes, find<Pool>(pool), stream, "cuMemAllocFromPoolAsync");
  });
}

EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
  return call("cuMemFreeAsync", Counted::release, [&](Lock& lock) {
    free_in_stream(lock, address, stream, "cuMemFreeAsync");
  });
}

EXPORT CUresult cuMemAllocHost_v2(void** out, size_t bytes) {
  return call("cuMemAllocHost", Counted::allocation, [&](Lock&) {
    Context& context = current();
    refuse_in_capture("cuMemAllocHost");
    *out = allocate(context, bytes, true)->address;
  });
}

EXPORT CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned) {
  return cuMemAllocHost_v2(out, bytes);
}

EXPORT CUresult cuMemFreeHost(void* address) {
  return call("cuMemFreeHost", Counted::release, [&](Lock& lock) {
    const auto memory = start_of(reinterpret_cast<CUdeviceptr>(address), "cuMemFreeHost");
    if (!memory->host) fail(CUDA_ERROR_INVALID_VALUE, "%s is not pinned", memory->name().c_str());
    refuse_in_capture("cuMemFreeHost");
    state.changed.wait(lock, [] { return !state.running; });
    check_guards({memory}, "the host, or an operation,");
    release(*memory);
  });
}

EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* out, void* address, unsigned) {
  return call("cuMemHostGetDevicePointer", Counted::other, [&](Lock&) {
    const auto memory = memory_at(address);
    if (memory == nullptr || !memory->host || memory->free_asked)
      fail(CUDA_ERROR_INVALID_VALUE, "%p is not pinned", address);
    *out = reinterpret_cast<CUdeviceptr>(address);
  });
}

EXPORT CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  return call("cuMemGetInfo", Counted::other, [&](Lock&) {
    *free = state.card->memory - current().used;
    *total = state.card->memory;
  });
}

EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* begin, size_t* bytes, CUdeviceptr address) {
  return call("cuMemGetAddressRange", Counted::other, [&](Lock&) {
    const auto memory = memory_at(reinterpret_cast<void*>(address));
    if (memory == nullptr || memory->free_asked)
      fail(CUDA_ERROR_NOT_FOUND, "%#llx lies in no allocation", address);
    if (begin != nullptr) *begin = reinterpret_cast<CUdeviceptr>(memory->address);
    if (bytes != nullptr) *bytes = memory->bytes;
  });
}

// ------------------------------------------------------------------------------- pointers

namespace {

template <class T> void put(void* out, T value) { memcpy(out, &value, sizeof value); }

// False for what is not known of a pointer; `out` is zero then, or says "none".
bool describe(void* out, CUpointer_attribute which, CUdeviceptr address) {
  auto memory = memory_at(reinterpret_cast<void*>(address));
  if (memory != nullptr && memory->free_asked) memory = nullptr;
  switch (which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      put(out, memory ? memory->context->handle : nullptr);
      break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      put(out, memory ? unsigned(memory->host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE) : 0u);
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      put(out, memory ? address : CUdeviceptr{0});
      break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      put(out, memory && memory->host ? address : CUdeviceptr{0});
      break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      put(out, memory ? (unsigned long long)memory->number : 0ull);
      break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      put(out, 0u);
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      put(out, memory ? memory->context->device : -2);
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      put(out, memory ? reinterpret_cast<CUdeviceptr>(memory->address) : CUdeviceptr{0});
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      put(out, memory ? memory->bytes : size_t{0});
      break;
    case CU_POINTER_ATTRIBUTE_MAPPED:
      put(out, unsigned(memory != nullptr));
      break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
      put(out, memory && memory->pool ? memory->pool->handle : nullptr);
      break;
    default:
      fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in does not know attribute %d of pointers", which);
  }
  return memory != nullptr;
}

}  // namespace

EXPORT CUresult cuPointerGetAttribute(void* out, CUpointer_attribute which, CUdeviceptr address) {
  return call("cuPointerGetAttribute", Counted::other, [&](Lock&) {
    if (!describe(out, which, address))
      fail(CUDA_ERROR_INVALID_VALUE, "%#llx lies in no allocation", address);
  });
}

EXPORT CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* which, void** out,
                                       CUdeviceptr address) {
  return call("cuPointerGetAttributes", Counted::other, [&](Lock&) {
    for (unsigned i = 0; i < count; ++i) describe(out[i], which[i], address);
  });
}

// ----------------------------------------------------------------------------------- pools

EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  return call("cuDeviceGetDefaultMemPool", Counted::other, [&](Lock&) {
    *pool = static_cast<CUmemoryPool>(context_of_device(device).default_pool->handle);
  });
}

EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) {
  return call("cuDeviceGetMemPool", Counted::other, [&](Lock&) {
    *pool = static_cast<CUmemoryPool>(context_of_device(device).pool->handle);
  });
}

EXPORT CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
  return call("cuDeviceSetMemPool", Counted::other,
              [&](Lock&) { context_of_device(device).pool = find<Pool>(pool); });
}

EXPORT CUresult cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* properties) {
  return call("cuMemPoolCreate", Counted::allocation, [&](Lock&) {
    if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
      fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in has no managed memory");
    if (properties->handleTypes != 0)
      fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in shares no memory between processes");
    auto made = std::make_shared<Pool>();
    made->host = properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE;
    made->context = &context_of_device(made->host ? 0 : properties->location.id);
    *pool = static_cast<CUmemoryPool>(enter(made));
  });
}

EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
  return call("cuMemPoolDestroy", Counted::release, [&](Lock&) {
    const auto found = find<Pool>(pool);
    if (found == found->context->default_pool)
      fail(CUDA_ERROR_INVALID_VALUE, "a device's default pool stays");
    if (found == found->context->pool) found->context->pool = found->context->default_pool;
    leave(pool);
  });
}

EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute which, void* value) {
  return call("cuMemPoolSetAttribute", Counted::other, [&](Lock&) {
    const auto found = find<Pool>(pool);
    if (which >= 1 && which <= 3) {
      memcpy(&found->reuse[which], value, sizeof(int));
    } else if (which == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
      memcpy(&found->threshold, value, sizeof found->threshold);
    } else if (which == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH ||
               which == CU_MEMPOOL_ATTR_USED_MEM_HIGH) {
      found->high = found->used;
    } else {
      fail(CUDA_ERROR_INVALID_VALUE, "attribute %d of a pool cannot be set", which);
    }
  });
}

EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute which, void* value) {
  return call("cuMemPoolGetAttribute", Counted::other, [&](Lock&) {
    const auto found = find<Pool>(pool);
    if (which >= 1 && which <= 3) {
      memcpy(value, &found->reuse[which], sizeof(int));
    } else if (which == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
      put(value, found->threshold);
    } else if (which == CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT ||
               which == CU_MEMPOOL_ATTR_USED_MEM_CURRENT) {
      put(value, uint64_t(found->used));
    } else if (which == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH ||
               which == CU_MEMPOOL_ATTR_USED_MEM_HIGH) {
      put(value, uint64_t(found->high));
    } else {
      fail(CUDA_ERROR_INVALID_VALUE, "the stand-in does not know attribute %d of pools", which);
    }
  });
}

EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t) {
  return call("cuMemPoolTrimTo", Counted::other, [&](Lock&) { find<Pool>(pool); });
}

EXPORT CUresult cuMemPoolSetAccess(CUmemoryPool pool, const void*, size_t) {
  return call("cuMemPoolSetAccess", Counted::other, [&](Lock&) { find<Pool>(pool); });
}

EXPORT CUresult cuMemPoolGetAccess(int* flags, CUmemoryPool pool, CUmemLocation* location) {
  return call("cuMemPoolGetAccess", Counted::other, [&](Lock&) {
    const auto found = find<Pool>(pool);
    const bool own = found->host || location->id == found->context->device;
    *flags = own ? 3 : 0;
  });
}

// A pool for what lies on the host or on a device, the same for all who ask.
EXPORT CUresult cuMemGetDefaultMemPool(CUmemoryPool* pool, CUmemLocation* location,
                                       CUmemAllocationType type) {
  return call("cuMemGetDefaultMemPool", Counted::other, [&](Lock&) {
    if (type != CU_MEM_ALLOCATION_TYPE_PINNED)
      fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in has no managed memory");
    if (location->type == CU_MEM_LOCATION_TYPE_DEVICE) {
      *pool = static_cast<CUmemoryPool>(context_of_device(location->id).default_pool->handle);
      return;
    }
    static std::shared_ptr<Pool> host;
    if (host == nullptr) {
      host = std::make_shared<Pool>();
      host->host = true;
      host->context = &context_of_device(0);
      enter(host);
    }
    *pool = static_cast<CUmemoryPool>(host->handle);
  });
}

EXPORT CUresult cuMemGetMemPool(CUmemoryPool* pool, CUmemLocation* location,
                                CUmemAllocationType type) {
  return cuMemGetDefaultMemPool(pool, location, type);
}

// ----------------------------------------------------------------------- copies and filling

namespace {

enum class Side { any, device };

// The allocation that holds the bytes, or null where they are ordinary memory of the host.
std::shared_ptr<Memory> checked(CUdeviceptr address, size_t bytes, Side side, const char* role) {
  const auto memory = memory_at(reinterpret_cast<void*>(address));
  if (memory == nullptr) {
    if (in_arena(reinterpret_cast<void*>(address)) || side == Side::device || address == 0)
      fail(CUDA_ERROR_INVALID_VALUE, "the %s %#llx lies in no allocation of a device", role,
           address);
    return nullptr;
  }
  if (side == Side::device && memory->host)
    fail(CUDA_ERROR_INVALID_VALUE, "the %s is %s", role, memory->name().c_str());
  const size_t offset = address - reinterpret_cast<CUdeviceptr>(memory->address);
  if (bytes > memory->bytes - offset)
    fail(CUDA_ERROR_INVALID_VALUE, "the %s ends at byte %zu of %s", role, offset + bytes,
         memory->name().c_str());
  const std::string why = unusable(*memory, nullptr, true);  // a copy may name any device
  if (!why.empty()) fail(CUDA_ERROR_INVALID_VALUE, "the %s: %s", role, why.c_str());
  return memory;
}

// Of pinned memory and of devices, a copy reads and writes late. Ordinary memory is read before
// the call returns, and written, too: then the call has waited.
void copy(Lock& lock, const char* name, CUdeviceptr to, Side to_side, CUdeviceptr from,
          Side from_side, size_t bytes, Stream& stream, bool waits) {
  current();
  if (bytes == 0) return;
  const auto out = checked(to, bytes, to_side, "destination");
  const auto in = checked(from, bytes, from_side, "source");
  if (stream.capture != nullptr && (out == nullptr || in == nullptr))
    fail_capture(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                 text("%s of memory that is not pinned", name));
  auto* target = reinterpret_cast<char*>(to);
  auto* source = reinterpret_cast<const char*>(from);
  Work work{name, {}, {}};
  if (out != nullptr) work.memory.push_back(out);
  if (in != nullptr) work.memory.push_back(in);
  if (in == nullptr) {
    auto staged = std::make_shared<std::vector<char>>(source, source + bytes);
    work.run = [=] { memcpy(target, staged->data(), bytes); };
  } else {
    work.run = [=] { memmove(target, source, bytes); };
  }
  const auto operation = submit(lock, stream, std::move(work));
  if (waits || out == nullptr) finish(lock, operation);
}

void copy_now(Lock& lock, const char* name, CUdeviceptr to, Side to_side, CUdeviceptr from,
              Side from_side, size_t bytes, bool waits = true) {
  Context& context = current();
  refuse_in_capture(name);
  copy(lock, name, to, to_side, from, from_side, bytes, *context.legacy, waits);
}

template <class T>
void fill(Lock& lock, const char* name, CUdeviceptr to, T value, size_t count, Stream& stream) {
  current();
  if (count == 0) return;
  if (to % sizeof(T) != 0)
    fail(CUDA_ERROR_INVALID_VALUE, "%#llx is not aligned to %zu bytes", to, sizeof(T));
  const auto out = checked(to, count * sizeof(T), Side::any, "destination");
  if (out == nullptr)
    fail(CUDA_ERROR_INVALID_VALUE, "the destination %#llx lies in no allocation", to);
  auto* target = reinterpret_cast<T*>(to);
  submit(lock, stream, {name, {out}, [=] { std::fill(target, target + count, value); }});
}

template <class T>
void fill_now(Lock& lock, const char* name, CUdeviceptr to, T value, size_t count) {
  Context& context = current();
  refuse_in_capture(name);
  fill(lock, name, to, value, count, *context.legacy);
}

CUdeviceptr number(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

}  // namespace

EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return call("cuMemcpy", Counted::copy, [&](Lock& lock) {
    copy_now(lock, "cuMemcpy", to, Side::any, from, Side::any, bytes);
  });
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  return call("cuMemcpyHtoD", Counted::copy, [&](Lock& lock) {
    copy_now(lock, "cuMemcpyHtoD", to, Side::device, number(from), Side::any, bytes);
  });
}

EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  return call("cuMemcpyDtoH", Counted::copy, [&](Lock& lock) {
    copy_now(lock, "cuMemcpyDtoH", number(to), Side::any, from, Side::device, bytes);
  });
}

// The host does not wait for it.
EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return call("cuMemcpyDtoD", Counted::copy, [&](Lock& lock) {
    copy_now(lock, "cuMemcpyDtoD", to, Side::device, from, Side::device, bytes, false);
  });
}

EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return call("cuMemcpyAsync", Counted::copy, [&](Lock& lock) {
    copy(lock, "cuMemcpyAsync", to, Side::any, from, Side::any, bytes, *stream_of(stream), false);
  });
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes,
                                     CUstream stream) {
  return call("cuMemcpyHtoDAsync", Counted::copy, [&](Lock& lock) {
    copy(lock, "cuMemcpyHtoDAsync", to, Side::device, number(from), Side::any, bytes,
         *stream_of(stream), false);
  });
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return call("cuMemcpyDtoHAsync", Counted::copy, [&](Lock& lock) {
    copy(lock, "cuMemcpyDtoHAsync", number(to), Side::any, from, Side::device, bytes,
         *stream_of(stream), false);
  });
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream stream) {
  return call("cuMemcpyDtoDAsync", Counted::copy, [&](Lock& lock) {
    copy(lock, "cuMemcpyDtoDAsync", to, Side::device, from, Side::device, bytes,
         *stream_of(stream), false);
  });
}

#define MEMSET(bits, type, version)                                                           \
  EXPORT CUresult cuMemsetD##bits##version(CUdeviceptr to, type value, size_t count) {        \
    return call("cuMemsetD" #bits, Counted::copy, [&](Lock& lock) {                           \
      fill_now(lock, "cuMemsetD" #bits, to, value, count);                                    \
    });                                                                                       \
  }                                                                                           \
  EXPORT CUresult cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count,            \
                                         CUstream stream) {                                   \
    return call("cuMemsetD" #bits "Async", Counted::copy, [&](Lock& lock) {                   \
      fill(lock, "cuMemsetD" #bits "Async", to, value, count, *stream_of(stream));            \
    });                                                                                       \
  }
MEMSET(8, unsigned char, _v2)
MEMSET(16, unsigned short, _v2)
MEMSET(32, unsigned, _v2)
