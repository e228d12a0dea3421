// Types of the pyramid's kernels: accumulators, and vectors of up to 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "pyramid_product.h"

namespace pspnet_fast::cuda {

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

// VEC neighbouring elements, moved as one access.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Vector {
  T v[VEC];
};

// N neighbours in shared memory, 16 bytes at a time.
template <int N, typename Acc>
__device__ __forceinline__ void read_shared(Acc (&to)[N], const Acc* from) {
  constexpr int kVec = 16 / sizeof(Acc);
  static_assert(N % kVec == 0);
#pragma unroll
  for (int i = 0; i < N; i += kVec) {
    const auto part = *reinterpret_cast<const Vector<Acc, kVec>*>(from + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) to[i + j] = part.v[j];
  }
}

// relu(gamma · (x - mean) / sqrt(var + eps) + beta) for one channel.
template <typename Acc>
struct ChannelNorm {
  Acc mean, factor, beta;

  __device__ __forceinline__ Acc operator()(Acc x) const {
    const Acc y = (x - mean) * factor + beta;
    return y < Acc(0) ? Acc(0) : y;  // NaN stays NaN
  }
};

template <typename T>
__device__ __forceinline__ ChannelNorm<Accumulator<T>> channel_norm(const Norm& norm, int64_t channel) {
  using Acc = Accumulator<T>;
  const auto at = [&](const void* values) {
    return norm.wide ? static_cast<const Acc*>(values)[channel]
                     : static_cast<Acc>(static_cast<const T*>(values)[channel]);
  };
  const Acc factor = at(norm.gamma) / sqrt(at(norm.var) + static_cast<Acc>(norm.eps));
  return {at(norm.mean), factor, at(norm.beta)};
}

// Calls visit(T{}) with the element type.
template <typename Visit>
void visit_type(PoolType type, Visit visit) {
  switch (type) {
    case PoolType::f32: return visit(float{});
    case PoolType::f64: return visit(double{});
    case PoolType::f16: return visit(__half{});
    case PoolType::bf16: return visit(__nv_bfloat16{});
  }
}

}  // namespace pspnet_fast::cuda
