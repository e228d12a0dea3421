// The convolution over a pyramid, and its concatenated map, on CPU tensors. The convolution over x is oneDNN's; the
// rest is done by the kernels of pyramid_conv_*_kernel.cpp, with geometry and tasks from pyramid_conv_map.h.
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

// ---- Convolution ---------------------------------------------------------------------------------------------------

// Calls body(first, count) for output channels whose Q together stays in a processor's caches, and in little memory.
template <typename Body>
void for_outputs(ConvGeometry& geometry, const at::Tensor& map, Body body) {
  constexpr int64_t kBytes = int64_t{16} << 20;
  const ConvProblem& p = geometry.problem;
  const int64_t bytes = p.batch * p.positions * (p.type == ElementType::f64 ? 8 : 4);
  const int64_t unit = p.channels_last ? p.panel : kConvOuts;
  const int64_t most = std::max(kBytes / bytes / unit, int64_t{1}) * unit;
  for (int64_t first = 0; first < map.size(1); first += most) {
    const int64_t count = std::min(most, map.size(1) - first);
    geometry.take_outputs(first, count);
    body(first, count);
  }
}

int64_t channel_tasks(const ConvProblem& p) { return ceil_div(p.out_channels, kConvOuts); }

// The convolution over x, densely, and what becomes of it and the levels' terms.
at::Tensor convolve(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const ConvOptions& options, ConvWrite write, const void* factor = nullptr, const void* summand = nullptr) {
  const at::Tensor y = dense(convolve_x(x, weight.narrow(1, options.first_x_channel, x.size(1)), bias));
  if (y.numel() == 0) return y;
  const at::Tensor dense_weight = dense(weight);
  ConvGeometry geometry(y, levels, dense_weight, options);
  ConvProblem& p = geometry.problem;
  const at::Tensor pooled = geometry.pack_bins(levels);
  p.pooled = pooled.const_data_ptr();
  p.write = write, p.factor = factor, p.summand = summand;
  for_outputs(geometry, y, [&](int64_t first, int64_t count) {
    const at::Tensor q = geometry.empty_q(p.channels_last);
    p.weight = dense_weight.narrow(0, first, count).const_data_ptr(), p.result = q.mutable_data_ptr();
    geometry.run(PSPNET_FAST_PER_ISA(conv_q), channel_tasks(p) * conv_runs(p), conv_product_scratch(p));
    q_to_map(geometry, q, y.narrow(1, first, count));
  });
  return y;
}

at::Tensor pyramid_conv_cpu(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef sizes, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
  return convolve(x, levels, weight, bias, options, ConvWrite::add);
}

at::Tensor pyramid_conv_norm_relu_cpu(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& mean, const at::Tensor& var, const at::Tensor& gamma, const at::Tensor& beta, double eps,
    at::IntArrayRef sizes, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const ConvOptions options = check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
  const at::ScalarType acc = accumulator_type(x);
  const at::Tensor factor = (gamma.to(acc) / (var.to(acc) + eps).sqrt()).contiguous();
  const at::Tensor summand = (beta.to(acc) - mean.to(acc) * factor).contiguous();
  return convolve(
      x, levels, weight, bias, options, ConvWrite::norm_relu, factor.const_data_ptr(), summand.const_data_ptr());
}

// The gradients of the levels, and of the levels' part of the weight into grad_weight, where they are defined.
void levels_backward(
    const at::Tensor& grad, const at::Tensor& levels, const at::Tensor& dense_weight, const ConvOptions& options,
    const at::Tensor& grad_levels, const at::Tensor& grad_weight) {
  ConvGeometry geometry(grad, levels, dense_weight, options);
  ConvProblem& p = geometry.problem;
  at::Tensor pooled, grad_pooled;
  if (grad_weight.defined()) pooled = geometry.pack_bins_transposed(levels);
  if (grad_levels.defined()) grad_pooled = geometry.empty_bins();
  for_outputs(geometry, grad, [&](int64_t first, int64_t count) {
    const at::Tensor q = map_to_q(geometry, grad.narrow(1, first, count));
    p.q = q.const_data_ptr();
    if (grad_weight.defined()) {
      p.pooled = pooled.const_data_ptr(), p.result = grad_weight.narrow(0, first, count).mutable_data_ptr();
      geometry.run(PSPNET_FAST_PER_ISA(conv_weight_gradient), channel_tasks(p) * p.levels, conv_product_scratch(p));
    }
    if (grad_levels.defined()) {
      p.weight = dense_weight.narrow(0, first, count).const_data_ptr(), p.result = grad_pooled.mutable_data_ptr();
      const int64_t tasks = ceil_div(p.level_channels, kConvChannels) * conv_runs(p);
      geometry.run(PSPNET_FAST_PER_ISA(conv_level_gradient), tasks, conv_product_scratch(p));
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

// ---- Concatenation -------------------------------------------------------------------------------------------------
//
// Upsampling is the case of a 1x1 kernel without a product: a level is interpolated straight into its channels of the
// result, and backward its gradient straight from its channels of the map's.

// Calls body(level's channels of the map, its first packed bin, its geometry) for each level.
template <typename Body>
void for_each_level(
    const at::Tensor& map, bool channels_last, int64_t first_channel, int64_t width, at::IntArrayRef bins,
    bool align_corners, Body body) {
  int64_t first_bin = 0;
  for (size_t l = 0; l < bins.size(); ++l) {
    const at::Tensor part = map.narrow(1, first_channel + static_cast<int64_t>(l) * width, width);
    ConvGeometry geometry(part, channels_last, width, {1, 1}, {bins[l], bins[l]}, align_corners);
    body(part, first_bin, geometry);
    first_bin += bins[l] * bins[l];
  }
}

at::Tensor pyramid_concat_cpu(
    const at::Tensor& x, const at::Tensor& levels, at::IntArrayRef bins, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  check_concat(x, levels, bins);
  const bool channels_last = is_channels_last(x);
  const int64_t width = levels.size(1), of_levels = width * static_cast<int64_t>(bins.size());
  const at::Tensor y = at::empty(
      {x.size(0), x.size(1) + of_levels, x.size(2), x.size(3)}, x.options().memory_format(format_of(x)));
  y.narrow(1, x_first ? 0 : of_levels, x.size(1)).copy_(x);
  if (x.size(0) == 0 || width == 0) return y;
  for_each_level(
      y, channels_last, x_first ? x.size(1) : 0, width, bins, align_corners,
      [&](const at::Tensor& part, int64_t first_bin, ConvGeometry& geometry) {
        const at::Tensor level = levels.narrow(2, first_bin, geometry.problem.packed_bins);
        const at::Tensor q = channels_last ? geometry.pack_bins_transposed(level) : geometry.pack_bins(level);
        geometry.problem.write = ConvWrite::store;
        q_to_map(geometry, q, part);
      });
  return y;
}

at::Tensor pyramid_concat_backward_cpu(
    const at::Tensor& upstream, int64_t channels, at::IntArrayRef bins, bool align_corners, bool x_first) {
  const at::AutoDispatchBelowAutograd below;
  const int64_t width = check_concat_grad(upstream, channels, bins);
  const bool channels_last = is_channels_last(upstream);
  const at::Tensor grad = channels_last ? upstream : upstream.contiguous();
  const at::Tensor grad_levels = at::empty({grad.size(0), width, packed_bins(bins)}, grad.options());
  if (grad_levels.numel() == 0) return grad_levels;
  for_each_level(
      grad, channels_last, x_first ? channels : 0, width, bins, align_corners,
      [&](const at::Tensor& part, int64_t first_bin, ConvGeometry& geometry) {
        const at::Tensor q = map_to_q(geometry, part);
        geometry.unpack_bins(q, grad_levels.narrow(2, first_bin, geometry.problem.packed_bins));
      });
  return grad_levels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("pyramid_concat", pyramid_concat_cpu);
  m.impl("pyramid_concat_backward", pyramid_concat_backward_cpu);
  m.impl("pyramid_conv", pyramid_conv_cpu);
  m.impl("pyramid_conv_backward", pyramid_conv_backward_cpu);
  m.impl("pyramid_conv_norm_relu", pyramid_conv_norm_relu_cpu);
}

}  // namespace pspnet_fast
