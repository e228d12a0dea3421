// The convolution over a pyramid on CPU tensors: the convolution over x is oneDNN's; round the kernels of
// pyramid_conv_*_kernel.cpp, which do the rest, stand geometry, scratch and threads.
//
// Work is cut into tasks by shape alone, each done by one thread in one order: the result does not depend on the number
// of threads.
#include "../checks.h"
#include "../pyramid_conv_x.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "pyramid_conv_map.h"

namespace pspnet_fast {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t channel_tasks(const ConvShape& shape) { return ceil_div(shape.out_channels, kConvOuts) * shape.levels; }

ConvGeometry geometry_of(
    const at::Tensor& map, const at::Tensor& levels, const at::Tensor& dense_weight, const ConvOptions& options) {
  return {map, is_channels_last(map), levels.size(1), dense_weight.sizes().slice(2), options.bins, options.align_corners};
}

// Brings the levels' terms into y, which is dense.
void add_levels(
    const at::Tensor& y, const at::Tensor& levels, const at::Tensor& dense_weight, const ConvOptions& options,
    ConvEpilogue epilogue) {
  const bool channels_last = is_channels_last(y);
  ConvGeometry geometry = geometry_of(y, levels, dense_weight, options);
  geometry.place_weight(dense_weight, options.first_level_channel);
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  const at::Tensor pooled = geometry.pack_bins(levels);
  const at::Tensor q = at::empty({geometry.q_size(channels_last)}, accumulator(y));

  const int64_t scratch = PSPNET_FAST_PER_ISA(conv_q_scratch, shape);
  for_tasks(channel_tasks(shape), scratch, y, [&](void* own, int64_t begin, int64_t end) {
    PSPNET_FAST_PER_ISA(
        conv_q, type, channels_last, shape, dense_weight.const_data_ptr(), pooled.const_data_ptr(),
        q.mutable_data_ptr(), own, begin, end);
  });
  q_to_map(geometry, channels_last, q, y, epilogue);
}

// The convolution over x alone, in dense memory.
at::Tensor convolve_densely(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t first) {
  return dense(convolve_x(x, weight.narrow(1, first, x.size(1)), bias));
}

at::Tensor pyramid_conv_cpu(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef bins, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, bins, align_corners, x_first);
  const at::Tensor y = convolve_densely(x, weight, bias, options.first_x_channel);
  if (y.numel() != 0) add_levels(y, levels, dense(weight), options, {ConvWrite::add});
  return y;
}

at::Tensor pyramid_conv_norm_relu_cpu(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& mean, const at::Tensor& var, const at::Tensor& gamma, const at::Tensor& beta, double eps,
    at::IntArrayRef bins, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, bins, align_corners, x_first);
  const at::ScalarType acc = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor factor = (gamma.to(acc) / (var.to(acc) + eps).sqrt()).contiguous();
  const at::Tensor summand = (beta.to(acc) - mean.to(acc) * factor).contiguous();
  const at::Tensor y = convolve_densely(x, weight, bias, options.first_x_channel);
  if (y.numel() != 0) {
    add_levels(y, levels, dense(weight), options, {ConvWrite::norm_relu, factor.const_data_ptr(), summand.const_data_ptr()});
  }
  return y;
}

// The gradients of the levels, and of the levels' part of the weight into grad_weight, where they are defined.
void levels_backward(
    const at::Tensor& grad, const at::Tensor& levels, const at::Tensor& dense_weight, const ConvOptions& options,
    const at::Tensor& grad_levels, const at::Tensor& grad_weight) {
  ConvGeometry geometry = geometry_of(grad, levels, dense_weight, options);
  geometry.place_weight(dense_weight, options.first_level_channel);
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  const at::Tensor q = map_to_q(geometry, is_channels_last(grad), grad);

  const int64_t scratch = PSPNET_FAST_PER_ISA(conv_q_scratch, shape);
  if (grad_weight.defined()) {
    const at::Tensor pooled = geometry.pack_bins_transposed(levels);
    for_tasks(channel_tasks(shape), scratch, grad, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_weight_gradient, type, shape, q.const_data_ptr(), pooled.const_data_ptr(),
          grad_weight.mutable_data_ptr(), own, begin, end);
    });
  }
  if (grad_levels.defined()) {
    const int64_t tasks = ceil_div(shape.level_channels, kConvChannels) * shape.levels;
    for_tasks(tasks, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_level_gradient, type, shape, dense_weight.const_data_ptr(), q.const_data_ptr(),
          grad_levels.mutable_data_ptr(), own, begin, end);
    });
  }
}

at::Tensor or_absent(const at::Tensor& result, const at::Tensor& like) {
  return result.defined() ? result : absent(like);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pyramid_conv_backward_cpu(
    const at::Tensor& upstream, const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight,
    at::IntArrayRef bins, bool align_corners, bool x_first, std::array<bool, 3> mask) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, bins, align_corners, x_first);
  at::Tensor grad_x, grad_levels, grad_weight;
  if (upstream.numel() == 0) {
    if (mask[0]) grad_x = at::zeros_like(x);
    if (mask[1]) grad_levels = at::zeros_like(levels);
    if (mask[2]) grad_weight = at::zeros_like(weight);
    return {or_absent(grad_x, x), or_absent(grad_levels, levels), or_absent(grad_weight, weight)};
  }
  const at::Tensor grad = dense(upstream);
  const at::Tensor part = weight.narrow(1, options.first_x_channel, x.size(1));

  // One gradient after the other, so that the copies of maps and weight that oneDNN makes do not add up.
  if (mask[0]) {
    grad_x = std::get<0>(convolve_x_backward(grad, x, part, true, false)).contiguous(format_of(x));
  }
  if (mask[2]) {
    grad_weight = at::empty_like(dense(weight));
    // The weight's values have no part in its own gradient: memory that nobody touches stands for them.
    const at::Tensor of_that_shape =
        at::empty(part.sizes(), part.options().memory_format(grad_weight.suggest_memory_format()));
    grad_weight.narrow(1, options.first_x_channel, x.size(1))
        .copy_(std::get<1>(convolve_x_backward(grad, x, of_that_shape, false, true)));
  }
  if (mask[1]) grad_levels = at::empty(levels.sizes(), levels.options());
  if (mask[1] || mask[2]) levels_backward(grad, levels, dense(weight), options, grad_levels, grad_weight);
  // As empty_like has it, for a weight in yet other strides.
  if (mask[2] && !is_dense(weight)) grad_weight = at::empty_like(weight).copy_(grad_weight);
  return {or_absent(grad_x, x), or_absent(grad_levels, levels), or_absent(grad_weight, weight)};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("pyramid_conv", pyramid_conv_cpu);
  m.impl("pyramid_conv_backward", pyramid_conv_backward_cpu);
  m.impl("pyramid_conv_norm_relu", pyramid_conv_norm_relu_cpu);
}

}  // namespace pspnet_fast
