#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"

namespace standin {

State& state = *new State;

namespace {

constexpr int driver_version = 13000;

// As cuDeviceGetAttribute tells of them; rates are those of the boards' data sheets.
const Card cards[] = {
    {"H100", 9, 0, 132, 1980000, 2619000, 5120, 227 << 10, 228 << 10, 2048, 32, 50 << 20,
     size_t{80} << 30, 2},
    {"A100", 8, 0, 108, 1410000, 1215000, 5120, 163 << 10, 164 << 10, 2048, 32, 40 << 20,
     size_t{40} << 30, 2},
    {"RTX 4090", 8, 9, 128, 2520000, 10501000, 384, 99 << 10, 100 << 10, 1536, 24, 72 << 20,
     size_t{24} << 30, 64},
    {"T4", 7, 5, 40, 1590000, 5001000, 256, 64 << 10, 64 << 10, 1024, 16, 4 << 20,
     size_t{15} << 30, 32},
};

// The n-th call of a sort from now fails.
struct Injection {
  std::string what;
  int remaining;
  CUresult result;
};
std::vector<Injection> injections;
std::map<std::string, long> counts;

constexpr const char* names_of_counted[] = {"other", "allocation", "launch",
                                            "copy",  "synchronization", "release"};

bool is_sticky(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
      return true;
    default:
      return false;
  }
}

thread_local std::vector<Context*> stack;  // of current contexts

void count(Counted counted) {
  const std::string name = names_of_counted[int(counted)];
  ++counts[name];
  if (counted == Counted::release) return;
  ++counts["any"];
  for (size_t i = 0; i < injections.size(); ++i) {
    Injection& injection = injections[i];
    if (injection.what != "any" && injection.what != name) continue;
    if (--injection.remaining > 0) continue;
    const Failure failure{injection.result, "it was told to fail"};
    injections.erase(injections.begin() + i);
    if (is_sticky(failure.result) && !stack.empty()) break_context(*stack.back(), failure);
    throw failure;
  }
}

}  // namespace

std::string text(const char* format, ...) {
  char buffer[9000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

void fail(CUresult result, const char* format, ...) {
  char buffer[9000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  throw Failure{result, buffer};
}

namespace {

// What must wait until the mutex is free: what users of the driver want to be told.
thread_local std::vector<std::function<void()>> afterwards;

void tell_afterwards() {
  while (!afterwards.empty()) {
    const auto next = std::move(afterwards.back());
    afterwards.pop_back();
    next();
  }
}

}  // namespace

void after_call(std::function<void()> f) { afterwards.push_back(std::move(f)); }

CUresult call(const char* name, Counted counted, const std::function<void(Lock&)>& body) {
  CUresult result = CUDA_SUCCESS;
  {
    Lock lock(state.mutex);
    try {
      if (!state.initialized && strcmp(name, "cuInit") != 0)
        fail(CUDA_ERROR_NOT_INITIALIZED, "cuInit comes first");
      if (state.initialized && state.process != getpid())
        fail(CUDA_ERROR_NOT_INITIALIZED, "CUDA does not survive a fork");
      count(counted);
      body(lock);
    } catch (const Failure& failure) {
      result = failure.result;
      state.reason = std::string(name) + ": " + failure.reason;
    }
  }
  tell_afterwards();
  return result;
}

// ----------------------------------------------------------------------------- objects

void* enter(std::shared_ptr<Object> object) {
  static uintptr_t next = 0x5000;  // 0, 1 and 2 are streams that everybody has
  next += 16;
  object->handle = reinterpret_cast<void*>(next);
  state.objects[next] = object;
  return object->handle;
}

void leave(void* handle) {
  const auto found = state.objects.find(reinterpret_cast<uintptr_t>(handle));
  if (found == state.objects.end()) return;
  found->second->gone = true;
  state.objects.erase(found);
}

std::shared_ptr<Object> find_object(const void* handle, const char* kind) {
  const auto found = state.objects.find(reinterpret_cast<uintptr_t>(handle));
  if (found == state.objects.end())
    fail(CUDA_ERROR_INVALID_HANDLE, "%p is no %s's handle, or it was destroyed", handle, kind);
  return found->second;
}

// ----------------------------------------------------------------------------- contexts

Context& context_of_device(int device) {
  if (device < 0 || size_t(device) >= state.devices.size())
    fail(CUDA_ERROR_INVALID_DEVICE, "there is no device %d, only %zu", device,
         state.devices.size());
  return *state.devices[device];
}

void check_sticky(const Context& context) {
  if (context.sticky != CUDA_SUCCESS)
    fail(context.sticky, "the context is broken since an earlier error: %s",
         context.sticky_reason.c_str());
}

void break_context(Context& context, const Failure& failure) {
  if (context.sticky != CUDA_SUCCESS) return;
  context.sticky = failure.result;
  context.sticky_reason = failure.reason;
}

Context& current() {
  if (stack.empty() || stack.back() == nullptr)
    fail(CUDA_ERROR_INVALID_CONTEXT, "no context is current on this thread");
  if (stack.back()->retained == 0)
    fail(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context of device %d was released",
         stack.back()->device);
  check_sticky(*stack.back());
  return *stack.back();
}

Context& context_from(CUcontext handle) {
  for (auto& context : state.devices)
    if (context->handle == handle && context->retained > 0) return *context;
  fail(CUDA_ERROR_INVALID_CONTEXT, "%p is no context's handle, or it was released", (void*)handle);
}

namespace {

template <class T> T* required(T* pointer, const char* name) {
  if (pointer == nullptr) fail(CUDA_ERROR_INVALID_VALUE, "%s is null", name);
  return pointer;
}

void make_device(int number) {
  auto context = std::make_unique<Context>();
  context->device = number;
  context->handle = reinterpret_cast<void*>(uintptr_t(0x1000 + 16 * number));
  context->legacy = std::make_shared<Stream>();
  context->legacy->context = context.get();
  context->legacy->legacy = true;
  context->default_pool = context->pool = std::make_shared<Pool>();
  context->pool->context = context.get();
  enter(context->pool);
  state.devices.push_back(std::move(context));
}

int attribute(const Card& card, int which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 64 << 10;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 64 << 10;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return card.clock;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card.multiprocessors;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return 1;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return card.memory_clock;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card.bus_width;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return card.l2;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card.threads_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card.major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card.minor;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return card.shared_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO: return card.double_ratio;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return card.shared_block_optin;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card.blocks_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return card.major >= 8 ? 1024 : 0;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH: return card.major >= 9;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_MEMORY_POOLS_SUPPORTED: return 1;
    default: return 0;  // what the stand-in has not: textures, managed memory, …
  }
}

}  // namespace
}  // namespace standin

using namespace standin;

#define EXPORT extern "C" __attribute__((visibility("default")))

// ----------------------------------------------------------------- the driver and its devices

EXPORT CUresult cuInit(unsigned flags) {
  return call("cuInit", Counted::other, [&](Lock&) {
    if (flags != 0) fail(CUDA_ERROR_INVALID_VALUE, "flags must be 0");
    if (!state.configured) fail(CUDA_ERROR_NO_DEVICE, "standin_configure comes first");
    if (state.initialized) return;
    state.initialized = true;
    state.process = getpid();
    watch_faults();
  });
}

EXPORT CUresult cuDriverGetVersion(int* version) {
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = driver_version;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call("cuDeviceGet", Counted::other, [&](Lock&) {
    context_of_device(ordinal);
    *required(device, "device") = ordinal;
  });
}

EXPORT CUresult cuDeviceGetCount(int* count) {
  return call("cuDeviceGetCount", Counted::other,
              [&](Lock&) { *required(count, "count") = state.devices.size(); });
}

EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  return call("cuDeviceGetName", Counted::other, [&](Lock&) {
    context_of_device(device);
    snprintf(required(name, "name"), length, "NVIDIA %s (stand-in)", state.card->name);
  });
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  return call("cuDeviceGetUuid", Counted::other, [&](Lock&) {
    context_of_device(device);
    memset(required(uuid, "uuid"), 0, sizeof *uuid);
    snprintf(uuid->bytes, sizeof uuid->bytes, "stand-in %d", device);
  });
}

EXPORT CUresult cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
  return call("cuDeviceGetPCIBusId", Counted::other, [&](Lock&) {
    context_of_device(device);
    snprintf(required(id, "id"), length, "0000:%02x:00.0", device + 1);
  });
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  return call("cuDeviceTotalMem", Counted::other, [&](Lock&) {
    context_of_device(device);
    *required(bytes, "bytes") = state.card->memory;
  });
}

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  return call("cuDeviceGetAttribute", Counted::other, [&](Lock&) {
    context_of_device(device);
    if (which < 1 || which >= CU_DEVICE_ATTRIBUTE_MAX)
      fail(CUDA_ERROR_INVALID_VALUE, "there is no attribute %d", which);
    *required(value, "value") = attribute(*state.card, which);
  });
}

EXPORT CUresult cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
  return call("cuDeviceCanAccessPeer", Counted::other, [&](Lock&) {
    context_of_device(device);
    context_of_device(peer);
    *required(can, "can") = 0;
  });
}

EXPORT CUresult cuGetErrorName(CUresult error, const char** name) {
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  switch (error) {
#define X(known, value)                                                                      \
  case CUDA_##known:                                                                         \
    *name = "CUDA_" #known;                                                                  \
    return CUDA_SUCCESS;
    CUDA_RESULTS(X)
#undef X
  }
  *name = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}

// The latest reason, where there is one: for those who print no other.
EXPORT CUresult cuGetErrorString(CUresult error, const char** description) {
  return cuGetErrorName(error, description);
}

// ------------------------------------------------------------------------------- contexts

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return call("cuDevicePrimaryCtxRetain", Counted::other, [&](Lock&) {
    Context& found = context_of_device(device);
    ++found.retained;
    *required(context, "context") = static_cast<CUcontext>(found.handle);
  });
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return call("cuDevicePrimaryCtxRelease", Counted::release, [&](Lock&) {
    Context& found = context_of_device(device);
    if (found.retained == 0)
      fail(CUDA_ERROR_INVALID_CONTEXT, "the context of device %d is not retained", device);
    --found.retained;
  });
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return call("cuDevicePrimaryCtxGetState", Counted::other, [&](Lock&) {
    *required(active, "active") = context_of_device(device).retained > 0;
    *required(flags, "flags") = 0;
  });
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  return call("cuCtxSetCurrent", Counted::other, [&](Lock&) {
    if (!stack.empty()) stack.pop_back();
    if (context != nullptr) stack.push_back(&context_from(context));
  });
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
  return call("cuCtxPushCurrent", Counted::other,
              [&](Lock&) { stack.push_back(&context_from(context)); });
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  return call("cuCtxPopCurrent", Counted::other, [&](Lock&) {
    if (stack.empty()) fail(CUDA_ERROR_INVALID_CONTEXT, "no context is current on this thread");
    if (context != nullptr) *context = static_cast<CUcontext>(stack.back()->handle);
    stack.pop_back();
  });
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  return call("cuCtxGetCurrent", Counted::other, [&](Lock&) {
    *required(context, "context") =
        stack.empty() ? nullptr : static_cast<CUcontext>(stack.back()->handle);
  });
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
  return call("cuCtxGetDevice", Counted::other,
              [&](Lock&) { *required(device, "device") = current().device; });
}

EXPORT CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext context) {
  return call("cuCtxGetDevice", Counted::other, [&](Lock&) {
    *required(device, "device") = (context ? context_from(context) : current()).device;
  });
}

EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return call("cuCtxGetStreamPriorityRange", Counted::other, [&](Lock&) {
    current();
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
  });
}

EXPORT CUresult cuCtxSynchronize() {
  return call("cuCtxSynchronize", Counted::synchronization, [&](Lock& lock) {
    Context& context = current();
    refuse_in_capture("cuCtxSynchronize");
    for (const auto& capture : state.captures)
      if (capture->origin->context == &context)
        fail_capture(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                     "the context has a stream that is being captured");
    finish_all(lock, context);
  });
}

// -------------------------------------------------------------------------- finding functions

// Every function that this library exports can be found; of several versions the newest that is
// not newer than asked for.
EXPORT CUresult cuGetProcAddress_v2(const char* symbol, void** function, int version,
                                    uint64_t /*flags*/, int* status) {
  if (symbol == nullptr || function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  static const std::map<std::string, int> since = {
      {"cuCtxGetDevice_v2", 13000},
      {"cuEventElapsedTime_v2", 12080},
      {"cuStreamGetCaptureInfo_v3", 12030},
      {"cuStreamGetCaptureInfo_v2", 11030},
      {"cuStreamUpdateCaptureDependencies_v2", 12030},
  };
  static void* const self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  for (const char* suffix : {"_v3", "_v2", ""}) {
    const std::string name = std::string(symbol) + suffix;
    const auto known = since.find(name);
    if (known != since.end() && known->second > version) continue;
    *function = dlsym(self, name.c_str());
    if (*function != nullptr) {
      if (status != nullptr) *status = 0;
      return CUDA_SUCCESS;
    }
  }
  *function = nullptr;
  if (status != nullptr) *status = 1;
  return status != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

EXPORT CUresult cuGetProcAddress(const char* symbol, void** function, int version,
                                 uint64_t flags) {
  return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

// ---------------------------------------------------------------------- for those who test

// Null, or what is wrong.
EXPORT const char* standin_configure(const char* card, int devices, const char* order,
                                     uint64_t seed) {
  Lock lock(state.mutex);
  if (state.configured) return "it is configured already";
  for (const Card& known : cards)
    if (strcmp(known.name, card) == 0) state.card = &known;
  if (state.card == nullptr) return "there is no such card: H100, A100, RTX 4090 or T4";
  if (devices < 1 || devices > 8) return "there are 1 to 8 devices";
  state.order = order;
  state.random.seed(seed);
  for (int i = 0; i < devices; ++i) make_device(i);
  state.configured = true;
  return nullptr;
}

EXPORT void standin_order(const char* order, uint64_t seed) {
  Lock lock(state.mutex);
  state.order = order;
  state.random.seed(seed);
}

// Why the last call that failed did.
EXPORT const char* standin_reason() {
  Lock lock(state.mutex);
  static thread_local std::string copy;
  copy = state.reason;
  return copy.c_str();
}

// The n-th call of a sort from now fails; n = 0 forgets them all.
EXPORT void standin_fail(const char* what, int n, int result) {
  Lock lock(state.mutex);
  if (n <= 0) {
    injections.clear();
  } else {
    injections.push_back({what, n, CUresult(result)});
  }
}

EXPORT long standin_count(const char* what) {
  Lock lock(state.mutex);
  return counts[what];
}

// How many objects of a kind live: "stream", "event", …, or "allocation" and "pinned".
EXPORT long standin_live(const char* kind) {
  Lock lock(state.mutex);
  long found = 0;
  if (strcmp(kind, "allocation") == 0 || strcmp(kind, "pinned") == 0) {
    for (const auto& [address, memory] : state.memory)
      found += !memory->free_asked && memory->host == (kind[0] == 'p');
    return found;
  }
  for (const auto& [handle, object] : state.objects) found += strcmp(object->word(), kind) == 0;
  return found;
}

// After an error that stays: what was submitted is dropped, captures end, memory and handles stay.
EXPORT void standin_reset() {
  {
    Lock lock(state.mutex);
    state.changed.wait(lock, [] { return !state.running; });
    injections.clear();
    while (!state.pending.empty()) drop(state.pending.begin()->second);
    while (!state.captures.empty()) end_capture(**state.captures.begin());
    for (auto& context : state.devices) {
      context->sticky = CUDA_SUCCESS;
      context->sticky_reason.clear();
    }
    state.reason.clear();
  }
  tell_afterwards();
}
