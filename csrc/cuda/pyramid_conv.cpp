// The convolution over a pyramid on CUDA tensors: the convolution over x by cuDNN, products over channels by cuBLAS,
// and what lies between bins and map by the kernels of pyramid_conv_*.cu. The maths is in
// pspnet_fast/ops/pyramid_conv_composed.py.
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

// grad_q[bin, b, o, tap], what its products are taken in. That of float16 is float32: a sum over the whole map leaves
// float16's range before the gradients that are made of it do.
at::Tensor make_grad_q(const Call& c, const ConvGrid& grid, const at::Tensor& upstream) {
  const bool channels_last = is_channels_last(upstream);
  const at::Tensor grad = channels_last ? upstream : upstream.contiguous();
  at::Tensor parts = at::empty({grid.parts(), c.t.batch, c.t.positions, c.t.out_channels}, accumulator(c.x));
  const at::ScalarType type = c.x.scalar_type() == at::kHalf ? at::kFloat : c.x.scalar_type();
  at::Tensor grad_q = at::empty({c.packed_bins(), c.t.batch, c.t.out_channels * c.taps()}, parts.options().dtype(type));
  launch_pyramid_conv_gather(
      c.type, channels_last, c.t, grid, grad.const_data_ptr(), parts.mutable_data_ptr(), grad_q.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_q;
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

// By x, levels and weight, those that `mask` selects; the others are empty.
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
