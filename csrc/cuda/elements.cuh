// Elements in kernels: the type that sums are taken in, rounding, and packs of neighbours moved by one access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../types.h"

namespace pspnet_fast::cuda {

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

template <typename T>
__device__ __forceinline__ Acc<T> load(T v) {
  return static_cast<Acc<T>>(v);
}
template <typename T>
__device__ __forceinline__ T round_to(Acc<T> v) {
  return static_cast<T>(v);
}

// VEC neighbouring elements, moved as one access of up to 16 bytes.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
  T v[VEC];
};

// Writes VEC sums to global memory, 16 bytes at once. `to` is aligned as far as VEC of them are, up to that. The store
// asks for an instruction for vectors, as nvcc stores what it sees to be a copy of an array element by element.
template <typename Real, int VEC>
__device__ __forceinline__ void store_sums(Real* to, const Real (&sums)[VEC]) {
  constexpr int kVec = VEC * sizeof(Real) < 16 ? 1 : 16 / static_cast<int>(sizeof(Real));
#pragma unroll
  for (int i = 0; i < VEC; i += kVec) {
    if constexpr (kVec == 4) {
      __stcg(reinterpret_cast<float4*>(to + i), make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    } else if constexpr (kVec == 2) {
      __stcg(reinterpret_cast<double2*>(to + i), make_double2(sums[i], sums[i + 1]));
    } else {
      to[i] = sums[i];
    }
  }
}

inline bool is_aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// Calls `use(i, load(i))` for i from `done` to `count` in turn. Batches of loads are under way before the first is used,
// smaller ones for the rest: in a loop that may end after any load, a compiler waits for each.
template <int BATCH, typename Load, typename Use>
__device__ __forceinline__ void in_batches(int count, Load load, Use use, int done = 0) {
#pragma unroll 1
  for (; done + BATCH <= count; done += BATCH) {
    decltype(load(0)) values[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) values[i] = load(done + i);
#pragma unroll
    for (int i = 0; i < BATCH; ++i) use(done + i, values[i]);
  }
  if constexpr (BATCH > 1) in_batches<BATCH / 2>(count, load, use, done);
}

// Calls `function` with a zero of the type.
template <typename Function>
void with_element(ElementType type, Function&& function) {
  switch (type) {
    case ElementType::f32: return function(float{});
    case ElementType::f64: return function(double{});
    case ElementType::f16: return function(__half{});
    case ElementType::bf16: return function(__nv_bfloat16{});
  }
}

}  // namespace pspnet_fast::cuda
