// Launchers of the kernels that sum upsampled maps. Free of torch; they enqueue on `stream` and never synchronise.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../geometry.h"
#include "../types.h"

namespace pspnet_fast::cuda {

constexpr int kMostUpsampleLevels = 32;

struct UpsampleLevel {
  BilinearAxis rows, columns;
  int32_t first_bin;  // in the packed levels
};

// The geometry of one call, passed to the kernels by value. A *line* is a row of pixels: of one channel in NCHW, of all
// channels in channels_last.
struct UpsampleShape {
  int64_t planes;  // batch · channels in NCHW, batch in channels_last
  int32_t unit;    // 1 in NCHW, channels in channels_last
  int32_t height, width;
  int32_t packed_bins, count;  // Σ h · w, levels
  UpsampleLevel level[kMostUpsampleLevels];

  PSPNET_FAST_HD int64_t line() const { return int64_t{width} * unit; }
};

void launch_upsample_add_fwd(
    ElementType type,
    bool channels_last,
    const UpsampleShape& shape,
    const void* levels,  // [planes, packed_bins, unit]
    const void* base,    // [planes, height, line], or null
    void* y,             // [planes, height, line]
    cudaStream_t stream);

void launch_upsample_add_bwd(
    ElementType type,
    bool channels_last,
    const UpsampleShape& shape,
    const void* grad,   // [planes, height, line]
    void* grad_levels,  // [planes, packed_bins, unit]
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
