// The part of a convolution over a pyramid that PyTorch's own operators take: the convolution over x.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <array>
#include <optional>
#include <tuple>

namespace pspnet_fast {

inline std::array<int64_t, 2> same_padding(const at::Tensor& weight) { return {weight.size(2) / 2, weight.size(3) / 2}; }

// x [B, C, H, W] by weight [O, C, kh, kw], in a layout of PyTorch's choice. PyTorch has no convolution of 0 channels: it
// gives as many to the result.
inline at::Tensor convolve_x(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  if (x.size(1) != 0) return at::convolution(x, weight, bias, {1, 1}, same_padding(weight), {1, 1}, false, {0, 0}, 1);
  at::Tensor y = at::zeros({x.size(0), weight.size(0), x.size(2), x.size(3)}, x.options());
  return bias ? y.add_(bias->view({1, -1, 1, 1})) : y;
}

// The gradients by x and weight that are wanted.
inline std::tuple<at::Tensor, at::Tensor> convolve_x_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, bool want_x, bool want_weight) {
  if (x.size(1) == 0) return {at::zeros_like(x), at::zeros_like(weight)};
  const auto [grad_x, grad_weight, grad_bias] = at::convolution_backward(
      grad, x, weight, at::OptionalIntArrayRef(), {1, 1}, same_padding(weight), {1, 1}, false, {0, 0}, 1,
      {want_x, want_weight, false});
  return {grad_x, grad_weight};
}

}  // namespace pspnet_fast
