// Pyramid pooling on raw memory: what csrc/cpu/pyramid_pool.cpp calls in the kernels of the active instruction set.
#pragma once

#include <cstdint>

#include "../types.h"
#include "isa.h"

namespace pspnet_fast {

// The geometry of one call as plain pointers (from two pspnet_fast::Partition).
struct PoolShape {
  int64_t channels, height, width;
  int64_t levels, packed_bins;                                // packed_bins = Σk²
  const int64_t* bins;                                  // [levels]
  int64_t row_intervals, column_intervals;
  const int32_t *row_edge, *column_edge;                // [intervals + 1]
  const int32_t *row_first, *row_last;                  // [Σk]
  const int32_t *column_first, *column_last;            // [Σk]
};

// Sums are taken in `Acc`: double for f64, else float. Scratch is counted in those.
//
// NCHW: planes [begin, end) of B·C; scratch [pool_nchw_scratch] a thread.
// channels_last forward: bands first (b · row_intervals + r), then blocks of channels; `atoms` is
//   [B, row_intervals, column_intervals, C]. Backward: blocks first, which lay the bins' gradients out as `shares`
//   [B, packed_bins, C], then bands; scratch [column_intervals, C] a thread. With `add` the
//   gradient is added to what grad_x holds.
constexpr int64_t kChannelBlock = 64;

PSPNET_FAST_DECLARE_PER_ISA(int64_t pool_nchw_scratch(ElementType type, const PoolShape& shape))
PSPNET_FAST_DECLARE_PER_ISA(void pool_nchw_forward(
    ElementType type, const PoolShape& shape, const void* x, void* out, void* scratch, int64_t begin, int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void pool_nchw_backward(
    ElementType type, bool add, const PoolShape& shape, const void* grad, void* grad_x, void* scratch, int64_t begin,
    int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void pool_nhwc_atoms_forward(
    ElementType type, const PoolShape& shape, const void* x, void* atoms, int64_t begin, int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void pool_nhwc_bins_forward(
    ElementType type, const PoolShape& shape, const void* atoms, void* out, int64_t begin, int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void pool_nhwc_bins_backward(
    ElementType type, const PoolShape& shape, const void* grad, void* shares, int64_t begin, int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void pool_nhwc_atoms_backward(
    ElementType type, bool add, const PoolShape& shape, const void* shares, void* grad_x, void* scratch, int64_t begin,
    int64_t end))

}  // namespace pspnet_fast
