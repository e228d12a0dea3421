// Checks of a convolution over a pyramid that every device shares.
#pragma once

#include <ATen/core/Tensor.h>

#include "pool_checks.h"

namespace pspnet_fast {

struct ConvOptions {
  at::IntArrayRef bins;
  bool align_corners;
  int64_t first_x_channel, first_level_channel;  // in the weight's input channels
};

inline ConvOptions check_pyramid_conv(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, at::IntArrayRef bins, bool align_corners,
    bool x_first) {
  check_map("x", x);
  const int64_t cells = packed_cells(bins), count = static_cast<int64_t>(bins.size());
  TORCH_CHECK_VALUE(
      levels.dim() == 3 && levels.size(0) == x.size(0) && levels.size(2) == cells, "levels must be [", x.size(0),
      ", channels, ", cells, "] for bins ", bins, ", not ", levels.sizes());
  const int64_t channels = x.size(1) + count * levels.size(1);
  TORCH_CHECK_VALUE(
      weight.dim() == 4 && weight.size(1) == channels, "weight must be [O, ", channels, ", kh, kw], not ", weight.sizes());
  TORCH_CHECK_VALUE(
      weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, "weight must have odd kernel sides, so that padding keeps the ",
      "size, not ", weight.sizes());
  TORCH_CHECK_TYPE(
      levels.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type(), "x, levels and weight must be ",
      "of one dtype, not ", x.scalar_type(), ", ", levels.scalar_type(), " and ", weight.scalar_type());
  return {bins, align_corners, x_first ? 0 : count * levels.size(1), x_first ? x.size(1) : 0};
}

inline bool is_dense(const at::Tensor& x) {
  return x.is_contiguous() || x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

inline at::Tensor dense(const at::Tensor& x) { return is_dense(x) ? x : x.contiguous(); }

}  // namespace pspnet_fast
