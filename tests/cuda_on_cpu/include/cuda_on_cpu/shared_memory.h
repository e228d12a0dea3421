// Shared memory of the block that is running.
//
// Static: every `__shared__` variable is a static variable; blocks run one after another, so one copy serves all. The
// attribute noinit brings them together in a section of their own, in templates too (where GCC ignores the attribute
// section); the linker script shared_memory.ld names its bounds.
// Dynamic: one buffer, handed out by pspnet_fast::cuda::dynamic_shared<T>().
// Both are filled with a pattern when a block starts, so that what the block has not written shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define __shared__ static __attribute__((noinit, used))

extern "C" {
extern char cuda_on_cpu_shared_begin[] __attribute__((visibility("hidden")));
extern char cuda_on_cpu_shared_end[] __attribute__((visibility("hidden")));
}

namespace cuda_on_cpu {

constexpr size_t kSharedWithoutOptIn = 48 * 1024;
constexpr size_t kSharedOptIn = 227 * 1024;

// NaN in every floating-point format, and large in every integer; or large finite numbers, which no maximum drops.
constexpr uint16_t kPoisonNaN = 0x7fff;
constexpr uint16_t kPoisonLarge = 0x5b5b;

alignas(128) inline unsigned char dynamic_shared_memory[kSharedOptIn];

inline bool is_shared(const void* address) {
  const char* at = static_cast<const char*>(address);
  const char* dynamic = reinterpret_cast<const char*>(dynamic_shared_memory);
  return (cuda_on_cpu_shared_begin <= at && at < cuda_on_cpu_shared_end) ||
         (dynamic <= at && at < dynamic + kSharedOptIn);
}

// Not instrumented: it also writes over the red zones between the variables.
__attribute__((no_sanitize("address", "undefined"), noinline))
inline void fill(char* begin, char* end, uint16_t value) {
  for (; begin + sizeof value <= end; begin += sizeof value) __builtin_memcpy(begin, &value, sizeof value);
}

inline void poison_shared_memory(size_t dynamic_bytes, uint16_t value) {
  fill(cuda_on_cpu_shared_begin, cuda_on_cpu_shared_end, value);
  char* dynamic = reinterpret_cast<char*>(dynamic_shared_memory);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(dynamic, dynamic_bytes);
  ASAN_POISON_MEMORY_REGION(dynamic + dynamic_bytes, kSharedOptIn - dynamic_bytes);
#endif
  fill(dynamic, dynamic + dynamic_bytes, value);
}

}  // namespace cuda_on_cpu

namespace pspnet_fast::cuda {

// Stands for csrc/cuda/launch.h's.
template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(cuda_on_cpu::dynamic_shared_memory);
}

}  // namespace pspnet_fast::cuda
