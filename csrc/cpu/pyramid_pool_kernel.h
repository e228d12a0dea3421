// Pyramid pooling on raw memory: what csrc/cpu/pyramid_pool.cpp calls in the kernels of the active instruction set.
#pragma once

#include "../types.h"
#include "isa.h"

namespace pspnet_fast {

// An axis of the map and its pspnet_fast::Partition.
struct PoolAxis {
  int64_t size, intervals;
  const int32_t* edge;          // [intervals + 1]
  const int32_t *first, *last;  // [Σk]
};

// Sums are taken in `Acc`: double for f64, else float.
struct PoolProblem {
  ElementType type;
  int64_t batch, channels;
  PoolAxis rows, columns;
  int64_t levels, packed_bins;  // packed_bins = Σk²
  const int64_t* bins;          // [levels]

  const void* from;  // what a kernel reads
  void* to;          // and what it writes,
  bool add;          // or, if that is a gradient of x, adds to
};

// NCHW. Tasks are planes of B·C; scratch [pool_nchw_scratch].
PSPNET_FAST_DECLARE_PER_ISA(int64_t pool_nchw_scratch(const PoolProblem& problem))  // bytes
PSPNET_FAST_DECLARE_PER_ISA(Kernel<PoolProblem> pool_nchw_forward, pool_nchw_backward)

// channels_last. Forward bands of rows (b · row intervals + r) first, from x to atoms, Acc [B, row intervals, column
// intervals, C]; then blocks of channels, from atoms to bins. Backward blocks first, which lay the bins' gradients out
// as shares, Acc [B, packed_bins, C]; then bands, with scratch Acc [column intervals, C].
constexpr int64_t kChannelBlock = 64;
PSPNET_FAST_DECLARE_PER_ISA(Kernel<PoolProblem> pool_nhwc_atoms_forward, pool_nhwc_bins_forward)
PSPNET_FAST_DECLARE_PER_ISA(Kernel<PoolProblem> pool_nhwc_bins_backward, pool_nhwc_atoms_backward)

}  // namespace pspnet_fast
