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

inline bool is_aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

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
