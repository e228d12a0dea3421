// The concatenated map of a pyramid on CPU tensors. A level is interpolated by the kernels of the convolution over a
// pyramid, of which upsampling is the case of a 1x1 kernel without a product: straight into its channels of the result,
// and backward straight from its channels of the gradient.
#include "../checks.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "pyramid_conv_map.h"

namespace pspnet_fast {
namespace {

// Calls body(level's channels of the map, its first packed bin, its geometry) for each level.
template <typename Body>
void for_each_level(
    const at::Tensor& map, bool channels_last, int64_t first_channel, int64_t width, at::IntArrayRef bins,
    bool align_corners, Body body) {
  int64_t first_bin = 0;
  for (size_t l = 0; l < bins.size(); ++l) {
    const at::Tensor part = map.narrow(1, first_channel + static_cast<int64_t>(l) * width, width);
    const ConvGeometry geometry(part, channels_last, width, {1, 1}, {bins[l], bins[l]}, align_corners);
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
      {x.size(0), x.size(1) + of_levels, x.size(2), x.size(3)},
      x.options().memory_format(format_of(x)));
  y.narrow(1, x_first ? 0 : of_levels, x.size(1)).copy_(x);
  if (x.size(0) == 0 || width == 0) return y;
  for_each_level(
      y, channels_last, x_first ? x.size(1) : 0, width, bins, align_corners,
      [&](const at::Tensor& part, int64_t first_bin, const ConvGeometry& geometry) {
        const at::Tensor level = levels.narrow(2, first_bin, geometry.shape.packed_bins);
        const at::Tensor q = channels_last ? geometry.pack_bins_transposed(level) : geometry.pack_bins(level);
        q_to_map(geometry, channels_last, q, part, {ConvWrite::store});
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
      [&](const at::Tensor& part, int64_t first_bin, const ConvGeometry& geometry) {
        const at::Tensor q = map_to_q(geometry, channels_last, part);
        geometry.unpack_bins(q, grad_levels.narrow(2, first_bin, geometry.shape.packed_bins));
      });
  return grad_levels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("pyramid_concat", pyramid_concat_cpu);
  m.impl("pyramid_concat_backward", pyramid_concat_backward_cpu);
}

}  // namespace pspnet_fast
