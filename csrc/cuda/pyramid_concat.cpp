// Upsampling and concatenation of a pyramid on CUDA tensors: checks, geometry and scratch round the kernels of
// pyramid_concat_nchw*.cu (NCHW) and pyramid_concat_nhwc*.cu (channels_last).
#include "pyramid_concat.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <optional>

#include "../checks.h"
#include "pyramid_composed.h"

namespace pspnet_fast::cuda {
namespace {

// Nothing where a pyramid or map is too large for the tables: then the composition serves.
std::optional<ConcatShape> make_shape(
    const at::Tensor& map, int64_t channels, int64_t level_channels, at::IntArrayRef bins, bool align_corners,
    bool x_first) {
  const int64_t height = map.size(2), width = map.size(3), side = std::max(height, width);
  const int64_t most = *std::max_element(bins.begin(), bins.end());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (bins.size() > kMaxConcatLevels || most > kMaxConcatBins || height > kMost / width ||
      (most + 1) * (side + 1) > kMost / 2) {
    return {};
  }

  ConcatShape shape{};
  shape.batch = map.size(0);
  shape.channels = channels;
  shape.level_channels = level_channels;
  shape.height = static_cast<int32_t>(height);
  shape.width = static_cast<int32_t>(width);
  shape.x_first = x_first;
  for (int64_t k : bins) {
    ConcatLevel& level = shape.level[shape.count++];
    level = {bilinear_axis(k, height, align_corners), bilinear_axis(k, width, align_corners), shape.packed_bins};
    shape.packed_bins += static_cast<int32_t>(k * k);
  }
  return shape;
}

at::Tensor pyramid_concat_cuda(
    const at::Tensor& x, const at::Tensor& levels, at::IntArrayRef bins, bool align_corners, bool x_first) {
  check_concat(x, levels, bins);
  const c10::cuda::CUDAGuard guard(x.device());
  const ElementType type = element_type("x", x);
  const auto tables = make_shape(x, x.size(1), levels.size(1), bins, align_corners, x_first);
  if (!tables) return composed_concat(x, levels, square_sizes(bins), align_corners, x_first);
  const ConcatShape& shape = *tables;
  const bool channels_last = is_channels_last(x);
  at::Tensor out =
      at::empty({shape.batch, shape.all_channels(), x.size(2), x.size(3)}, x.options().memory_format(format_of(x)));
  if (out.numel() == 0) return out;

  // Levels with lanes along channels where the result has them so; they are small.
  const at::Tensor map = x.contiguous(format_of(x));
  const at::Tensor packed = channels_last ? levels.transpose(1, 2).contiguous() : levels.contiguous();
  const auto launch = channels_last ? launch_pyramid_concat_nhwc_fwd : launch_pyramid_concat_nchw_fwd;
  launch(
      type, shape, map.const_data_ptr(), packed.const_data_ptr(), out.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

at::Tensor pyramid_concat_backward_cuda(
    const at::Tensor& grad, int64_t channels, at::IntArrayRef bins, bool align_corners, bool x_first) {
  const int64_t level_channels = check_concat_grad(grad, channels, bins);
  const c10::cuda::CUDAGuard guard(grad.device());
  const ElementType type = element_type("grad", grad);
  const auto tables = make_shape(grad, channels, level_channels, bins, align_corners, x_first);
  if (!tables) return composed_concat_backward(grad, channels, square_sizes(bins), align_corners, x_first);
  const ConcatShape& shape = *tables;
  at::Tensor grad_levels =
      at::empty({shape.batch, level_channels, shape.packed_bins}, grad.options().memory_format(std::nullopt));
  if (grad_levels.numel() == 0) return grad_levels;

  // The part of the levels is read where it lies in a dense gradient; of any other only that part is copied.
  const bool channels_last = is_channels_last(grad);
  at::Tensor part = grad.narrow(1, shape.first_of_levels(), shape.all_level_channels());
  if (!channels_last && !grad.is_contiguous()) part = part.contiguous();
  const ConcatGrad map{part.const_data_ptr(), part.stride(0), part.stride(3)};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (channels_last) {
    const ConcatPieces pieces = cut_pieces(shape);
    const at::TensorOptions options = accumulator(grad);
    at::Tensor sums = at::empty({shape.batch, pieces.total, 4, level_channels}, options);
    launch_pyramid_concat_nhwc_bwd(
        type, shape, pieces, map, sums.mutable_data_ptr(), grad_levels.mutable_data_ptr(), stream);
  } else {
    launch_pyramid_concat_nchw_bwd(type, shape, map, grad_levels.mutable_data_ptr(), stream);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_levels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("pyramid_concat", pyramid_concat_cuda);
  m.impl("pyramid_concat_backward", pyramid_concat_backward_cuda);
}

}  // namespace pspnet_fast::cuda
