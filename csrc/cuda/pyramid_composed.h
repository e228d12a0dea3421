// The pyramid's operators composed of PyTorch's own, for a pyramid, kernel or map that is too large for the kernels' tables.
#pragma once

#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_bilinear2d_backward.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../pyramid_conv_x.h"
#include "pyramid_tensors.h"

namespace pspnet_fast::cuda {

// x and its upsampled levels, in the layout of x. `sizes` are h and w of each level, as in check_pyramid_conv.
inline at::Tensor composed_concat(
    const at::Tensor& x, const at::Tensor& levels, at::IntArrayRef sizes, bool align_corners, bool x_first) {
  std::vector<at::Tensor> parts;
  if (x_first) parts.push_back(x);
  int64_t first = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const int64_t bins = sizes[i] * sizes[i + 1];
    const at::Tensor level = levels.narrow(2, first, bins).unflatten(2, sizes.slice(i, 2));
    parts.push_back(at::upsample_bilinear2d(level, x.sizes().slice(2), align_corners));
    first += bins;
  }
  if (!x_first) parts.push_back(x);
  return at::cat(parts, 1).contiguous(format_of(x));
}

// The gradient of the levels [B, Ck, Σhw] from that of the concatenation with x of `channels` channels.
inline at::Tensor composed_concat_backward(
    const at::Tensor& grad, int64_t channels, at::IntArrayRef sizes, bool align_corners, bool x_first) {
  const auto count = static_cast<int64_t>(sizes.size()) / 2;
  const int64_t width = (grad.size(1) - channels) / count;
  std::vector<at::Tensor> grads;
  int64_t first = x_first ? channels : 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const at::Tensor of_level = grad.narrow(1, first, width).contiguous();
    const std::array<int64_t, 4> size = {grad.size(0), width, sizes[i], sizes[i + 1]};
    grads.push_back(
        at::upsample_bilinear2d_backward(of_level, grad.sizes().slice(2), size, align_corners).flatten(2));
    first += width;
  }
  return at::cat(grads, 2);
}

inline at::Tensor composed_conv(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef sizes, bool align_corners, bool x_first, const NormTensors& norm) {
  const at::Tensor y = convolve_x(composed_concat(x, levels, sizes, align_corners, x_first), weight, bias);
  if (norm.norm.mean == nullptr) return y;
  const auto& [mean, var, gamma, beta] = norm.tensors;
  return at::relu(at::batch_norm(y, gamma, beta, mean, var, false, 0.0, norm.norm.eps, false));
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> composed_conv_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight,
    at::IntArrayRef sizes, bool align_corners, bool x_first, std::array<bool, 3> mask) {
  const at::Tensor map = composed_concat(x, levels, sizes, align_corners, x_first);
  const auto [grad_map, grad_weight] = convolve_x_backward(grad, map, weight, mask[0] || mask[1], mask[2]);
  const int64_t channels = x.size(1), first_of_x = x_first ? 0 : map.size(1) - channels;
  return {
      mask[0] ? grad_map.narrow(1, first_of_x, channels).contiguous(format_of(x)) : absent(x),
      mask[1] ? composed_concat_backward(grad_map, channels, sizes, align_corners, x_first) : absent(levels),
      mask[2] ? at::empty_like(weight).copy_(grad_weight) : absent(weight),
  };
}

}  // namespace pspnet_fast::cuda
