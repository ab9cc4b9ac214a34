// main() of the sanitizer builds: loads libraries and launches their kernels, one Request on
// stdin after another until there are no more. Each array is an allocation of its own for as
// long as the launch lasts, so that AddressSanitizer sees its ends.
//
// After the Request comes the library's path, and for a launch
//   (offset % 256, bytes) for each allocation,
//   (is pointer, allocation or -1, offset in it) or (0, bytes, 0) for each argument,
//   then the bytes of the allocations, then those of the values.
// The answer is a number of bytes, and those of the allocations, or a line "name bytes" for
// each of the kernel's parameters. All numbers are uint64.
//
// If a launch fails the process ends with a message on stderr, as it does when a sanitizer
// finds something: abandoned fibers leave marks in a sanitizer's memory.
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "fibers.h"

#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace {

struct Request {
  uint64_t is_launch, kernel, path_bytes, allocations, arguments, dynamic_shared_bytes, sizes[9];
};

void read(void* out, size_t bytes) {
  if (bytes > 0 && fread(out, bytes, 1, stdin) != 1) _exit(0);
}

uint64_t read_number() {
  uint64_t value;
  read(&value, sizeof value);
  return value;
}

void write(const void* data, size_t bytes) {
  if (bytes > 0 && fwrite(data, bytes, 1, stdout) != 1) _exit(0);
}

void write_number(uint64_t value) { write(&value, sizeof value); }

// parameter_<kernel> or launch_<kernel>; a library that is loaded already is not loaded again.
template <class Function>
Function* find(const std::string& path, std::string name, unsigned kernel) {
  void* library = dlopen(path.c_str(), RTLD_NOW);
  void* found = library ? dlsym(library, (name + "_" + std::to_string(kernel)).c_str()) : nullptr;
  if (found == nullptr) {
    fprintf(stderr, "%s\n", dlerror());
    _exit(1);
  }
  return reinterpret_cast<Function*>(found);
}

void describe(cuda_host::Parameter* parameter) {
  std::string text;
  size_t bytes;
  for (unsigned i = 0; const char* name = parameter(i, &bytes); ++i)
    text += std::string(name) + " " + std::to_string(bytes) + "\n";
  write_number(text.size());
  write(text.data(), text.size());
}

struct Allocation {
  char* memory;
  size_t offset, bytes;

  // As cudaMalloc aligns; an array that starts inside of one keeps its misalignment.
  void allocate() {
    void* out;
    if (posix_memalign(&out, 256, offset + bytes + (bytes == 0)) != 0) abort();
    memory = static_cast<char*>(out);
#ifdef CUDA_HOST_ASAN
    __asan_poison_memory_region(memory, offset);
#endif
  }
};

void launch(const Request& request, cuda_host::Start* start) {
  std::vector<Allocation> arrays(request.allocations), values;
  for (Allocation& array : arrays) {
    array.offset = read_number();
    array.bytes = read_number();
    array.allocate();
  }
  std::vector<void*> pointers(request.arguments), arguments(request.arguments);
  values.reserve(request.arguments);
  for (size_t i = 0; i < request.arguments; ++i) {
    const bool is_pointer = read_number();
    const uint64_t which = read_number(), offset = read_number();
    if (is_pointer) {
      if (which != ~uint64_t{0}) pointers[i] = arrays[which].memory + arrays[which].offset + offset;
      arguments[i] = &pointers[i];
    } else {
      values.push_back({nullptr, 0, which});
      values.back().allocate();
      arguments[i] = values.back().memory;
    }
  }
  for (auto* list : {&arrays, &values})
    for (Allocation& a : *list) read(a.memory + a.offset, a.bytes);

  unsigned sizes[9];
  for (int i = 0; i < 9; ++i) sizes[i] = request.sizes[i];
  const char* failure = start(sizes, request.dynamic_shared_bytes, arguments.data());
  if (failure != nullptr) {
    fprintf(stderr, "%s\n", failure);
    _exit(1);
  }
  size_t total = 0;
  for (const Allocation& array : arrays) total += array.bytes;
  write_number(total);
  for (const Allocation& array : arrays) write(array.memory + array.offset, array.bytes);
  for (auto* list : {&arrays, &values})
    for (Allocation& a : *list) free(a.memory);
}

// While a launch lasts, which may be for ever, nobody else would notice that Python has ended.
void* watch(void*) {
  pollfd input{STDIN_FILENO, 0, 0};  // no events: only that it was hung up
  while (poll(&input, 1, -1) != 1) {
  }
  _exit(0);
}

}  // namespace

int main() {
  pthread_t watcher;
  pthread_create(&watcher, nullptr, watch, nullptr);
  for (;;) {
    Request request;
    read(&request, sizeof request);
    std::string path(request.path_bytes, 0);
    read(&path[0], path.size());
    const unsigned kernel = request.kernel;
    if (request.is_launch) {
      launch(request, find<cuda_host::Start>(path, "launch", kernel));
    } else {
      describe(find<cuda_host::Parameter>(path, "parameter", kernel));
    }
    fflush(stdout);
  }
}
