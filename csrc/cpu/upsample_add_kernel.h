// Sums of upsampled maps on raw memory: what csrc/cpu/upsample_add.cpp calls in the kernels of the active instruction
// set. Everything is summed in `Acc`: double for f64, else float.
//
// A *line* is a row of pixels: of one channel in NCHW, of all channels in channels_last.
#pragma once

#include <cstdint>

#include "../types.h"
#include "isa.h"

namespace pspnet_fast {

// What every position of an axis is interpolated from, as in bilinear_taps.
struct UpsampleAxis {
  const int32_t *first, *second;
  const double *first_weight, *second_weight;
};

struct UpsampleLevel {
  int64_t height, width;
  int64_t first_bin;           // in the packed levels
  int64_t first_row;           // Σ height of the levels before
  UpsampleAxis rows, columns;  // of the map
  // [height] of a row of bins: the first row of the map that reads it, and one past the last.
  const int32_t *first_reader, *last;
};

struct UpsampleShape {
  int64_t planes, unit;  // batch · channels and 1 in NCHW, batch and channels in channels_last
  int64_t height, width;
  int64_t levels, packed_bins, rows;  // Σ height · width, Σ height
  const UpsampleLevel* level;

  int64_t line() const { return width * unit; }
};

// Rows of the map that a forward task takes, and numbers of scratch for a thread.
PSPNET_FAST_DECLARE_PER_ISA(int64_t upsample_add_rows(const UpsampleShape& shape))
PSPNET_FAST_DECLARE_PER_ISA(int64_t upsample_add_scratch(const UpsampleShape& shape))

// Tasks [begin, end) are runs of rows of each plane. `levels` is [planes, packed_bins, unit], `base` (or null) and `y`
// are [planes, height, line].
PSPNET_FAST_DECLARE_PER_ISA(void upsample_add(
    ElementType type, const UpsampleShape& shape, const void* levels, const void* base, void* y, void* scratch,
    int64_t begin, int64_t end))
// Tasks [begin, end) are rows of bins of each plane, level after level.
PSPNET_FAST_DECLARE_PER_ISA(void upsample_add_backward(
    ElementType type, const UpsampleShape& shape, const void* grad, void* grad_levels, void* scratch, int64_t begin,
    int64_t end))

}  // namespace pspnet_fast
