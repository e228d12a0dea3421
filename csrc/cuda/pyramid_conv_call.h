// One call of the convolution over a pyramid: its geometry, and its tensors as sides of products.
#pragma once

#include <algorithm>
#include <optional>

#include "../checks.h"
#include "pyramid_conv.h"
#include "pyramid_tensors.h"

namespace pspnet_fast::cuda {

// One call: its tensors' parts, geometry and layout.
struct Call {
  const at::Tensor &x, &weight;
  at::Tensor levels;  // [B, Ck, Σk²], contiguous
  ElementType type;
  ConvTables t = {};
  int64_t width = 0, first_level_channel = 0, first_x_channel = 0;  // `width` channels a level

  at::Tensor x_part(const at::Tensor& of) const { return of.narrow(1, first_x_channel, x.size(1)); }
  int32_t taps() const { return t.kernel_height * t.kernel_width; }
  int64_t packed_bins() const { return t.positions / taps(); }
};

// Nothing where a level is not square, or a pyramid or map too large for the tables: then PyTorch's own operators serve.
inline std::optional<Call> make_call(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, at::IntArrayRef sizes, bool align_corners,
    bool x_first) {
  check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
  const int64_t packed = levels.size(2), height = x.size(2), width = x.size(3);
  const int64_t count = static_cast<int64_t>(sizes.size()) / 2;
  int64_t total = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    if (sizes[i] != sizes[i + 1]) return {};
    total += sizes[i];
  }
  const int64_t taps = weight.size(2) * weight.size(3);
  constexpr int64_t kMost = int64_t{1} << 30;
  if (count > kMaxLevels || total > kMaxBins || taps > 1024 || height > kMost / width || height > kMost / 2 ||
      weight.size(0) > kMost / taps || levels.size(1) > kMost || x.size(0) > kMost / (packed * taps)) {
    return {};
  }
  // A launch holds 2^31 - 1 blocks: tiles of 64 x 64 for each level, and 256 elements of q.
  const int64_t filters = weight.size(0) * taps, columns = std::max(x.size(0) * packed, levels.size(1));
  if ((filters / 64 + 1) * (columns / 64 + 1) > kMost / count || filters > 256 * (kMost / (x.size(0) * packed + 1))) {
    return {};
  }
  Call call{x, weight, levels.contiguous(), element_type("x", x)};
  ConvTables& t = call.t;
  t.batch = x.size(0), t.out_channels = weight.size(0);
  t.height = static_cast<int32_t>(height), t.width = static_cast<int32_t>(width);
  t.kernel_height = static_cast<int32_t>(weight.size(2)), t.kernel_width = static_cast<int32_t>(weight.size(3));
  t.levels = static_cast<int32_t>(count);
  t.positions = static_cast<int32_t>(packed * taps);
  t.terms = static_cast<int32_t>(total) * t.kernel_width;
  t.row_terms = static_cast<int32_t>(total) * t.kernel_height;
  t.align_corners = align_corners;
  int32_t bin = 0, line = 0;
  for (int32_t l = 0; l < t.levels; ++l) {
    const auto k = static_cast<int32_t>(sizes[2 * l]);
    t.bins[l] = k, t.first_bin[l] = bin, t.first_line[l] = line;
    bin += k * k, line += k;
  }
  call.width = levels.size(1);
  call.first_x_channel = x_first ? 0 : count * call.width;
  call.first_level_channel = x_first ? x.size(1) : 0;
  return call;
}

// ---- Axes of the products -------------------------------------------------------------------------------------------

// Output channels and taps as one axis, in the order in which the weight has them as neighbours: taps innermost in NCHW.
struct FilterAxis {
  bool taps_inside;
  int32_t out_channels, taps;

  explicit FilterAxis(const Call& c)
      : taps_inside(c.taps() > 1 && c.weight.stride(1) != 1),
        out_channels(static_cast<int32_t>(c.t.out_channels)),
        taps(c.taps()) {}
  Axis axis() const { return {out_channels * taps, taps_inside ? taps : out_channels}; }
  Strides strides(int64_t channel, int64_t tap) const {
    return taps_inside ? Strides{channel, tap} : Strides{tap, channel};
  }
};

// Images and the bins of one level as one axis.
inline Axis bin_axis(const Call& c, int32_t level) {
  const int32_t k = c.t.bins[level];
  return {static_cast<int32_t>(c.t.batch) * k * k, k * k};
}
inline Strides bins_of_levels(const Call& c) { return {c.width * c.packed_bins(), 1}; }
inline Strides bins_of_q(const Call& c) { return {c.t.positions * c.t.out_channels, c.taps() * c.t.out_channels}; }
inline Strides filters_of_q(const Call& c, const FilterAxis& f) { return f.strides(1, c.t.out_channels); }
inline Axis channel_axis(const Call& c) { return {static_cast<int32_t>(c.width), static_cast<int32_t>(c.width)}; }

inline const char* at_element(const at::Tensor& x, int64_t offset) {
  return static_cast<const char*>(x.const_data_ptr()) + offset * static_cast<int64_t>(x.element_size());
}

// The weight of one level: filters by channels.
inline Side weight_side(const Call& c, const at::Tensor& weight, const FilterAxis& f, int32_t level) {
  const int64_t first = (c.first_level_channel + level * c.width) * weight.stride(1);
  return {at_element(weight, first), f.strides(weight.stride(0), weight.stride(3)), {0, weight.stride(1)}, {}};
}

// The weight as the products read it: taps at equal distances.
inline at::Tensor even_taps(const at::Tensor& weight) {
  const bool even = weight.size(2) == 1 || weight.stride(2) == weight.size(3) * weight.stride(3);
  return even ? weight : weight.contiguous();
}

}  // namespace pspnet_fast::cuda
