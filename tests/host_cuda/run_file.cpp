// main() of the sanitizer builds: one launch, read from a file, its arrays written to
// another. Each array is an allocation of its own, so that AddressSanitizer sees its ends.
//
//   program parameters              -> a line "kernel name bytes" for each parameter
//   program run LAUNCH RESULT       -> 3 and a message on stderr if the launch fails
//
// runtime.py writes LAUNCH; all numbers are uint64:
//   kernel, grid x y z, block x y z, dynamic shared bytes, allocations, arguments,
//   (offset % 256, bytes) for each allocation,
//   (is pointer, allocation or -1, offset in it) or (0, bytes, 0) for each argument,
//   then the bytes of the allocations, then those of the values.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fibers.h"

#ifdef CUDA_HOST_ASAN
#include <sanitizer/asan_interface.h>
#endif

extern const cuda_host::Entry cuda_host_entries[];  // of the generated file
extern const unsigned cuda_host_entry_count;

static void read(FILE* file, void* out, size_t bytes) {
  if (bytes > 0 && fread(out, bytes, 1, file) != 1) exit(4);
}

static uint64_t number(FILE* file) {
  uint64_t value;
  read(file, &value, sizeof value);
  return value;
}

int main(int count, char** words) {
  if (count == 2) {
    for (unsigned kernel = 0; kernel < cuda_host_entry_count; ++kernel) {
      size_t bytes;
      for (unsigned i = 0;; ++i) {
        const char* name = cuda_host_entries[kernel].parameter(i, &bytes);
        if (name == nullptr) break;
        printf("%u %s %zu\n", kernel, name, bytes);
      }
    }
    return 0;
  }
  FILE* file = fopen(words[2], "rb");
  if (file == nullptr) return 4;
  uint64_t head[10];
  read(file, head, sizeof head);

  struct Allocation {
    size_t offset, bytes;
    char* memory;
  };
  std::vector<Allocation> allocations(head[8]);
  for (Allocation& a : allocations) {
    a.offset = number(file);
    a.bytes = number(file);
    // As cudaMalloc aligns; an array that starts inside of one keeps its misalignment.
    void* memory;
    if (posix_memalign(&memory, 256, a.offset + a.bytes + (a.bytes == 0)) != 0) return 4;
    a.memory = static_cast<char*>(memory) + a.offset;
  }
  std::vector<void*> pointers(head[9]), arguments(head[9]);
  std::vector<size_t> value_bytes(head[9]);
  for (size_t i = 0; i < pointers.size(); ++i) {
    const bool is_pointer = number(file);
    const uint64_t which = number(file), offset = number(file);
    if (is_pointer) {
      if (which != ~uint64_t{0}) pointers[i] = allocations[which].memory + offset;
      arguments[i] = &pointers[i];
    } else {
      value_bytes[i] = which;
      arguments[i] = calloc(1, which + 16);
    }
  }
  for (Allocation& a : allocations) {
    read(file, a.memory, a.bytes);
#ifdef CUDA_HOST_ASAN
    __asan_poison_memory_region(a.memory - a.offset, a.offset);
#endif
  }
  for (size_t i = 0; i < pointers.size(); ++i) read(file, arguments[i], value_bytes[i]);
  fclose(file);

  const char* failure = cuda_host_entries[head[0]].launch(
      head[1], head[2], head[3], head[4], head[5], head[6], head[7], arguments.data());
  if (failure != nullptr) {
    fprintf(stderr, "%s\n", failure);
    return 3;
  }
  file = fopen(words[3], "wb");
  if (file == nullptr) return 4;
  for (const Allocation& a : allocations)
    if (a.bytes > 0 && fwrite(a.memory, a.bytes, 1, file) != 1) return 4;
  return fclose(file) == 0 ? 0 : 4;
}
