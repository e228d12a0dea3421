// Launchers of the kernels that upsample and concatenate a pyramid. Free of torch; they enqueue on `stream` and never
// synchronise.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../geometry.h"
#include "../types.h"

namespace pspnet_fast::cuda {

constexpr int kMaxConcatLevels = 32;
constexpr int kMaxConcatBins = 1024;  // k

struct ConcatLevel {
  BilinearAxis rows, columns;
  int32_t first_bin;  // in the packed levels

  PSPNET_FAST_HD int32_t bins() const { return rows.nodes; }
};

// The geometry of one call, passed to the kernels by value.
struct ConcatShape {
  int64_t batch, channels, level_channels;  // of x, of each level
  int32_t height, width;
  int32_t packed_bins, count;  // Σk², levels
  bool x_first;
  ConcatLevel level[kMaxConcatLevels];

  PSPNET_FAST_HD int64_t pixels() const { return int64_t{height} * width; }
  PSPNET_FAST_HD int64_t all_level_channels() const { return count * level_channels; }
  PSPNET_FAST_HD int64_t all_channels() const { return channels + all_level_channels(); }
  PSPNET_FAST_HD int64_t first_of_x() const { return x_first ? 0 : all_level_channels(); }
  PSPNET_FAST_HD int64_t first_of_levels() const { return x_first ? channels : 0; }
};

// The gradient of the levels' channels, wherever they lie in that of the concatenation.
struct ConcatGrad {
  const void* data;        // of the first level's first channel
  int64_t image_stride;
  int64_t pixel_stride;    // channels_last only
};

// ---- NCHW: pyramid_concat_nchw.cu, pyramid_concat_nchw_bwd.cu ---------------------------------------------------

void launch_pyramid_concat_nchw_fwd(
    ElementType type,
    const ConcatShape& shape,
    const void* x,       // [B, C, H, W]
    const void* levels,  // [B, Ck, Σk²]
    void* out,           // [B, C + L·Ck, H, W]
    cudaStream_t stream);

void launch_pyramid_concat_nchw_bwd(
    ElementType type,
    const ConcatShape& shape,
    const ConcatGrad& grad,  // [B, L·Ck, H, W]
    void* grad_levels,       // [B, Ck, Σk²]
    cudaStream_t stream);

// ---- channels_last: pyramid_concat_nhwc.cu, pyramid_concat_nhwc_bwd.cu ------------------------------------------

void launch_pyramid_concat_nhwc_fwd(
    ElementType type,
    const ConcatShape& shape,
    const void* x,       // [B, H, W, C]
    const void* levels,  // [B, Σk², Ck]
    void* out,           // [B, H, W, C + L·Ck]
    cudaStream_t stream);

// How the cells between nodes are cut into the pieces of pyramid_concat_nhwc_bwd.cu.
struct ConcatPieces {
  int32_t total;  // of an image
  int32_t first[kMaxConcatLevels], row_parts[kMaxConcatLevels], column_parts[kMaxConcatLevels];
};
ConcatPieces cut_pieces(const ConcatShape& shape);

void launch_pyramid_concat_nhwc_bwd(
    ElementType type,
    const ConcatShape& shape,
    const ConcatPieces& pieces,
    const ConcatGrad& grad,  // [B, H, W, L·Ck]
    void* sums,              // [B, pieces.total, 4, Ck] float (double for f64)
    void* grad_levels,       // [B, Ck, Σk²]
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
