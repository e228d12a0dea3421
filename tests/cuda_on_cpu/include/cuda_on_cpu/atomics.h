// Atomic operations: threads take turns, so each is the plain operation; it returns the value before.
#pragma once

#include <concepts>
#include <cstring>
#include <type_traits>

namespace cuda_on_cpu {

template <typename T, typename... Allowed>
concept one_of = (std::same_as<T, Allowed> || ...);

using u64 = unsigned long long;
template <typename T>
concept integer32or64 = one_of<T, int, unsigned, u64, long long>;

// `Value` keeps the value out of deduction, as in CUDA's overloads.
template <typename T>
using Value = std::type_identity_t<T>;

template <typename T>
T exchange(T* address, T value) {
  const T before = *address;
  *address = value;
  return before;
}

}  // namespace cuda_on_cpu

// One operation, also in the scopes of the system and of the block.
#define CUDA_ON_CPU_ATOMIC(name, constraint, expression)                                                      \
  template <typename T>                                                                                      \
    requires(constraint)                                                                                     \
  T name(T* address, cuda_on_cpu::Value<T> value) {                                                          \
    const T before = *address;                                                                               \
    return cuda_on_cpu::exchange(address, static_cast<T>(expression)), before;                               \
  }                                                                                                          \
  template <typename T>                                                                                      \
    requires(constraint)                                                                                     \
  T name##_system(T* address, cuda_on_cpu::Value<T> value) {                                                 \
    return name(address, value);                                                                             \
  }                                                                                                          \
  template <typename T>                                                                                      \
    requires(constraint)                                                                                     \
  T name##_block(T* address, cuda_on_cpu::Value<T> value) {                                                  \
    return name(address, value);                                                                             \
  }

CUDA_ON_CPU_ATOMIC(atomicAdd, (cuda_on_cpu::one_of<T, int, unsigned, cuda_on_cpu::u64, float, double>), before + value)
CUDA_ON_CPU_ATOMIC(atomicSub, (cuda_on_cpu::one_of<T, int, unsigned>), before - value)
CUDA_ON_CPU_ATOMIC(atomicExch, (cuda_on_cpu::one_of<T, int, unsigned, cuda_on_cpu::u64, float>), value)
CUDA_ON_CPU_ATOMIC(atomicMin, (cuda_on_cpu::integer32or64<T>), value < before ? value : before)
CUDA_ON_CPU_ATOMIC(atomicMax, (cuda_on_cpu::integer32or64<T>), value > before ? value : before)
CUDA_ON_CPU_ATOMIC(atomicAnd, (cuda_on_cpu::integer32or64<T>), before & value)
CUDA_ON_CPU_ATOMIC(atomicOr, (cuda_on_cpu::integer32or64<T>), before | value)
CUDA_ON_CPU_ATOMIC(atomicXor, (cuda_on_cpu::integer32or64<T>), before ^ value)
CUDA_ON_CPU_ATOMIC(atomicInc, (std::same_as<T, unsigned>), before >= value ? 0 : before + 1)
CUDA_ON_CPU_ATOMIC(atomicDec, (std::same_as<T, unsigned>), before == 0 || before > value ? value : before - 1)
#undef CUDA_ON_CPU_ATOMIC

template <typename T>
  requires(cuda_on_cpu::one_of<T, int, unsigned, cuda_on_cpu::u64, unsigned short>)
T atomicCAS(T* address, cuda_on_cpu::Value<T> compare, cuda_on_cpu::Value<T> value) {
  const T before = *address;
  if (before == compare) *address = value;
  return before;
}
template <typename T>
T atomicCAS_system(T* address, cuda_on_cpu::Value<T> compare, cuda_on_cpu::Value<T> value) {
  return atomicCAS(address, compare, value);
}
template <typename T>
T atomicCAS_block(T* address, cuda_on_cpu::Value<T> compare, cuda_on_cpu::Value<T> value) {
  return atomicCAS(address, compare, value);
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
