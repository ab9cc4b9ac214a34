// Libraries of kernels, launches and occupancy. What stands for a cubin is a few lines of text
// (twins.py writes them) that name a shared library, built from the same source with g++:
//
//   backprop_gpu twin 1
//   arch <sm_90a>
//   library <path>                            of the kernels and functions that follow
//   kernel <symbol> <number> <most threads per block> <cluster> <static shared memory>
//   function <name of a pointer that the library exports> <address>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <optional>
#include <sstream>

#include "fibers.h"
#include "driver.h"

namespace standin {

namespace {

constexpr int without_asking = 48 << 10;  // bytes of shared memory
constexpr unsigned portable_cluster = 8;

struct Parameter {
  std::string type;  // C++'s name of it
  size_t bytes, offset;
};

struct Library;

struct Kernel : Kind<Kernel> {
  static constexpr const char* kind = "kernel";
  std::weak_ptr<Library> library;
  std::string symbol;
  void* loaded = nullptr;
  cuda_host::Start* start = nullptr;
  cuda_host::Prerequisites** prerequisites = nullptr;
  std::vector<Parameter> parameters;
  unsigned threads = 1024, cluster = 1;
  int static_shared = 0;
  struct OfDevice {
    int dynamic_shared, non_portable, carveout, policy;
  } attributes[8];
};

struct Library : Kind<Library> {
  static constexpr const char* kind = "library";
  std::vector<std::pair<void**, void*>> functions;  // to set before each launch
  std::vector<std::shared_ptr<Kernel>> kernels;
};

template <class T> T symbol_of(void* library, const std::string& name) {
  void* found = library == nullptr ? nullptr : dlsym(library, name.c_str());
  if (found == nullptr) fail(CUDA_ERROR_INVALID_IMAGE, "the twin has no %s", name.c_str());
  return reinterpret_cast<T>(found);
}

// sm_90a runs on 9.0 alone, sm_90 on 9.0 and later of the same generation.
bool runs_on(const std::string& arch, const Card& card) {
  const int number = atoi(arch.c_str() + 3), own = 10 * card.major + card.minor;
  if (arch.back() == 'a') return number == own;
  return number / 10 == card.major && number <= own;
}

std::shared_ptr<Library> load(const char* image) {
  constexpr const char* magic = "backprop_gpu twin 1\n";
  if (strncmp(image, magic, strlen(magic)) != 0)
    fail(CUDA_ERROR_INVALID_IMAGE, "a stand-in runs what twins.compile_kernels made, no cubins");
  auto library = std::make_shared<Library>();
  void* loaded = nullptr;
  std::istringstream lines(image + strlen(magic));
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word == "arch") {
      words >> word;
      if (!runs_on(word, *state.card))
        fail(CUDA_ERROR_NO_BINARY_FOR_GPU, "the code is for %s, the card is of %d.%d",
             word.c_str(), state.card->major, state.card->minor);
    } else if (word == "library") {
      std::string path;
      std::getline(words >> std::ws, path);
      loaded = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (loaded == nullptr) fail(CUDA_ERROR_INVALID_IMAGE, "%s", dlerror());
    } else if (word == "kernel") {
      auto kernel = std::make_shared<Kernel>();
      std::string number;
      words >> kernel->symbol >> number >> kernel->threads >> kernel->cluster >>
          kernel->static_shared;
      kernel->library = library;
      kernel->loaded = loaded;
      kernel->start = symbol_of<cuda_host::Start*>(loaded, "launch_" + number);
      kernel->prerequisites = symbol_of<cuda_host::Prerequisites**>(
          loaded, "_ZN9cuda_host13prerequisitesE");
      auto* describe = symbol_of<cuda_host::Parameter*>(loaded, "parameter_" + number);
      size_t bytes = 0, offset = 0;
      for (unsigned i = 0; const char* type = describe(i, &bytes); ++i) {
        const size_t alignment = std::min<size_t>(bytes & -bytes, 16);
        offset = (offset + alignment - 1) / alignment * alignment;
        kernel->parameters.push_back({type, bytes, offset});
        offset += bytes;
      }
      for (auto& own : kernel->attributes)
        own = {without_asking - kernel->static_shared, 0, -1, 0};
      library->kernels.push_back(kernel);
    } else if (word == "function") {
      std::string name, address;
      words >> name >> address;
      library->functions.push_back(
          {symbol_of<void**>(loaded, name),
           reinterpret_cast<void*>(strtoull(address.c_str(), nullptr, 16))});
    }
    if (words.fail()) fail(CUDA_ERROR_INVALID_IMAGE, "the twin's line %s", line.c_str());
  }
  if (library->kernels.empty()) fail(CUDA_ERROR_INVALID_IMAGE, "the twin has no kernels");
  for (const auto& kernel : library->kernels) enter(kernel);
  enter(library);
  return library;
}

void unload(const void* handle) {
  const auto library = find<Library>(handle);
  for (const auto& kernel : library->kernels) leave(kernel->handle);
  leave(library->handle);
}

std::shared_ptr<Kernel> named(const Library& library, const char* name) {
  for (const auto& kernel : library.kernels)
    if (kernel->symbol == name) return kernel;
  fail(CUDA_ERROR_NOT_FOUND, "the library has no kernel %s", name);
}

int attribute(const Kernel& kernel, CUfunction_attribute which, int device) {
  const auto& own = kernel.attributes[device];
  const int architecture = 10 * state.card->major + state.card->minor;
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return kernel.threads;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: return kernel.static_shared;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET: return 0;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: return 32;  // g++ cannot tell
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: return architecture;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: return own.dynamic_shared;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: return own.carveout;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH: return kernel.cluster > 1 ? kernel.cluster : 0;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH: return kernel.cluster > 1;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: return own.non_portable;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: return own.policy;
  }
  fail(CUDA_ERROR_INVALID_VALUE, "there is no attribute %d of a kernel", which);
}

void set_attribute(Kernel& kernel, CUfunction_attribute which, int value, int device) {
  auto& own = kernel.attributes[device];
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: {
      const int most = state.card->shared_block_optin - kernel.static_shared;
      if (value < 0 || value > most)
        fail(CUDA_ERROR_INVALID_VALUE, "%d bytes of dynamic shared memory; %s has at most %d",
             value, state.card->name, most);
      own.dynamic_shared = value;
      return;
    }
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: own.non_portable = value != 0; return;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: own.carveout = value; return;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: own.policy = value; return;
    default: fail(CUDA_ERROR_INVALID_VALUE, "attribute %d of a kernel cannot be set", which);
  }
}

// ------------------------------------------------------------------------------ occupancy

// Of a multiprocessor; registers are not counted, since g++ does not tell how many a kernel has.
int blocks_of_multiprocessor(const Kernel& kernel, int threads, size_t dynamic_shared) {
  const Card& card = *state.card;
  const int warps = (threads + 31) / 32;
  if (threads < 1 || threads > int(kernel.threads)) return 0;
  int blocks = std::min(card.threads_multiprocessor / 32 / warps, card.blocks_multiprocessor);
  const size_t reserved = card.major >= 8 ? 1024 : 0, unit = card.major >= 8 ? 128 : 256;
  const size_t asked = kernel.static_shared + dynamic_shared;
  if (asked > size_t(card.shared_block_optin)) return 0;
  const size_t shared = (asked + reserved + unit - 1) / unit * unit;
  if (shared > 0) blocks = std::min(blocks, int(card.shared_multiprocessor / shared));
  return blocks;
}

// How many clusters of 1, 2, 4, 8 and 16 blocks run at once for each block that a
// multiprocessor holds, as an H200 answers: its 132 multiprocessors lie in groups, which a cluster
// cannot leave, and what is left over of a group serves some when more blocks share one.
int clusters_at_once(unsigned size, int blocks) {
  constexpr double one[] = {132, 66, 30, 15, 7}, two[] = {132, 66, 31, 15, 7},
                   four[] = {132, 66, 31, 15.5, 7};
  int row = 0;
  while (1u << row < size) ++row;
  return int((blocks >= 4 ? four : blocks >= 2 ? two : one)[row] * blocks);
}

// -------------------------------------------------------------------------------- launching

struct Shape {
  uint3 grid, block, cluster;
  unsigned shared;
  bool cooperative = false, asks_for_cluster = false, programmatic = false;
};

unsigned long long count(uint3 size) { return 1ull * size.x * size.y * size.z; }

Shape shape_of(const CUlaunchConfig& config) {
  Shape shape{{config.gridDimX, config.gridDimY, config.gridDimZ},
              {config.blockDimX, config.blockDimY, config.blockDimZ},
              {1, 1, 1},
              config.sharedMemBytes};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) {
      shape.cooperative = attribute.value.cooperative != 0;
    } else if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      shape.programmatic = attribute.value.programmaticStreamSerializationAllowed != 0;
    } else if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      const auto& dim = attribute.value.clusterDim;
      shape.cluster = {dim.x, dim.y, dim.z};
      shape.asks_for_cluster = true;
    } else if (attribute.id < 0 || attribute.id > 18) {
      fail(CUDA_ERROR_INVALID_VALUE, "there is no launch attribute %d", attribute.id);
    }
  }
  return shape;
}

// The rules of a launch that the call itself answers for.
void check(const Kernel& kernel, Shape& shape, int device) {
  const char* name = kernel.symbol.c_str();
  const Card& card = *state.card;
  const auto& own = kernel.attributes[device];
  const auto [grid, block, cluster, shared, cooperative, asks, programmatic] = shape;
  if (count(grid) == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    fail(CUDA_ERROR_INVALID_VALUE, "%s: a grid of (%u,%u,%u)", name, grid.x, grid.y, grid.z);
  if (count(block) == 0 || count(block) > 1024 || block.z > 64)
    fail(CUDA_ERROR_INVALID_VALUE, "%s: a block of (%u,%u,%u)", name, block.x, block.y, block.z);
  if (count(block) > kernel.threads)
    fail(CUDA_ERROR_INVALID_VALUE, "%s: %llu threads per block, compiled for at most %u", name,
         count(block), kernel.threads);
  if (shared > unsigned(own.dynamic_shared))
    fail(CUDA_ERROR_INVALID_VALUE,
         "%s: %u bytes of dynamic shared memory; on device %d it may have %d"
         " (MAX_DYNAMIC_SHARED_SIZE_BYTES), and %s has at most %d",
         name, shared, device, own.dynamic_shared, card.name,
         card.shared_block_optin - kernel.static_shared);
  if (programmatic && card.major < 9)  // what a driver does is not documented
    fail(CUDA_ERROR_NOT_SUPPORTED, "%s: %s has no programmatic launches", name, card.name);
  if (!asks) shape.cluster = {kernel.cluster, 1, 1};
  const uint3 used = shape.cluster;
  if (asks || kernel.cluster > 1) {
    if (card.major < 9) fail(CUDA_ERROR_NOT_SUPPORTED, "%s: %s has no clusters", name, card.name);
    if (asks && kernel.cluster > 1 && (used.x != kernel.cluster || used.y != 1 || used.z != 1))
      fail(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s: a cluster of (%u,%u,%u), compiled for %u", name,
           used.x, used.y, used.z, kernel.cluster);
    if (count(used) == 0 || count(used) > cuda_host::blocks_of_cluster)
      fail(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s: a cluster of (%u,%u,%u)", name, used.x, used.y,
           used.z);
    if (count(used) > portable_cluster && !own.non_portable)
      fail(CUDA_ERROR_INVALID_CLUSTER_SIZE,
           "%s: a cluster of %llu blocks; beyond %u it has to be allowed on device %d"
           " (NON_PORTABLE_CLUSTER_SIZE_ALLOWED)",
           name, count(used), portable_cluster, device);
    if (grid.x % used.x != 0 || grid.y % used.y != 0 || grid.z % used.z != 0)
      fail(CUDA_ERROR_INVALID_CLUSTER_SIZE,
           "%s: a grid of (%u,%u,%u) is no multiple of its clusters of (%u,%u,%u)", name, grid.x,
           grid.y, grid.z, used.x, used.y, used.z);
  }
  if (!cooperative) return;
  const long fit = 1l * card.multiprocessors * blocks_of_multiprocessor(kernel, count(block), shared);
  if (count(grid) > size_t(fit))
    fail(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "%s: %llu blocks are to run at once, %ld can",
         name, count(grid), fit);
  if (count(used) == 1) shape.cluster = {0, 0, 0};  // as the emulator is told of it
}

// How far from aligned a pointer to that type may be: C++'s name of the type tells.
size_t alignment_of(const std::string& pointee) {
  static const std::map<std::string, size_t> known = {
      {"f", 4}, {"i", 4},      {"j", 4},      {"d", 8},      {"l", 8},       {"m", 8},
      {"x", 8}, {"y", 8},      {"s", 2},      {"t", 2},      {"6float2", 8}, {"6float4", 16},
      {"4int2", 8}, {"4int4", 16}, {"5uint2", 8}, {"5uint4", 16}, {"7double2", 16},
  };
  const auto found = known.find(pointee);
  return found == known.end() ? 1 : found->second;
}

// A programmatic launch may start before the kernels before it have ended. Here they have; but until
// its threads wait for them, all memory that it names is closed, so that it cannot tell, and what it
// touches too early is named. (A device allows what no kernel in flight uses, such as constants.)
struct Early {
  static const std::vector<std::shared_ptr<Memory>>* named;
  static bool first;  // no thread has waited yet
  cuda_host::Prerequisites*& hook;

  Early(cuda_host::Prerequisites*& hook, const std::vector<std::shared_ptr<Memory>>& memory)
      : hook(hook) {
    named = &memory;
    first = true;
    hook = [](bool ended) {
      close_early(*named, !ended, first);
      first = first && !ended;
    };
  }
  ~Early() {
    hook(true);
    hook = nullptr;
  }
};
const std::vector<std::shared_ptr<Memory>>* Early::named = nullptr;
bool Early::first = true;

// The values of a launch's arguments, which the call copies.
struct Arguments {
  std::vector<char> bytes;
  std::vector<void*> pointers;
};

// What the device would find out when it runs: empty, or the rule that was broken.
Failure fault_of(const Kernel& kernel, size_t i, const void* address, const Context& context,
                 std::vector<std::shared_ptr<Memory>>& memory) {
  const Parameter& parameter = kernel.parameters[i];
  const char* name = kernel.symbol.c_str();
  const auto found = memory_at(address);
  if (found == nullptr)
    return {CUDA_ERROR_ILLEGAL_ADDRESS,
            text("%s: parameter %zu, %p, is no address of device %d", name, i, address,
                 context.device)};
  const std::string why = unusable(*found, &context, true);
  if (!why.empty())
    return {CUDA_ERROR_ILLEGAL_ADDRESS, text("%s: parameter %zu: %s", name, i, why.c_str())};
  const std::string pointee = parameter.type.substr(parameter.type[1] == 'K' ? 2 : 1);
  if (reinterpret_cast<uintptr_t>(address) % alignment_of(pointee) != 0)
    return {CUDA_ERROR_MISALIGNED_ADDRESS,
            text("%s: parameter %zu, %p, is not aligned to %zu bytes", name, i, address,
                 alignment_of(pointee))};
  memory.push_back(found);
  return {CUDA_SUCCESS, ""};
}

void launch(Lock& lock, const CUlaunchConfig& config, const void* function, void** parameters) {
  const auto kernel = find<Kernel>(function);
  const auto library = kernel->library.lock();
  const auto stream = stream_of(config.hStream);
  const Context& context = current();
  if (stream->context != &context)
    fail(CUDA_ERROR_INVALID_HANDLE, "%s: the stream is device %d's, current is device %d",
         kernel->symbol.c_str(), stream->context->device, context.device);
  Shape shape = shape_of(config);
  check(*kernel, shape, context.device);
  if (shape.programmatic && stream->tail.size() > 1)  // what a driver does is not documented
    fail(CUDA_ERROR_NOT_SUPPORTED, "%s is captured as a programmatic launch behind %zu branches",
         kernel->symbol.c_str(), stream->tail.size());
  if (parameters == nullptr && !kernel->parameters.empty())
    fail(CUDA_ERROR_INVALID_VALUE, "%s has %zu parameters, and there are none",
         kernel->symbol.c_str(), kernel->parameters.size());

  Work work{kernel->symbol.c_str(), {}, {}};
  work.alone = true;
  work.uses = library;
  auto arguments = std::make_shared<Arguments>();
  const size_t total =
      kernel->parameters.empty()
          ? 0
          : kernel->parameters.back().offset + kernel->parameters.back().bytes;
  arguments->bytes.resize(total);
  Failure fault{CUDA_SUCCESS, ""};
  for (size_t i = 0; i < kernel->parameters.size(); ++i) {
    const Parameter& parameter = kernel->parameters[i];
    char* value = arguments->bytes.data() + parameter.offset;
    memcpy(value, parameters[i], parameter.bytes);
    arguments->pointers.push_back(value);
    if (parameter.type[0] == 'P') {
      void* address;
      memcpy(&address, value, sizeof address);
      if (address == nullptr || fault.result != CUDA_SUCCESS) continue;
      fault = fault_of(*kernel, i, address, context, work.memory);
    } else if (parameter.bytes > 8) {  // a struct may hold pointers
      for (size_t at = 0; at + 8 <= parameter.bytes; at += 8) {
        void* address;
        memcpy(&address, value + at, sizeof address);
        if (const auto found = memory_at(address); found != nullptr && !found->free_asked)
          work.memory.push_back(found);
      }
    }
  }
  if (fault.result != CUDA_SUCCESS) {
    work.run = [fault] { throw fault; };
  } else {
    work.run = [kernel, library, shape, arguments, named = work.memory] {
      for (const auto& [pointer, value] : library->functions) *pointer = value;
      const unsigned sizes[9] = {shape.grid.x,    shape.grid.y,    shape.grid.z,
                                 shape.block.x,   shape.block.y,   shape.block.z,
                                 shape.cluster.x, shape.cluster.y, shape.cluster.z};
      Fault watched{kernel->loaded};
      fault_result = CUDA_ERROR_LAUNCH_FAILED;
      faulting = &watched;
      std::optional<Early> early;
      if (shape.programmatic) early.emplace(*kernel->prerequisites, named);
      const char* message = kernel->start(sizes, shape.shared, arguments->pointers.data());
      faulting = nullptr;
      if (message != nullptr) throw Failure{fault_result, message};
    };
  }
  submit(lock, *stream, std::move(work));
}

int device_of(CUdevice device) { return context_of_device(device).device; }

}  // namespace
}  // namespace standin

using namespace standin;

#define EXPORT extern "C" __attribute__((visibility("default")))

// ------------------------------------------------------------------------ libraries, modules

EXPORT CUresult cuLibraryLoadData(CUlibrary* out, const void* image, void*, void**, unsigned,
                                  void*, void**, unsigned) {
  return call("cuLibraryLoadData", Counted::other, [&](Lock&) {
    *out = static_cast<CUlibrary>(load(static_cast<const char*>(image))->handle);
  });
}

EXPORT CUresult cuLibraryUnload(CUlibrary library) {
  return call("cuLibraryUnload", Counted::release, [&](Lock&) { unload(library); });
}

EXPORT CUresult cuLibraryGetKernel(CUkernel* out, CUlibrary library, const char* name) {
  return call("cuLibraryGetKernel", Counted::other, [&](Lock&) {
    *out = static_cast<CUkernel>(named(*find<Library>(library), name)->handle);
  });
}

EXPORT CUresult cuLibraryGetKernelCount(unsigned* count, CUlibrary library) {
  return call("cuLibraryGetKernelCount", Counted::other,
              [&](Lock&) { *count = find<Library>(library)->kernels.size(); });
}

EXPORT CUresult cuModuleLoadData(CUmodule* out, const void* image) {
  return call("cuModuleLoadData", Counted::other, [&](Lock&) {
    current();
    *out = static_cast<CUmodule>(load(static_cast<const char*>(image))->handle);
  });
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
  return call("cuModuleUnload", Counted::release, [&](Lock&) { unload(module); });
}

EXPORT CUresult cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
  return call("cuModuleGetFunction", Counted::other, [&](Lock&) {
    *out = static_cast<CUfunction>(named(*find<Library>(module), name)->handle);
  });
}

// A kernel and its function are one here.
EXPORT CUresult cuKernelGetFunction(CUfunction* out, CUkernel kernel) {
  return call("cuKernelGetFunction", Counted::other, [&](Lock&) {
    current();
    *out = static_cast<CUfunction>(find<Kernel>(kernel)->handle);
  });
}

EXPORT CUresult cuKernelGetLibrary(CUlibrary* out, CUkernel kernel) {
  return call("cuKernelGetLibrary", Counted::other, [&](Lock&) {
    *out = static_cast<CUlibrary>(find<Kernel>(kernel)->library.lock()->handle);
  });
}

EXPORT CUresult cuKernelGetName(const char** name, CUkernel kernel) {
  return call("cuKernelGetName", Counted::other,
              [&](Lock&) { *name = find<Kernel>(kernel)->symbol.c_str(); });
}

EXPORT CUresult cuFuncGetName(const char** name, CUfunction function) {
  return call("cuFuncGetName", Counted::other,
              [&](Lock&) { *name = find<Kernel>(function)->symbol.c_str(); });
}

EXPORT CUresult cuKernelGetParamInfo(CUkernel kernel, size_t i, size_t* offset, size_t* bytes) {
  return call("cuKernelGetParamInfo", Counted::other, [&](Lock&) {
    const auto found = find<Kernel>(kernel);
    if (i >= found->parameters.size())
      fail(CUDA_ERROR_INVALID_VALUE, "%s has %zu parameters", found->symbol.c_str(),
           found->parameters.size());
    *offset = found->parameters[i].offset;
    if (bytes != nullptr) *bytes = found->parameters[i].bytes;
  });
}

EXPORT CUresult cuFuncGetParamInfo(CUfunction f, size_t i, size_t* offset, size_t* bytes) {
  return cuKernelGetParamInfo(reinterpret_cast<CUkernel>(f), i, offset, bytes);
}

EXPORT CUresult cuKernelGetAttribute(int* value, CUfunction_attribute which, CUkernel kernel,
                                     CUdevice device) {
  return call("cuKernelGetAttribute", Counted::other, [&](Lock&) {
    *value = attribute(*find<Kernel>(kernel), which, device_of(device));
  });
}

EXPORT CUresult cuKernelSetAttribute(CUfunction_attribute which, int value, CUkernel kernel,
                                     CUdevice device) {
  return call("cuKernelSetAttribute", Counted::other, [&](Lock&) {
    set_attribute(*find<Kernel>(kernel), which, value, device_of(device));
  });
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction function) {
  return call("cuFuncGetAttribute", Counted::other, [&](Lock&) {
    *value = attribute(*find<Kernel>(function), which, current().device);
  });
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  return call("cuFuncSetAttribute", Counted::other, [&](Lock&) {
    set_attribute(*find<Kernel>(function), which, value, current().device);
  });
}

// -------------------------------------------------------------------------------- launches

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function,
                                 void** parameters, void** extra) {
  return call("cuLaunchKernelEx", Counted::launch, [&](Lock& lock) {
    if (extra != nullptr)
      fail(CUDA_ERROR_NOT_SUPPORTED, "the stand-in takes parameters one by one");
    launch(lock, *config, function, parameters);
  });
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz,
                               unsigned bx, unsigned by, unsigned bz, unsigned shared,
                               CUstream stream, void** parameters, void** extra) {
  const CUlaunchConfig config{gx, gy, gz, bx, by, bz, shared, stream, nullptr, 0};
  return cuLaunchKernelEx(&config, function, parameters, extra);
}

EXPORT CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy,
                                          unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                          unsigned shared, CUstream stream, void** parameters) {
  CUlaunchAttribute cooperative{};
  cooperative.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
  cooperative.value.cooperative = 1;
  const CUlaunchConfig config{gx, gy, gz, bx, by, bz, shared, stream, &cooperative, 1};
  return cuLaunchKernelEx(&config, function, parameters, nullptr);
}

// -------------------------------------------------------------------------------- occupancy

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction f,
                                                                     int threads, size_t shared,
                                                                     unsigned) {
  return call("cuOccupancyMaxActiveBlocksPerMultiprocessor", Counted::other, [&](Lock&) {
    current();
    *blocks = blocks_of_multiprocessor(*find<Kernel>(f), threads, shared);
  });
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction f, int threads,
                                                            size_t shared) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, f, threads, shared, 0);
}

EXPORT CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* threads, CUfunction f,
                                                          CUoccupancyB2DSize shared_of,
                                                          size_t shared, int limit, unsigned) {
  return call("cuOccupancyMaxPotentialBlockSize", Counted::other, [&](Lock&) {
    current();
    const auto kernel = find<Kernel>(f);
    int most = kernel->threads, best = 0;
    if (limit > 0) most = std::min(most, limit);
    *grid = *threads = 0;
    for (int size = most; size > 0; size = (size - 1) / 32 * 32) {
      const size_t bytes = shared_of != nullptr ? shared_of(size) : shared;
      const int blocks = blocks_of_multiprocessor(*kernel, size, bytes);
      if (blocks * size <= best) continue;
      best = blocks * size;
      *threads = size;
      *grid = blocks * state.card->multiprocessors;
    }
  });
}

EXPORT CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* threads, CUfunction f,
                                                 CUoccupancyB2DSize shared_of, size_t shared,
                                                 int limit) {
  return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, threads, f, shared_of, shared, limit, 0);
}

EXPORT CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, CUfunction f, int blocks,
                                                        int threads) {
  return call("cuOccupancyAvailableDynamicSMemPerBlock", Counted::other, [&](Lock&) {
    current();
    const auto kernel = find<Kernel>(f);
    if (blocks < 1 || threads < 1)
      fail(CUDA_ERROR_INVALID_VALUE, "%d blocks of %d threads", blocks, threads);
    const Card& card = *state.card;
    const size_t reserved = card.major >= 8 ? 1024 : 0;
    const size_t share = card.shared_multiprocessor / blocks / 128 * 128;
    const size_t taken = reserved + kernel->static_shared;
    *bytes = share <= taken ? 0
                            : std::min(share - taken,
                                       size_t(card.shared_block_optin - kernel->static_shared));
  });
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction f,
                                             const CUlaunchConfig* config) {
  return call("cuOccupancyMaxActiveClusters", Counted::other, [&](Lock&) {
    const Context& context = current();
    const auto kernel = find<Kernel>(f);
    Shape shape = shape_of(*config);
    if (!shape.asks_for_cluster && kernel->cluster <= 1)
      fail(CUDA_ERROR_INVALID_CLUSTER_SIZE, "no size of a cluster is given");
    check(*kernel, shape, context.device);
    const int blocks = blocks_of_multiprocessor(*kernel, count(shape.block), shape.shared);
    *clusters = clusters_at_once(count(shape.cluster), blocks);
  });
}

EXPORT CUresult cuOccupancyMaxPotentialClusterSize(int* size, CUfunction f,
                                                   const CUlaunchConfig* config) {
  return call("cuOccupancyMaxPotentialClusterSize", Counted::other, [&](Lock&) {
    const Context& context = current();
    const auto kernel = find<Kernel>(f);
    if (state.card->major < 9)
      fail(CUDA_ERROR_NOT_SUPPORTED, "%s has no clusters", state.card->name);
    const Shape shape = shape_of(*config);
    const bool fits = blocks_of_multiprocessor(*kernel, count(shape.block), shape.shared) > 0;
    const bool non_portable = kernel->attributes[context.device].non_portable;
    *size = !fits ? 0 : non_portable ? cuda_host::blocks_of_cluster : int(portable_cluster);
  });
}
