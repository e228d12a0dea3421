// Sums of upsampled maps on CUDA tensors: checks and geometry round the kernels of upsample_add*.cu.
#include "upsample_add.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_bilinear2d_backward.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../checks.h"

namespace pspnet_fast::cuda {
namespace {

// `map` is the result or its gradient, dense. Nothing where levels are too many or too large for the kernels: then
// PyTorch's own operators serve.
std::optional<UpsampleShape> make_shape(
    const at::Tensor& map, bool channels_last, at::IntArrayRef sizes, bool align_corners) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t batch = map.size(0), channels = map.size(1), height = map.size(2), width = map.size(3);
  if (sizes.size() > 2 * kMostUpsampleLevels || width * channels >= kMost || map.numel() >= kMost * 64) return {};
  UpsampleShape shape{};
  shape.planes = channels_last ? batch : batch * channels;
  shape.unit = static_cast<int32_t>(channels_last ? channels : 1);
  shape.height = static_cast<int32_t>(height), shape.width = static_cast<int32_t>(width);
  int64_t packed = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const int64_t h = sizes[i], w = sizes[i + 1], first_bin = packed;
    packed += h * w;
    if (std::max((h + 1) * (height + 1), (w + 1) * (width + 1)) >= kMost) return {};
    if (batch * channels * packed >= kMost) return {};
    shape.level[shape.count++] = {
        bilinear_axis(h, height, align_corners), bilinear_axis(w, width, align_corners),
        static_cast<int32_t>(first_bin)};
  }
  shape.packed_bins = static_cast<int32_t>(packed);
  return shape;
}

at::Tensor composed(
    const at::Tensor& levels, const std::optional<at::Tensor>& base, at::IntArrayRef size, at::IntArrayRef sizes,
    bool align_corners) {
  const at::ScalarType real = accumulator_type(levels);
  at::Tensor sum = base ? base->to(real) : at::Tensor();
  for (size_t i = 0, first = 0; i < sizes.size(); i += 2) {
    const int64_t bins = sizes[i] * sizes[i + 1];
    const at::Tensor level = levels.narrow(2, first, bins).unflatten(2, sizes.slice(i, 2)).to(real);
    const at::Tensor map = at::upsample_bilinear2d(level, size, align_corners);
    sum = sum.defined() ? at::add(sum, map) : map;
    first += bins;
  }
  return sum.to(levels.scalar_type());
}

at::Tensor composed_backward(const at::Tensor& grad, at::IntArrayRef sizes, bool align_corners) {
  const at::Tensor wide = grad.to(accumulator_type(grad));
  std::vector<at::Tensor> grads;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    const std::array<int64_t, 4> size = {grad.size(0), grad.size(1), sizes[i], sizes[i + 1]};
    grads.push_back(
        at::upsample_bilinear2d_backward(wide, grad.sizes().slice(2), size, align_corners).flatten(2));
  }
  return at::cat(grads, 2).to(grad.scalar_type());
}

at::Tensor upsample_add_cuda(
    const at::Tensor& levels, const std::optional<at::Tensor>& base, int64_t height, int64_t width,
    at::IntArrayRef sizes, bool align_corners, bool last_without_base) {
  check_upsample_add(levels, base, height, width, sizes);
  const c10::cuda::CUDAGuard guard(levels.device());
  const ElementType type = element_type("levels", levels);
  const bool channels_last = base ? is_channels_last(*base) : last_without_base;
  const at::Tensor y = empty_map(levels, height, width, channels_last);
  if (y.numel() == 0) return y;
  const auto shape = make_shape(y, channels_last, sizes, align_corners);
  if (!shape) return y.copy_(composed(levels, base, y.sizes().slice(2), sizes, align_corners));
  const at::Tensor packed = (channels_last ? levels.transpose(1, 2) : levels).contiguous();
  const at::Tensor onto = base && !channels_last ? base->contiguous() : base.value_or(at::Tensor());
  launch_upsample_add_fwd(
      type, channels_last, *shape, packed.const_data_ptr(), base ? onto.const_data_ptr() : nullptr,
      y.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

at::Tensor upsample_add_backward_cuda(const at::Tensor& upstream, at::IntArrayRef sizes, bool align_corners) {
  check_map("grad", upstream);
  const c10::cuda::CUDAGuard guard(upstream.device());
  const ElementType type = element_type("grad", upstream);
  const bool channels_last = is_channels_last(upstream);
  const at::Tensor grad = channels_last ? upstream : upstream.contiguous();
  const at::Tensor grad_levels = empty_levels(grad, packed_sizes(sizes), channels_last);
  if (grad_levels.numel() == 0) return grad_levels;
  const auto shape = make_shape(grad, channels_last, sizes, align_corners);
  if (!shape) return grad_levels.copy_(composed_backward(grad, sizes, align_corners));
  launch_upsample_add_bwd(
      type, channels_last, *shape, grad.const_data_ptr(), grad_levels.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_levels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("upsample_add", upsample_add_cuda);
  m.impl("upsample_add_backward", upsample_add_backward_cuda);
}

}  // namespace pspnet_fast::cuda
