// The convolution over a pyramid on CUDA tensors: the convolution over x by cuDNN, and every level's term by the kernels
// of pyramid_product.cu and pyramid_conv_*.cu. The maths is in pspnet_fast/ops/_pyramid_conv.py.
#include "pyramid_conv.h"

#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <array>

#include "pyramid_composed.h"
#include "pyramid_conv_call.h"

namespace pspnet_fast::cuda {
namespace {

int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

void finish(Product& p, const at::Tensor& a, const at::Tensor& b) {
  p.a.reading = reading_of(p.a, p.m, p.k, a.element_size());
  p.b.reading = reading_of(p.b, p.n, p.k, b.element_size());
}

// q[b, (bin, tap), o] = Σ_c weight[o, c, tap] · levels[b, c, bin]
at::Tensor make_q(const Call& c) {
  const at::Tensor weight = even_taps(c.weight);
  at::Tensor q = at::empty({c.t.batch, c.t.positions, c.t.out_channels}, accumulator(c.x));
  const FilterAxis f(c);
  Products products{c.t.levels, {}};
  for (int32_t l = 0; l < c.t.levels; ++l) {
    Product& p = products.of[l];
    p.m = f.axis(), p.n = bin_axis(c, l), p.k = channel_axis(c);
    p.a = weight_side(c, weight, f, l);
    p.b = {at_element(c.levels, c.t.first_bin[l]), bins_of_levels(c), {0, c.packed_bins()}, {}};
    p.c = const_cast<char*>(at_element(q, c.t.first_bin[l] * c.taps() * c.t.out_channels));
    p.c_row = filters_of_q(c, f), p.c_column = bins_of_q(c);
    p.c_along_rows = true;
    finish(p, weight, c.levels);
  }
  launch_products(c.type, Wide::result, products, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return q;
}

// grad_q[b, (bin, tap), o], in the accumulator's type: a sum over the whole map leaves float16's range before the
// gradients that are made of it do.
at::Tensor make_grad_q(const Call& c, const ConvGrid& grid, const at::Tensor& upstream) {
  const bool channels_last = is_channels_last(upstream);
  const at::Tensor grad = channels_last ? upstream : upstream.contiguous();
  at::Tensor parts = at::empty({grid.parts(), c.t.batch, c.t.positions, c.t.out_channels}, accumulator(c.x));
  at::Tensor grad_q = at::empty({c.t.batch, c.t.positions, c.t.out_channels}, accumulator(c.x));
  launch_pyramid_conv_gather(
      c.type, channels_last, c.t, grid, grad.const_data_ptr(), parts.mutable_data_ptr(), grad_q.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_q;
}

// grad_weight[o, c, tap] = Σ_{b, bin} grad_q[b, (bin, tap), o] · levels[b, c, bin], where the weight has it
void write_grad_weight(const Call& c, const at::Tensor& grad_q, const at::Tensor& into) {
  const at::Tensor grad_weight = even_taps(into);
  const FilterAxis f(c);
  Products products{c.t.levels, {}};
  for (int32_t l = 0; l < c.t.levels; ++l) {
    Product& p = products.of[l];
    p.m = f.axis(), p.n = channel_axis(c), p.k = bin_axis(c, l);
    p.a = {at_element(grad_q, c.t.first_bin[l] * c.taps() * c.t.out_channels), filters_of_q(c, f), bins_of_q(c), {}};
    p.b = {at_element(c.levels, c.t.first_bin[l]), {0, c.packed_bins()}, bins_of_levels(c), {}};
    const Side to = weight_side(c, grad_weight, f, l);
    p.c = const_cast<void*>(to.data);
    p.c_row = to.row, p.c_column = to.depth;
    p.c_along_rows = grad_weight.stride(1) != 1;
    finish(p, grad_q, c.levels);
  }
  launch_products(c.type, Wide::a, products, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!grad_weight.is_same(into)) into.copy_(grad_weight);
}

// grad_levels[b, c, bin] = Σ_{o, tap} weight[o, c, tap] · grad_q[b, (bin, tap), o]
at::Tensor make_grad_levels(const Call& c, const at::Tensor& grad_q) {
  const at::Tensor weight = even_taps(c.weight);
  at::Tensor grad_levels = at::empty(c.levels.sizes(), c.levels.options());
  const FilterAxis f(c);
  Products products{c.t.levels, {}};
  for (int32_t l = 0; l < c.t.levels; ++l) {
    Product& p = products.of[l];
    p.m = bin_axis(c, l), p.n = channel_axis(c), p.k = f.axis();
    p.a = {at_element(grad_q, c.t.first_bin[l] * c.taps() * c.t.out_channels), bins_of_q(c), filters_of_q(c, f), {}};
    const Side filters = weight_side(c, weight, f, l);
    p.b = {filters.data, filters.depth, filters.row, {}};
    p.c = const_cast<char*>(at_element(grad_levels, c.t.first_bin[l]));
    p.c_row = bins_of_levels(c), p.c_column = {0, c.packed_bins()};
    p.c_along_rows = true;
    finish(p, grad_q, weight);
  }
  launch_products(c.type, Wide::a, products, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_levels;
}

// ---- Operators ------------------------------------------------------------------------------------------------------

at::Tensor forward(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef sizes, bool align_corners, bool x_first, const NormTensors& norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto call = make_call(x, levels, weight, sizes, align_corners, x_first);
  const ConvGrid grid = call ? conv_add_grid(call->type, call->t, most_shared_bytes()) : ConvGrid{};
  if (!call || grid.warps == 0 || grid.blocks >= int64_t{1} << 31) {
    return composed_conv(x, levels, weight, bias, sizes, align_corners, x_first, norm);
  }
  at::Tensor y = convolve_x(x, call->x_part(weight), bias);
  if (y.numel() == 0) return y;
  const bool channels_last = is_channels_last(y);
  if (!channels_last) y = y.contiguous();
  const at::Tensor q = make_q(*call);
  launch_pyramid_conv_add(
      call->type, channels_last, call->t, grid, q.const_data_ptr(), y.mutable_data_ptr(), norm.norm,
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

at::Tensor pyramid_conv_cuda(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef sizes, bool align_corners, bool x_first) {
  return forward(x, levels, weight, bias, sizes, align_corners, x_first, {});
}

at::Tensor pyramid_conv_norm_relu_cuda(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& mean, const at::Tensor& var, const at::Tensor& gamma, const at::Tensor& beta, double eps,
    at::IntArrayRef sizes, bool align_corners, bool x_first) {
  const c10::cuda::CUDAGuard guard(x.device());
  return forward(
      x, levels, weight, bias, sizes, align_corners, x_first, NormTensors(x, mean, var, gamma, beta, eps));
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// By x, levels and weight, those that `mask` asks for; the others are empty.
Gradients pyramid_conv_backward_cuda(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight,
    at::IntArrayRef sizes, bool align_corners, bool x_first, std::array<bool, 3> mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto [want_x, want_levels, want_weight] = mask;
  if (grad.numel() == 0) {
    const auto zeros = [](const at::Tensor& t, bool wanted) { return wanted ? at::zeros_like(t) : absent(t); };
    return {zeros(x, want_x), zeros(levels, want_levels), zeros(weight, want_weight)};
  }
  const auto call = make_call(x, levels, weight, sizes, align_corners, x_first);
  const ConvGrid grid = call ? conv_gather_grid(call->type, call->t, most_shared_bytes()) : ConvGrid{};
  if (!call || grid.warps == 0 || grid.blocks >= int64_t{1} << 31) {
    return composed_conv_backward(grad, x, levels, weight, sizes, align_corners, x_first, mask);
  }

  at::Tensor grad_x = absent(x), grad_levels = absent(levels), grad_weight = absent(weight);
  if (want_x || want_weight) {
    auto [of_x, of_part] = convolve_x_backward(grad, x, call->x_part(weight), want_x, want_weight);
    if (want_x) grad_x = of_x.contiguous(format_of(x));
    if (want_weight) {
      grad_weight = at::empty_like(weight);
      call->x_part(grad_weight).copy_(of_part);
    }
  }
  if (!want_levels && !want_weight) return {grad_x, grad_levels, grad_weight};
  const at::Tensor grad_q = make_grad_q(*call, grid, grad);
  if (want_weight) write_grad_weight(*call, grad_q, grad_weight);
  if (want_levels) grad_levels = make_grad_levels(*call, grad_q);
  return {grad_x, grad_levels, grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("pyramid_conv", pyramid_conv_cuda);
  m.impl("pyramid_conv_backward", pyramid_conv_backward_cuda);
  m.impl("pyramid_conv_norm_relu", pyramid_conv_norm_relu_cuda);
}

}  // namespace pspnet_fast::cuda
