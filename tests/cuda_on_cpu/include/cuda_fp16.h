// __half, IEEE binary16, over the compiler's _Float16.
#pragma once

#include "cuda_on_cpu/small_float.h"
#include "cuda_runtime.h"

namespace cuda_on_cpu {

struct Binary16 {
  static uint16_t round(double value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }
  static float widen(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
};

}  // namespace cuda_on_cpu

using __half = cuda_on_cpu::SmallFloat<cuda_on_cpu::Binary16>;
using __half2 = cuda_on_cpu::Pair<__half>;
using half = __half;
using half2 = __half2;

inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return a; }
inline __half __float2half_rn(float a) { return a; }
inline __half __double2half(double a) { return a; }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short a) { return std::bit_cast<__half>(a); }

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __float2half2_rn(float a) { return {a, a}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 a) { return {a.x, a.y}; }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
