// What __half and __nv_bfloat16 share: arithmetic in float32, rounded to the format after each operation. float32 has
// more than twice the digits of either plus two, so sums, products and quotients are rounded as if only once.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "math.h"
#include "vector_types.h"

namespace cuda_on_cpu {

// A format gives `static uint16_t round(double)` and `static float widen(uint16_t)`.
template <typename Format>
struct SmallFloat {
  uint16_t bits;

  SmallFloat() = default;
  template <typename T>
    requires std::is_arithmetic_v<T>
  SmallFloat(T value) : bits(Format::round(static_cast<double>(value))) {}
  operator float() const { return Format::widen(bits); }
};

template <typename T>
concept small_float = requires(T x) { []<typename F>(SmallFloat<F>) {}(x); };

template <small_float T>
struct alignas(4) Pair {
  T x, y;
};

#define CUDA_ON_CPU_OPERATOR(op)                                            \
  template <typename F>                                                     \
  SmallFloat<F> operator op(SmallFloat<F> a, SmallFloat<F> b) {             \
    return float(a) op float(b);                                            \
  }                                                                         \
  template <typename F>                                                     \
  SmallFloat<F>& operator op##=(SmallFloat<F>& a, SmallFloat<F> b) {        \
    return a = a op b;                                                      \
  }
#define CUDA_ON_CPU_COMPARISON(op)                                          \
  template <typename F>                                                     \
  bool operator op(SmallFloat<F> a, SmallFloat<F> b) {                      \
    return float(a) op float(b);                                            \
  }
CUDA_ON_CPU_OPERATOR(+)
CUDA_ON_CPU_OPERATOR(-)
CUDA_ON_CPU_OPERATOR(*)
CUDA_ON_CPU_OPERATOR(/)
CUDA_ON_CPU_COMPARISON(==)
CUDA_ON_CPU_COMPARISON(!=)
CUDA_ON_CPU_COMPARISON(<)
CUDA_ON_CPU_COMPARISON(<=)
CUDA_ON_CPU_COMPARISON(>)
CUDA_ON_CPU_COMPARISON(>=)
#undef CUDA_ON_CPU_OPERATOR
#undef CUDA_ON_CPU_COMPARISON

template <typename F>
SmallFloat<F> operator-(SmallFloat<F> a) {
  a.bits ^= 0x8000;
  return a;
}

}  // namespace cuda_on_cpu

template <cuda_on_cpu::small_float T>
T __hadd(T a, T b) { return a + b; }
template <cuda_on_cpu::small_float T>
T __hsub(T a, T b) { return a - b; }
template <cuda_on_cpu::small_float T>
T __hmul(T a, T b) { return a * b; }
template <cuda_on_cpu::small_float T>
T __hdiv(T a, T b) { return a / b; }
template <cuda_on_cpu::small_float T>
T __hfma(T a, T b, T c) { return fma(double{float(a)}, double{float(b)}, double{float(c)}); }
template <cuda_on_cpu::small_float T>
T __hneg(T a) { return -a; }
template <cuda_on_cpu::small_float T>
T __hmin(T a, T b) { return fminf(a, b); }
template <cuda_on_cpu::small_float T>
T __hmax(T a, T b) { return fmaxf(a, b); }
template <cuda_on_cpu::small_float T>
bool __hgt(T a, T b) { return a > b; }
template <cuda_on_cpu::small_float T>
bool __hlt(T a, T b) { return a < b; }
template <cuda_on_cpu::small_float T>
bool __hisnan(T a) { return std::isnan(float(a)); }

template <cuda_on_cpu::small_float T>
cuda_on_cpu::Pair<T> __hadd2(cuda_on_cpu::Pair<T> a, cuda_on_cpu::Pair<T> b) { return {a.x + b.x, a.y + b.y}; }
template <cuda_on_cpu::small_float T>
cuda_on_cpu::Pair<T> __hmul2(cuda_on_cpu::Pair<T> a, cuda_on_cpu::Pair<T> b) { return {a.x * b.x, a.y * b.y}; }
template <cuda_on_cpu::small_float T>
cuda_on_cpu::Pair<T> __hfma2(cuda_on_cpu::Pair<T> a, cuda_on_cpu::Pair<T> b, cuda_on_cpu::Pair<T> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <cuda_on_cpu::small_float T>
T __low2half(cuda_on_cpu::Pair<T> a) { return a.x; }
template <cuda_on_cpu::small_float T>
T __high2half(cuda_on_cpu::Pair<T> a) { return a.y; }
template <cuda_on_cpu::small_float T>
float __low2float(cuda_on_cpu::Pair<T> a) { return a.x; }
template <cuda_on_cpu::small_float T>
float __high2float(cuda_on_cpu::Pair<T> a) { return a.y; }
