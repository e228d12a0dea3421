// Arithmetic of the cross-entropy kernels by type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pspnet_fast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// 2^x by the special-function unit alone; results below 2^-126 are zero. exp2f would spend three more instructions on
// those.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// log2 x by the same unit: the relative error is at most 2^-22 where x >= 2. log2f takes thirty instructions.
__device__ __forceinline__ float fast_log2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return log2f(x);
#endif
}

// e^x for x <= 0.
__device__ __forceinline__ float exp_nonpositive(float x) { return fast_exp2(x * kLog2E); }
__device__ __forceinline__ double exp_nonpositive(double x) { return exp(x); }

// (1 - t) · a + t · b, not a + t · (b - a): what an infinite logit gives must be what PyTorch gives. Its rounding is pinned
// down, so that a pixel's logit is the same wherever it is computed.
template <typename Real>
__device__ __forceinline__ Real mix(Real t, Real a, Real b) {
  return fma(t, b, (1 - t) * a);
}

// x / y for y of 2^-126 to 2^126, by the special-function unit. __fdividef spends three instructions more on others.
__device__ __forceinline__ float quotient(float x, float y) {
#if defined(__CUDACC__)
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(y));
  return x * reciprocal;
#else
  return x / y;
#endif
}
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }

// Read-only data in global memory.
template <typename Real, typename T>
__device__ __forceinline__ Real load_as(const T* address) {
  return static_cast<Real>(__ldg(address));
}

// Every lane gets what `combine` makes of the values of 2 · `width` lanes that differ in the bits below.
template <typename T, typename Combine>
__device__ __forceinline__ T combine_lanes(T value, int width, Combine combine) {
  for (int bit = width; bit > 0; bit /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, bit));
  return value;
}

}  // namespace pspnet_fast::cuda
