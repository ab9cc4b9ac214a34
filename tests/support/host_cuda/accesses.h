// Counts the accesses of a kernel as a device would serve them. g++ calls __tsan_read4 and the like
// before each access when it is told -fsanitize=thread; here these are ours, and no sanitizer is linked.
//
// The k-th time that a lane comes to an instruction is taken for the warp's k-th time. Shared memory
// serves a wavefront at a time: 32 banks of 4 bytes, where lanes that read the same 4 bytes count once;
// of 8 bytes a lane it serves half a warp, of 16 a quarter. Global memory is read by sectors of 32 bytes.
#pragma once
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

extern __shared__ unsigned char dynamic_shared[];  // of launch.h

namespace accesses {

struct Access {
  uintptr_t address[32];
  uint32_t mask = 0;
  int bytes = 0;
};

struct Range {
  uintptr_t begin, end;
};

inline bool recording = false, inside = false;
inline std::vector<Range> arrays;  // in global memory
inline Range shared = {};          // the blocks of a launch without clusters are on one OS thread
inline std::map<std::tuple<const void*, int, uintptr_t>, int> times;  // (block, thread, instruction)
inline std::map<std::tuple<const void*, const void*, uintptr_t, int>, Access> found;

__attribute__((no_sanitize("thread"))) inline int find_shared(dl_phdr_info* module, size_t, void*) {
  const uintptr_t begin = uintptr_t(module->dlpi_tls_data), one = uintptr_t(&dynamic_shared);
  for (int i = 0; begin != 0 && i < module->dlpi_phnum; ++i) {
    const uintptr_t end = begin + module->dlpi_phdr[i].p_memsz;
    if (module->dlpi_phdr[i].p_type != PT_TLS || one < begin || one >= end) continue;
    shared = {begin, end};
    return 1;
  }
  return 0;
}

__attribute__((no_sanitize("thread"), noinline)) inline void see(const void* at, int bytes,
                                                                 const void* from) {
  if (!recording || inside || cuda_host::current == nullptr) return;
  inside = true;
  const uintptr_t address = uintptr_t(at), instruction = uintptr_t(from);
  if (shared.end == 0) dl_iterate_phdr(find_shared, nullptr);
  const auto in = [=](Range range) { return range.begin <= address && address < range.end; };
  if (in(shared) || std::any_of(arrays.begin(), arrays.end(), in)) {
    const cuda_host::Fiber& fiber = *cuda_host::current;
    // A block's place is used again by a later one: its number tells them apart.
    const auto& b = fiber.block->index;
    const void* block = reinterpret_cast<const void*>(
        uintptr_t(1) + b.x + (uintptr_t(b.y) << 20) + (uintptr_t(b.z) << 40));
    const int time = times[{block, fiber.index, instruction}]++;
    Access& access = found[{block, fiber.warp, instruction, time}];
    access.address[fiber.lane] = address;
    access.mask |= 1u << fiber.lane;
    access.bytes = bytes;
  }
  inside = false;
}

struct Total {
  long times = 0, served = 0, least = 0;
  bool shared = false;
};

inline int distinct(std::vector<uintptr_t>& x) {
  std::sort(x.begin(), x.end());
  return int(std::unique(x.begin(), x.end()) - x.begin());
}

// (wavefronts, the fewest there can be) of an access to shared memory.
inline std::pair<int, int> wavefronts(const Access& access) {
  const int words = std::max(1, access.bytes / 4), lanes = 32 / words;
  int all = 0, least = 0;
  for (int first = 0; first < 32; first += lanes) {
    std::vector<uintptr_t> of_bank[32];
    int most = 0;
    for (int lane = first; lane < first + lanes; ++lane)
      for (int w = 0; access.mask >> lane & 1 && w < words; ++w)
        of_bank[(access.address[lane] / 4 + w) % 32].push_back(access.address[lane] / 4 + w);
    for (auto& bank : of_bank) most = std::max(most, distinct(bank));
    all += most;
    least += most > 0;
  }
  return {all, least};
}

inline std::pair<int, int> sectors(const Access& access) {
  std::vector<uintptr_t> touched, numbers;
  for (int lane = 0; lane < 32; ++lane)
    for (int b = 0; access.mask >> lane & 1 && b < access.bytes; ++b) {
      numbers.push_back(access.address[lane] + b);
      touched.push_back((access.address[lane] + b) / 32);
    }
  return {distinct(touched), (distinct(numbers) + 31) / 32};
}

}  // namespace accesses

extern "C" inline __attribute__((used)) void accesses_start(int count, const uintptr_t* ranges) {
  using namespace accesses;
  times.clear();
  found.clear();
  arrays.clear();
  for (int i = 0; i < count; ++i) arrays.push_back({ranges[2 * i], ranges[2 * i + 1]});
  shared = {};
  recording = true;
}

// A line an instruction: its place in this library, "shared" or "global", how often warps came there,
// wavefronts or sectors, and the fewest there could be.
extern "C" inline __attribute__((used)) const char* accesses_end() {
  using namespace accesses;
  recording = false;
  std::map<uintptr_t, Total> totals;
  for (const auto& [key, access] : found) {
    uintptr_t address = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (access.mask >> lane & 1) address = access.address[lane];
    Total& total = totals[std::get<2>(key)];
    total.shared = shared.begin <= address && address < shared.end;
    const auto [served, least] = total.shared ? wavefronts(access) : sectors(access);
    ++total.times;
    total.served += served;
    total.least += least;
  }
  Dl_info library;
  dladdr(reinterpret_cast<const void*>(&accesses_end), &library);
  static std::string text;
  text.clear();
  for (const auto& [instruction, total] : totals) {
    char line[128];
    snprintf(line, sizeof line, "%#zx %s %ld %ld %ld\n",
             size_t(instruction - uintptr_t(library.dli_fbase) - 1),
             total.shared ? "shared" : "global", total.times, total.served, total.least);
    text += line;
  }
  return text.c_str();
}

#define ACCESS(name, bytes)                                                                     \
  extern "C" __attribute__((no_sanitize("thread"))) void __tsan_##name##bytes(void* at) {       \
    accesses::see(at, bytes, __builtin_return_address(0));                                      \
  }
#define ACCESSES(name) ACCESS(name, 1) ACCESS(name, 2) ACCESS(name, 4) ACCESS(name, 8) ACCESS(name, 16)
ACCESSES(read)
ACCESSES(write)
ACCESSES(volatile_read)
ACCESSES(volatile_write)
#define UNALIGNED(name, bytes)                                                                  \
  extern "C" __attribute__((no_sanitize("thread"))) void __tsan_unaligned_##name##bytes(void* at) { \
    accesses::see(at, bytes, __builtin_return_address(0));                                      \
  }
UNALIGNED(read, 2) UNALIGNED(read, 4) UNALIGNED(read, 8) UNALIGNED(read, 16)
UNALIGNED(write, 2) UNALIGNED(write, 4) UNALIGNED(write, 8) UNALIGNED(write, 16)
// A count of blocks (last_block.cuh) is no access of a warp.
extern "C" __attribute__((no_sanitize("thread"))) unsigned __tsan_atomic32_load(unsigned* at, int) {
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}
extern "C" __attribute__((no_sanitize("thread"))) unsigned __tsan_atomic32_fetch_add(
    unsigned* at, unsigned value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
extern "C" __attribute__((no_sanitize("thread"))) int __tsan_atomic32_compare_exchange_strong(
    unsigned* at, unsigned* expected, unsigned value, int, int) {
  return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
extern "C" void __tsan_read_range(void*, size_t) {}
extern "C" void __tsan_write_range(void*, size_t) {}

// A copy's place is filled as soon as it starts (async_copy.cuh), by a call that g++ does not announce.
__attribute__((no_sanitize("thread"), noinline)) inline void* counted_memset(void* to, int byte,
                                                                            size_t bytes) {
  accesses::see(to, int(bytes), __builtin_return_address(0));
  return __builtin_memset(to, byte, bytes);
}
#define memset(to, byte, bytes) counted_memset(to, byte, bytes)
