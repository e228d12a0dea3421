// Loads and stores with a cache hint: instructions for global memory alone. On a GPU one of a local variable or of shared
// memory is an illegal access, which ends every later call of the process.
#pragma once

#include <source_location>
#include <string>

#include "block.h"
#include "shared_memory.h"

namespace cuda_on_cpu {

inline void check_global(const void* address, const char* call, Where where) {
  const bool shared = is_shared(address);
  if (!shared && !block.current->fiber.holds(address)) return;
  fail(std::string(call) + " (" + describe(where) + ") of " + (shared ? "shared memory" : "a local variable"));
}

}  // namespace cuda_on_cpu

// Inlined, so that what counts accesses (counting.cpp) sees each where it stands in a kernel.
#define CUDA_ON_CPU_LOAD(name)                                                           \
  template <typename T>                                                                  \
  [[gnu::always_inline]] inline T name(                                                  \
      const T* address, std::source_location where = std::source_location::current()) {  \
    cuda_on_cpu::check_global(address, #name, where);                                    \
    return *address;                                                                     \
  }
#define CUDA_ON_CPU_STORE(name)                                                                    \
  template <typename T>                                                                            \
  [[gnu::always_inline]] inline void name(                                                         \
      T* address, const T value, std::source_location where = std::source_location::current()) {   \
    cuda_on_cpu::check_global(address, #name, where);                                              \
    *address = value;                                                                              \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_LOAD
#undef CUDA_ON_CPU_STORE
