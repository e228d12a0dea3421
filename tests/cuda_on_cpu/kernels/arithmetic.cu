// Types and arithmetic that kernels may use: each case computes something whose value is known.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "cases.h"

namespace {

static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && sizeof(float3) == 12 && alignof(float3) == 4);
static_assert(sizeof(int2) == 8 && alignof(int2) == 8 && sizeof(double2) == 16 && alignof(double2) == 16);
static_assert(sizeof(uchar4) == 4 && alignof(uchar4) == 4 && sizeof(ushort2) == 4 && sizeof(longlong2) == 16);
static_assert(sizeof(__half) == 2 && sizeof(__half2) == 4 && alignof(__half2) == 4);
static_assert(sizeof(__nv_bfloat16) == 2 && sizeof(__nv_bfloat162) == 4 && alignof(__nv_bfloat162) == 4);

// Prints the roundings of random numbers, for the test to compare with PyTorch's.
template <typename T>
__global__ void round_kernel(const float* x, T* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = static_cast<T>(x[i]);
}
template <typename T>
void report_rounding() {
  constexpr int n = 1 << 14;
  Array<float> x(n);
  uint32_t bits = 1;
  for (int i = 0; i < n; ++i) {
    bits = bits * 1664525u + 1013904223u;  // every exponent, NaN and denormals included
    uint32_t pattern = i % 2 ? bits : (bits & 0x9fffffffu) | 0x20000000u;  // half of them near 1
    if (i == 0) pattern = 0x7f800000u;
    if (i % 8 == 0) pattern &= 0xffffe000u;  // ties
    if (i % 8 == 4) pattern &= 0xffff8000u;
    std::memcpy(&x[i], &pattern, sizeof pattern);
  }
  Array<T> out(n);
  PSPNET_FAST_LAUNCH((round_kernel<T>), 1, 64, 0, nullptr, x, out, n);
  report(x);
  report(out);
}
CASE(round_half) { report_rounding<__half>(); }
CASE(round_bfloat16) { report_rounding<__nv_bfloat16>(); }

__global__ void packed_kernel(float* out) {
  const float2 pair = make_float2(1.5f, -2.25f);
  const __half2 h = __hadd2(__float22half2_rn(pair), __floats2half2_rn(0.5f, 0.25f));
  const __nv_bfloat162 b = __hmul2(__float22bfloat162_rn(pair), __float2bfloat162_rn(2.0f));
  out[0] = __half22float2(h).x;
  out[1] = __half2float(h.y);
  out[2] = __bfloat1622float2(b).x;
  out[3] = __bfloat162float(b.y);
  out[4] = __half2float(__hfma(__float2half(3.0f), __float2half(0.5f), __float2half(1.0f)));
  out[5] = __half2float(__float2half(2048.0f) + __float2half(1.0f));  // a tie, to even
  out[6] = __hgt(__float2half(2.0f), __float2half(1.0f)) && !__hisnan(h.x);
  out[7] = __bfloat162float(__double2bfloat16(1.00390625 + 1e-12));  // just above a tie, which float32 would make a tie
}
CASE(packed_types) {
  Array<float> out(8);
  PSPNET_FAST_LAUNCH(packed_kernel, 1, 1, 0, nullptr, out);
  cudaDeviceSynchronize();
  const float expected[8] = {2.0f, -2.0f, 3.0f, -4.5f, 2.5f, 2048.0f, 1.0f, 1.0078125f};
  for (int i = 0; i < 8; ++i) EXPECT(out[i] == expected[i]);
}

__global__ void intrinsics_kernel(double* out, float nan) {
  int n = 0;
  out[n++] = __popc(0xf0f0u) + 100 * __popcll(~0ull);
  out[n++] = __clz(1) + 100 * __clzll(0);
  out[n++] = __ffs(0x50) + 100 * __ffsll(0);
  out[n++] = __umulhi(0x80000000u, 6u);
  out[n++] = __funnelshift_l(0x80000000u, 1u, 4) + (__funnelshift_r(0x10u, 3u, 4) == 0x30000001u ? 1000 : 0);
  out[n++] = __float_as_int(1.0f) - 0x3f800000;
  out[n++] = __int_as_float(0x40000000) + __longlong_as_double(__double_as_longlong(3.0));
  out[n++] = min(3, 5) + max(2u, 7u) + max(-1ll, 4ll) + min(2.5f, 1.5f) + max(0.5, 0.25);
  out[n++] = min(nan, 2.0f) + max(3.0f, nan);
  out[n++] = fmaf(2.0f, 3.0f, 4.0f) + __fdividef(9.0f, 3.0f) + __frcp_rn(4.0f) + rsqrtf(4.0f);
  out[n++] = exp2f(5.0f) + __log2f(8.0f);
  out[n++] = __expf(0.0f) + __logf(1.0f) + __saturatef(7.0f);
  out[n++] = __float2int_rn(2.5f) + 10 * __float2int_rd(-0.5f);
  out[n++] = __float2int_rz(-1.5f) + 10 * __float2int_ru(0.5f);
}
CASE(intrinsics) {
  Array<double> out(14, -1.0);
  PSPNET_FAST_LAUNCH(intrinsics_kernel, 1, 1, 0, nullptr, out, NAN);
  cudaDeviceSynchronize();
  const double expected[14] = {6408, 31 + 6400, 5, 3, 24 + 1000, 0, 5, 16, 5, 13.75, 35, 2, -8, 9};
  for (int i = 0; i < 14; ++i) EXPECT(out[i] == expected[i]);
}

}  // namespace
