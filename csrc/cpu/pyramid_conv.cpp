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

ConvGeometry geometry_of(
    const at::Tensor& map, const at::Tensor& levels, const at::Tensor& dense_weight, const ConvOptions& options) {
  ConvGeometry geometry(
      map, is_channels_last(map), levels.size(1), dense_weight.sizes().slice(2), options.sizes, options.align_corners);
  geometry.place_weight(dense_weight, options.first_level_channel);
  return geometry;
}

// Calls body(first, count) for output channels whose Q together stays in a processor's caches, and in little memory.
template <typename Body>
void for_outputs(ConvGeometry& geometry, const at::Tensor& map, bool channels_last, Body body) {
  constexpr int64_t kBytes = int64_t{16} << 20;
  const ConvShape& shape = geometry.shape;
  const int64_t bytes = shape.batch * shape.positions * (geometry.type == ElementType::f64 ? 8 : 4);
  const int64_t unit = channels_last ? shape.panel : kConvOuts;
  const int64_t most = std::max(kBytes / bytes / unit, int64_t{1}) * unit;
  for (int64_t first = 0; first < map.size(1); first += most) {
    const int64_t count = std::min(most, map.size(1) - first);
    geometry.take_outputs(count);
    body(first, count);
  }
}

int64_t channel_tasks(const ConvShape& shape) { return ceil_div(shape.out_channels, kConvOuts); }

// Adds the levels' terms to y, which is dense.
void add_levels(
    const at::Tensor& y, const at::Tensor& levels, const at::Tensor& dense_weight, const ConvOptions& options,
    const ConvEpilogue& epilogue) {
  const bool channels_last = is_channels_last(y);
  ConvGeometry geometry = geometry_of(y, levels, dense_weight, options);
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  const at::Tensor pooled = geometry.pack_bins(levels);
  const int64_t scratch = PSPNET_FAST_PER_ISA(conv_q_scratch, shape), runs = PSPNET_FAST_PER_ISA(conv_runs, shape);
  for_outputs(geometry, y, channels_last, [&](int64_t first, int64_t count) {
    const at::Tensor weight = dense_weight.narrow(0, first, count);
    const at::Tensor q = at::empty({geometry.q_size(channels_last)}, accumulator(y));
    for_tasks(channel_tasks(shape) * runs, scratch, y, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_q, type, channels_last, shape, weight.const_data_ptr(), pooled.const_data_ptr(), q.mutable_data_ptr(),
          own, begin, end);
    });
    q_to_map(geometry, channels_last, q, y.narrow(1, first, count), epilogue.from(first, type));
  });
}

// The convolution over x alone, in dense memory.
at::Tensor convolve_densely(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t first) {
  return dense(convolve_x(x, weight.narrow(1, first, x.size(1)), bias));
}

at::Tensor pyramid_conv_cpu(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef sizes, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
  const at::Tensor y = convolve_densely(x, weight, bias, options.first_x_channel);
  if (y.numel() != 0) add_levels(y, levels, dense(weight), options, {ConvWrite::add});
  return y;
}

at::Tensor pyramid_conv_norm_relu_cpu(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& mean, const at::Tensor& var, const at::Tensor& gamma, const at::Tensor& beta, double eps,
    at::IntArrayRef sizes, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
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
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  const bool channels_last = is_channels_last(grad);
  at::Tensor pooled, grad_pooled;
  if (grad_weight.defined()) pooled = geometry.pack_bins_transposed(levels);
  if (grad_levels.defined()) grad_pooled = geometry.empty_bins(levels);

  for_outputs(geometry, grad, channels_last, [&](int64_t first, int64_t count) {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_q_scratch, shape);
    const at::Tensor q = map_to_q(geometry, channels_last, grad.narrow(1, first, count));
    if (grad_weight.defined()) {
      const at::Tensor part = grad_weight.narrow(0, first, count);
      for_tasks(channel_tasks(shape) * shape.levels, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
        PSPNET_FAST_PER_ISA(
            conv_weight_gradient, type, shape, q.const_data_ptr(), pooled.const_data_ptr(), part.mutable_data_ptr(), own,
            begin, end);
      });
    }
    if (grad_levels.defined()) {
      const at::Tensor weight = dense_weight.narrow(0, first, count);
      const int64_t tasks = ceil_div(shape.level_channels, kConvChannels) * PSPNET_FAST_PER_ISA(conv_runs, shape);
      for_tasks(tasks, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
        PSPNET_FAST_PER_ISA(
            conv_level_gradient, type, shape, first > 0, weight.const_data_ptr(), q.const_data_ptr(),
            grad_pooled.mutable_data_ptr(), own, begin, end);
      });
    }
  });
  if (grad_levels.defined()) geometry.unpack_bins(grad_pooled, grad_levels);
}

at::Tensor or_absent(const at::Tensor& result, const at::Tensor& like) {
  return result.defined() ? result : absent(like);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pyramid_conv_backward_cpu(
    const at::Tensor& upstream, const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight,
    at::IntArrayRef sizes, bool align_corners, bool x_first, std::array<bool, 3> mask) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
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
    // The weight's values have no part in its own gradient: memory that is never read stands for them.
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
