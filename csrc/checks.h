// Checks of the pyramid operators' arguments, for every device.
#pragma once

#include <ATen/ops/empty_strided.h>

#include <array>
#include <optional>
#include <vector>

#include "geometry.h"
#include "tensors.h"

namespace pspnet_fast {

// ---- Pooling --------------------------------------------------------------------------------------------------------

inline int64_t packed_bins(at::IntArrayRef bins) {
  TORCH_CHECK_VALUE(!bins.empty(), "bins must hold at least one positive integer, not []");
  int64_t packed = 0;
  for (int64_t k : bins) {
    TORCH_CHECK_VALUE(k >= 1, "bins must be positive integers such as [1, 2, 3, 6], not ", bins);
    packed += k * k;
  }
  return packed;
}

inline void check_map(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " must be [B, C, H, W], not of shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(2) >= 1 && x.size(3) >= 1, name, " has no pixels: its shape is ", x.sizes());
}

inline void check_packed(const at::Tensor& grad, at::IntArrayRef bins) {
  const int64_t packed = packed_bins(bins);
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && grad.size(2) == packed, "grad must be [B, C, ", packed, "] for bins ", bins, ", not ",
      grad.sizes());
}

// A gradient of x that more is added into, in place.
inline void check_accumulator(const at::Tensor& grad_x, const at::Tensor& grad, at::IntArrayRef bins) {
  check_map("grad_x", grad_x);
  check_packed(grad, bins);
  TORCH_CHECK_VALUE(
      grad.size(0) == grad_x.size(0) && grad.size(1) == grad_x.size(1), "grad must be [", grad_x.size(0), ", ",
      grad_x.size(1), ", Σk²] for grad_x of shape ", grad_x.sizes(), ", not ", grad.sizes());
  TORCH_CHECK_TYPE(
      grad.scalar_type() == grad_x.scalar_type(), "grad is ", grad.scalar_type(), " but grad_x ", grad_x.scalar_type(),
      "; convert one of them");
  TORCH_CHECK_VALUE(
      grad.device() == grad_x.device(), "grad is on ", grad.device(), " but grad_x on ", grad_x.device(), "; move one");
  TORCH_CHECK_VALUE(
      is_dense(grad_x), "grad_x must be dense in NCHW or channels_last memory to be added into, not of strides ", grad_x.strides(),
      " for shape ", grad_x.sizes(), "; pass grad_x.contiguous()");
}

inline at::Tensor empty_map(const at::Tensor& packed, int64_t height, int64_t width, bool channels_last) {
  return at::empty(
      {packed.size(0), packed.size(1), height, width},
      packed.options().memory_format(
          channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
}

// Packed levels [B, C, packed] for a map, channels beside each other in memory where the map has them so.
inline at::Tensor empty_levels(const at::Tensor& map, int64_t packed, bool channels_last) {
  const int64_t batch = map.size(0), channels = map.size(1);
  const std::array<int64_t, 3> strides = {
      channels * packed, channels_last ? 1 : packed, channels_last ? channels : 1};
  return at::empty_strided({batch, channels, packed}, strides, map.options().memory_format(std::nullopt));
}

// ---- Concatenation --------------------------------------------------------------------------------------------------

inline void check_packed_levels(const at::Tensor& x, const at::Tensor& levels, int64_t packed) {
  TORCH_CHECK_VALUE(
      levels.dim() == 3 && levels.size(0) == x.size(0) && levels.size(2) == packed, "levels must be [", x.size(0),
      ", channels, ", packed, "] for x of batch ", x.size(0), " and levels of as many bins, not ", levels.sizes());
}

inline void check_concat(const at::Tensor& x, const at::Tensor& levels, at::IntArrayRef bins) {
  check_map("x", x);
  check_packed_levels(x, levels, packed_bins(bins));
  TORCH_CHECK_TYPE(
      levels.scalar_type() == x.scalar_type(), "levels is ", levels.scalar_type(), " but x ", x.scalar_type(),
      "; convert one of them");
  TORCH_CHECK_VALUE(
      levels.device() == x.device(), "levels is on ", levels.device(), " but x on ", x.device(), "; move one of them");
}

// Returns the channels of one level.
inline int64_t check_concat_grad(const at::Tensor& grad, int64_t channels, at::IntArrayRef bins) {
  check_map("grad", grad);
  packed_bins(bins);
  const auto count = static_cast<int64_t>(bins.size());
  const int64_t of_levels = grad.size(1) - channels;
  TORCH_CHECK_VALUE(
      channels >= 0 && of_levels >= 0 && of_levels % count == 0, "grad has ", grad.size(1), " channels, which are not ",
      channels, " of x and as many again for each of ", count, " levels; channels must be x.size(1)");
  return of_levels / count;
}

// ---- Convolution ----------------------------------------------------------------------------------------------------

// h and w of square levels, level after level.
inline std::vector<int64_t> square_sizes(at::IntArrayRef bins) {
  std::vector<int64_t> sizes;
  for (const int64_t k : bins) sizes.insert(sizes.end(), 2, k);
  return sizes;
}

inline int64_t packed_sizes(at::IntArrayRef sizes) {
  TORCH_CHECK_VALUE(
      !sizes.empty() && sizes.size() % 2 == 0, "sizes must be h and w of each level, such as [1, 1, 2, 3], not ", sizes);
  int64_t packed = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    TORCH_CHECK_VALUE(sizes[i] >= 1 && sizes[i + 1] >= 1, "sizes must be positive integers, not ", sizes);
    packed += sizes[i] * sizes[i + 1];
  }
  return packed;
}

struct ConvOptions {
  at::IntArrayRef sizes;  // h and w of a level, level after level
  bool align_corners;
  int64_t first_x_channel, first_level_channel;  // in the weight's input channels
};

inline ConvOptions check_pyramid_conv(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, at::IntArrayRef sizes, bool align_corners,
    bool x_first) {
  check_map("x", x);
  check_packed_levels(x, levels, packed_sizes(sizes));
  const auto count = static_cast<int64_t>(sizes.size()) / 2;
  const int64_t channels = x.size(1) + count * levels.size(1);
  TORCH_CHECK_VALUE(
      weight.dim() == 4 && weight.size(1) == channels, "weight must be [O, ", channels, ", kh, kw], not ", weight.sizes());
  TORCH_CHECK_VALUE(
      weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, "weight must have odd kernel sides, so that padding keeps the ",
      "size, not ", weight.sizes());
  TORCH_CHECK_TYPE(
      levels.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type(), "x, levels and weight must be ",
      "of one dtype, not ", x.scalar_type(), ", ", levels.scalar_type(), " and ", weight.scalar_type());
  return {sizes, align_corners, x_first ? 0 : count * levels.size(1), x_first ? x.size(1) : 0};
}

// ---- Sums of upsampled maps -----------------------------------------------------------------------------------------

inline void check_upsample_add(
    const at::Tensor& levels, const std::optional<at::Tensor>& base, int64_t height, int64_t width,
    at::IntArrayRef sizes) {
  const int64_t packed = packed_sizes(sizes);
  TORCH_CHECK_VALUE(
      levels.dim() == 3 && levels.size(2) == packed, "levels must be [B, C, ", packed, "], not ", levels.sizes());
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  if (!base) return;
  const std::array<int64_t, 4> expected = {levels.size(0), levels.size(1), height, width};
  TORCH_CHECK_VALUE(
      base->sizes() == at::IntArrayRef(expected), "base must be ", at::IntArrayRef(expected), ", not ", base->sizes());
  TORCH_CHECK_TYPE(
      base->scalar_type() == levels.scalar_type(), "base is ", base->scalar_type(), " but levels ",
      levels.scalar_type(), "; convert one of them");
}

}  // namespace pspnet_fast
