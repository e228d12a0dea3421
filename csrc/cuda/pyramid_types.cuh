// What the kernels of the pyramid's levels and convolution share.
#pragma once

#include "elements.cuh"
#include "pyramid_norm.h"

namespace pspnet_fast::cuda {

// N neighbours in shared memory, 16 bytes at a time.
template <int N, typename Real>
__device__ __forceinline__ void read_shared(Real (&to)[N], const Real* from) {
  constexpr int kVec = 16 / sizeof(Real);
  static_assert(N % kVec == 0);
#pragma unroll
  for (int i = 0; i < N; i += kVec) {
    const auto part = *reinterpret_cast<const Pack<Real, kVec>*>(from + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) to[i + j] = part.v[j];
  }
}

// relu(gamma · (x - mean) / sqrt(var + eps) + beta) for one channel.
template <typename Real>
struct ChannelNorm {
  Real mean, factor, beta;

  __device__ __forceinline__ Real operator()(Real x) const {
    const Real y = (x - mean) * factor + beta;
    return y < Real(0) ? Real(0) : y;  // NaN stays NaN
  }
};

template <typename T>
__device__ __forceinline__ ChannelNorm<Acc<T>> channel_norm(const Norm& norm, int64_t channel) {
  using Real = Acc<T>;
  const auto at = [&](const void* values) {
    return norm.wide ? static_cast<const Real*>(values)[channel]
                     : static_cast<Real>(static_cast<const T*>(values)[channel]);
  };
  const Real factor = at(norm.gamma) / sqrt(at(norm.var) + static_cast<Real>(norm.eps));
  return {at(norm.mean), factor, at(norm.beta)};
}

}  // namespace pspnet_fast::cuda
