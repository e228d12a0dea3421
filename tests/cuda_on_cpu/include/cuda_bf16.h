// __nv_bfloat16: the upper half of a float32.
#pragma once

#include "cuda_on_cpu/small_float.h"
#include "cuda_runtime.h"

namespace cuda_on_cpu {

struct Bfloat16 {
  // To nearest, ties to even. On its way through float32 a value between two of its numbers keeps its last bit set
  // ("round to odd"), so that the second rounding sees that it is no tie.
  static uint16_t round(double value) {
    const float nearest = static_cast<float>(value);
    uint32_t bits = std::bit_cast<uint32_t>(nearest);
    if (value != value) return 0x7fff;
    if (static_cast<double>(nearest) != value && std::isfinite(nearest)) {
      if (fabs(static_cast<double>(nearest)) > fabs(value)) --bits;
      bits |= 1;
    }
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

}  // namespace cuda_on_cpu

using __nv_bfloat16 = cuda_on_cpu::SmallFloat<cuda_on_cpu::Bfloat16>;
using __nv_bfloat162 = cuda_on_cpu::Pair<__nv_bfloat16>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
inline __nv_bfloat16 __double2bfloat16(double a) { return a; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short a) { return std::bit_cast<__nv_bfloat16>(a); }

inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
inline __nv_bfloat162 __float2bfloat162_rn(float a) { return {a, a}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) { return {a.x, a.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
