// float4 and its kin, with the sizes and alignments that CUDA gives them.
#pragma once

#define CUDA_ON_CPU_VECTORS(T, name)                                                         \
  struct name##1 {                                                                           \
    T x;                                                                                     \
  };                                                                                         \
  struct alignas(2 * sizeof(T)) name##2 {                                                    \
    T x, y;                                                                                  \
  };                                                                                         \
  struct name##3 {                                                                           \
    T x, y, z;                                                                               \
  };                                                                                         \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 {                          \
    T x, y, z, w;                                                                            \
  };                                                                                         \
  constexpr name##1 make_##name##1(T x) { return {x}; }                                      \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                              \
  constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                      \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_ON_CPU_VECTORS(signed char, char)
CUDA_ON_CPU_VECTORS(unsigned char, uchar)
CUDA_ON_CPU_VECTORS(short, short)
CUDA_ON_CPU_VECTORS(unsigned short, ushort)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(unsigned int, uint)
CUDA_ON_CPU_VECTORS(long, long)
CUDA_ON_CPU_VECTORS(unsigned long, ulong)
CUDA_ON_CPU_VECTORS(long long, longlong)
CUDA_ON_CPU_VECTORS(unsigned long long, ulonglong)
CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(double, double)
#undef CUDA_ON_CPU_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
