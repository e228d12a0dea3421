// The convolution over a pyramid by PyTorch's own operators: over x for every call, and over the concatenation where a
// pyramid, kernel or map is too large for the kernels' tables.
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

#include "../pyramid_conv_checks.h"
#include "../pyramid_conv_x.h"
#include "pyramid_tensors.h"

namespace pspnet_fast::cuda {

inline at::Tensor concatenate(
    const at::Tensor& x, const at::Tensor& levels, at::IntArrayRef bins, bool align_corners, bool x_first) {
  std::vector<at::Tensor> parts;
  if (x_first) parts.push_back(x);
  int64_t first = 0;
  for (int64_t k : bins) {
    const at::Tensor level = levels.narrow(2, first, k * k).unflatten(2, {k, k});
    parts.push_back(at::upsample_bilinear2d(level, x.sizes().slice(2), align_corners));
    first += k * k;
  }
  if (!x_first) parts.push_back(x);
  return at::cat(parts, 1);
}

inline at::Tensor stock_forward(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef bins, bool align_corners, bool x_first, const NormTensors& norm) {
  const at::Tensor y = convolve_x(concatenate(x, levels, bins, align_corners, x_first), weight, bias);
  if (norm.norm.mean == nullptr) return y;
  const auto& [mean, var, gamma, beta] = norm.tensors;
  return at::relu(at::batch_norm(y, gamma, beta, mean, var, false, 0.0, norm.norm.eps, false));
}

inline at::Tensor nothing(const at::Tensor& like) { return at::empty({0}, like.options().memory_format(std::nullopt)); }

inline at::Tensor in_layout_of(const at::Tensor& grad, const at::Tensor& x) {
  return grad.contiguous(reads_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> stock_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight,
    at::IntArrayRef bins, bool align_corners, bool x_first, std::array<bool, 3> mask) {
  const at::Tensor map = concatenate(x, levels, bins, align_corners, x_first);
  const auto [grad_map, grad_weight] = convolve_x_backward(grad, map, weight, mask[0] || mask[1], mask[2]);
  const int64_t channels = x.size(1), width = levels.size(1);
  const auto count = static_cast<int64_t>(bins.size());
  std::vector<at::Tensor> grads;
  int64_t first_channel = x_first ? channels : 0;
  for (int64_t k : mask[1] ? bins : at::IntArrayRef{}) {
    const at::Tensor of_level = grad_map.narrow(1, first_channel, width).contiguous();
    const at::IntArrayRef size = x.sizes().slice(2);
    grads.push_back(at::upsample_bilinear2d_backward(of_level, size, {x.size(0), width, k, k}, align_corners).flatten(2));
    first_channel += width;
  }
  return {
      mask[0] ? in_layout_of(grad_map.narrow(1, x_first ? 0 : count * width, channels), x) : nothing(x),
      mask[1] ? at::cat(grads, 2) : nothing(levels),
      mask[2] ? at::empty_like(weight).copy_(grad_weight) : nothing(weight),
  };
}

}  // namespace pspnet_fast::cuda
