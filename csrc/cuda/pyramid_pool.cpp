// Pyramid pooling on CUDA tensors: checks, geometry and scratch round the kernels of pyramid_pool_nchw.cu (NCHW) and
// pyramid_pool_nhwc.cu (channels_last).
#include "pyramid_pool.h"

#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "pyramid_pool_tables.h"

namespace pspnet_fast::cuda {
namespace {

at::Tensor pool_by_levels(const at::Tensor& x, at::IntArrayRef bins) {
  std::vector<at::Tensor> levels;
  for (int64_t k : bins) levels.push_back(at::adaptive_avg_pool2d(x, {k, k}).flatten(2));
  return at::cat(levels, 2);
}

at::Tensor pool_by_levels_backward(
    const at::Tensor& grad, int64_t height, int64_t width, at::IntArrayRef bins, bool channels_last) {
  const at::Tensor sums = grad.to(accumulator_type(grad));
  const at::Tensor like = empty_map(sums, height, width, channels_last);  // its shape and layout are the result's
  at::Tensor total = at::zeros_like(like);
  int64_t first = 0;
  for (int64_t k : bins) {
    total += at::_adaptive_avg_pool2d_backward(sums.narrow(2, first, k * k).unflatten(2, {k, k}).contiguous(), like);
    first += k * k;
  }
  return total;
}

at::Tensor pyramid_pool_cuda(const at::Tensor& input, at::IntArrayRef bins) {
  check_map("x", input);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = is_channels_last(input) ? input : input.contiguous();
  const auto tables = make_tables(x.size(0), x.size(1), x.size(2), x.size(3), bins);
  return tables ? pool(x, *tables) : pool_by_levels(x, bins);
}

// The gradient of x into `grad_x`, which is dense in the layout that it answers to, or added to what that holds.
void launch_backward(const PoolTables& tables, const at::Tensor& grad, at::Tensor& grad_x, bool channels_last, bool add) {
  const ElementType type = element_type("grad", grad);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (channels_last) {
    const at::Tensor packed = grad.transpose(1, 2).contiguous();  // lanes lie along channels
    launch_pyramid_pool_nhwc_bwd(type, add, tables, packed.const_data_ptr(), grad_x.mutable_data_ptr(), stream);
  } else {
    const at::Tensor packed = grad.contiguous();
    launch_pyramid_pool_nchw_bwd(type, add, tables, packed.const_data_ptr(), grad_x.mutable_data_ptr(), stream);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor pyramid_pool_backward_cuda(
    const at::Tensor& grad, int64_t height, int64_t width, at::IntArrayRef bins, bool channels_last) {
  check_packed(grad, bins);
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  const c10::cuda::CUDAGuard guard(grad.device());
  const auto tables = make_tables(grad.size(0), grad.size(1), height, width, bins);
  if (!tables) return pool_by_levels_backward(grad, height, width, bins, channels_last).to(grad.scalar_type());
  at::Tensor grad_x = empty_map(grad, height, width, channels_last);
  if (grad_x.numel() > 0) launch_backward(*tables, grad, grad_x, channels_last, false);
  return grad_x;
}

void pyramid_pool_backward_add_cuda(at::Tensor& grad_x, const at::Tensor& grad, at::IntArrayRef bins) {
  check_accumulator(grad_x, grad, bins);
  const c10::cuda::CUDAGuard guard(grad.device());
  const bool channels_last = is_channels_last(grad_x);
  const auto tables = make_tables(grad.size(0), grad.size(1), grad_x.size(2), grad_x.size(3), bins);
  if (!tables) {
    grad_x += pool_by_levels_backward(grad, grad_x.size(2), grad_x.size(3), bins, channels_last);
  } else if (grad_x.numel() > 0) {
    launch_backward(*tables, grad, grad_x, channels_last, true);
  }
}

}  // namespace

at::Tensor pool(const at::Tensor& x, const PoolTables& tables) {
  const ElementType type = element_type("x", x);
  at::Tensor out = at::empty({x.size(0), x.size(1), tables.packed_bins}, x.options());
  if (out.numel() == 0) return out;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (is_channels_last(x)) {
    const int64_t atom_count = tables.row_intervals * tables.column_intervals;
    at::Tensor atoms = at::empty({x.size(0), atom_count, x.size(1)}, accumulator(x));
    launch_pyramid_pool_nhwc_fwd(
        type, tables, x.const_data_ptr(), atoms.mutable_data_ptr(), out.mutable_data_ptr(), stream);
  } else {
    launch_pyramid_pool_nchw_fwd(type, tables, x.const_data_ptr(), out.mutable_data_ptr(), stream);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("pyramid_pool", pyramid_pool_cuda);
  m.impl("pyramid_pool_backward", pyramid_pool_backward_cuda);
  m.impl("pyramid_pool_backward_add", pyramid_pool_backward_add_cuda);
}

}  // namespace pspnet_fast::cuda
