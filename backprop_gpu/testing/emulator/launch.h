// The bridge from a launch with untyped arguments to a kernel. Comes after the .cu.
#pragma once
#undef alignas
#include "cuda_host.h"

// The one array that `extern __shared__` may name. Not C++, or the compiler would know
// its size and leave out checks against the size that the launch asked for.
extern __shared__ unsigned char dynamic_shared[];
asm(R"(
.pushsection .tbss.dynamic_shared, "awT", %nobits
.globl dynamic_shared
.type dynamic_shared, %tls_object
.balign 1024
dynamic_shared:
.zero 227 * 1024 + 256
.size dynamic_shared, . - dynamic_shared
.popsection
)");
static_assert(cuda_host::largest_dynamic_shared + cuda_host::guard == 227 * 1024 + 256);

namespace cuda_host {

// arguments[i] points to the value of parameter i; each thread gets its own copies.
template <class... P> struct Kernel {
  template <void (*kernel)(P...)> static void thread(void** arguments) {
    call<kernel>(arguments, std::index_sequence_for<P...>{});
  }

  template <void (*kernel)(P...), size_t... i>
  static void call([[maybe_unused]] void** arguments, std::index_sequence<i...>) {
    kernel(*static_cast<P*>(arguments[i])...);
  }

  // For the caller to check what it passes: name as typeid has it, "PKf" for const float*.
  static const char* parameter(unsigned i, size_t* bytes) {
    const char* names[] = {typeid(P).name()..., nullptr};
    const size_t sizes[] = {sizeof(P)..., 0};
    if (i >= sizeof...(P)) return nullptr;
    *bytes = sizes[i];
    return names[i];
  }
};

template <class... P> Kernel<P...> kernel_type(void (*)(P...));

inline unsigned char* dynamic_shared_of_thread() { return dynamic_shared; }

}  // namespace cuda_host

// The kernel's name comes last, because template arguments may contain commas.
#define CUDA_HOST_KERNEL(i, ...)                                                              \
  using kernel_type_##i = decltype(cuda_host::kernel_type(__VA_ARGS__));                      \
  extern "C" const char* parameter_##i(unsigned parameter, size_t* bytes) {                   \
    return kernel_type_##i::parameter(parameter, bytes);                                      \
  }                                                                                           \
  extern "C" const char* launch_##i(const unsigned* s, size_t dynamic_shared_bytes,           \
                                    void** arguments) {                                       \
    return cuda_host::run({#__VA_ARGS__, {s[0], s[1], s[2]}, {s[3], s[4], s[5]},              \
                           {s[6], s[7], s[8]}, dynamic_shared_bytes,                          \
                           cuda_host::dynamic_shared_of_thread,                               \
                           kernel_type_##i::thread<__VA_ARGS__>, arguments});                 \
  }
