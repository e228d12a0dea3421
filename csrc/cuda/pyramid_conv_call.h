// One call of the convolution over a pyramid: its geometry, and its products over channels.
#pragma once

#include <ATen/TensorUtils.h>
#include <ATen/ops/empty.h>

#include <array>
#include <optional>

#include "../checks.h"
#include "pyramid_conv.h"
#include "pyramid_tensors.h"

namespace pspnet_fast::cuda {

// One call: its tensors' parts, geometry and layout.
struct Call {
  const at::Tensor &x, &levels, &weight;
  ElementType type;
  ConvTables t = {};
  int64_t width = 0, first_level_channel = 0, first_x_channel = 0;  // `width` channels a level

  at::Tensor x_part(const at::Tensor& of) const { return of.narrow(1, first_x_channel, x.size(1)); }
  int32_t taps() const { return t.kernel_height * t.kernel_width; }
  int64_t packed_bins() const { return t.positions / taps(); }
};

// Nothing where a pyramid or map is too large for the tables: then PyTorch's own operators serve.
inline std::optional<Call> make_call(
    const at::Tensor& x, const at::Tensor& levels, const at::Tensor& weight, at::IntArrayRef sizes, bool align_corners,
    bool x_first) {
  check_pyramid_conv(x, levels, weight, sizes, align_corners, x_first);
  const int64_t packed = levels.size(2), height = x.size(2), width = x.size(3);
  const int64_t count = static_cast<int64_t>(sizes.size()) / 2;
  int64_t rows = 0, columns = 0;
  for (size_t i = 0; i < sizes.size(); i += 2) rows += sizes[i], columns += sizes[i + 1];
  const int64_t taps = weight.size(2) * weight.size(3);
  constexpr int64_t kMost = int64_t{1} << 30;
  if (count > kMaxLevels || rows > kMaxBins || columns > kMaxBins || taps > 1024 || height > kMost / width ||
      height > kMost / 2 || weight.size(0) > kMost / taps || levels.size(1) > kMost ||
      x.size(0) > kMost / (packed * taps)) {
    return {};
  }
  // A launch holds 2^31 - 1 blocks: 256 elements of a row of q.
  if (weight.size(0) * taps > 256 * (kMost / (x.size(0) * packed + 1))) return {};
  Call call{x, levels, weight, element_type("x", x)};
  ConvTables& t = call.t;
  t.batch = x.size(0), t.out_channels = weight.size(0);
  t.height = static_cast<int32_t>(height), t.width = static_cast<int32_t>(width);
  t.kernel_height = static_cast<int32_t>(weight.size(2)), t.kernel_width = static_cast<int32_t>(weight.size(3));
  t.levels = static_cast<int32_t>(count);
  t.positions = static_cast<int32_t>(packed * taps);
  t.terms = static_cast<int32_t>(columns) * t.kernel_width;
  t.row_terms = static_cast<int32_t>(rows) * t.kernel_height;
  t.align_corners = align_corners;
  int32_t bin = 0, row = 0, column = 0;
  for (int32_t l = 0; l < t.levels; ++l) {
    t.rows[l] = static_cast<int32_t>(sizes[2 * l]), t.columns[l] = static_cast<int32_t>(sizes[2 * l + 1]);
    t.first_bin[l] = bin, t.first_row[l] = row, t.first_column[l] = column;
    bin += t.rows[l] * t.columns[l], row += t.rows[l], column += t.columns[l];
  }
  call.width = levels.size(1);
  call.first_x_channel = x_first ? 0 : count * call.width;
  call.first_level_channel = x_first ? x.size(1) : 0;
  return call;
}

// ---- Products -------------------------------------------------------------------------------------------------------
//
// With the weight as a matrix [O · taps, channels], all three are products of matrices: of channels_last weights that is
// a view, of others a copy. Rows of bins are the images of a bin, bin after bin.

// The levels' part of a weight, as [O, kh, kw, L · Ck].
inline at::Tensor level_filters(const Call& c, const at::Tensor& weight) {
  return weight.narrow(1, c.first_level_channel, c.t.levels * c.width).permute({0, 2, 3, 1});
}

// Calls visit(rows of the first tensor, rows of the second, columns of `filters`) for each level.
template <typename Visit>
void for_levels(
    const Call& c, const at::Tensor& first, const at::Tensor& second, const at::Tensor& filters, Visit visit) {
  for (int32_t l = 0; l < c.t.levels; ++l) {
    const int64_t bins = int64_t{c.t.rows[l]} * c.t.columns[l], bin = c.t.first_bin[l];
    visit(rows_of_bins(first, bin, bins), rows_of_bins(second, bin, bins), filters.narrow(1, l * c.width, c.width));
  }
}

// q[bin, b, o, tap] = Σ_c weight[o, c, tap] · levels[b, c, bin]
inline at::Tensor make_q(const Call& c) {
  const at::Tensor levels = c.levels.permute({2, 0, 1}).contiguous();
  const at::Tensor filters = level_filters(c, c.weight).flatten(0, 2);
  const at::Tensor q = at::empty({c.packed_bins(), c.t.batch, filters.size(0)}, accumulator(c.x));
  for_levels(c, q, levels, filters, [](const auto& q_rows, const auto& rows, const auto& of_level) {
    multiply(q_rows, rows, of_level.t());
  });
  return q;
}

// grad_weight[o, c, tap] = Σ_{b, bin} grad_q[bin, b, o, tap] · levels[b, c, bin], written into grad_weight.
inline void write_grad_weight(const Call& c, const at::Tensor& grad_q, const at::Tensor& grad_weight) {
  const at::Tensor levels = c.levels.permute({2, 0, 1}).contiguous().to(grad_q.scalar_type());
  const at::Tensor part = level_filters(c, grad_weight);
  const std::array<int64_t, 2> shape = {part.size(0) * c.taps(), part.size(3)};
  const bool in_place = part.scalar_type() == grad_q.scalar_type() &&
                        at::detail::computeStride(part.sizes(), part.strides(), shape).has_value();
  const at::Tensor filters = in_place ? part.view(shape) : at::empty(shape, grad_q.options());
  for_levels(c, grad_q, levels, filters, [](const auto& q_rows, const auto& rows, const auto& of_level) {
    multiply(of_level, q_rows.t(), rows);
  });
  if (!in_place) part.copy_(filters.view(part.sizes()));
}

// grad_levels[b, c, bin] = Σ_{o, tap} weight[o, c, tap] · grad_q[bin, b, o, tap]
inline at::Tensor make_grad_levels(const Call& c, const at::Tensor& grad_q) {
  const at::Tensor filters = level_filters(c, c.weight).flatten(0, 2).to(grad_q.scalar_type());
  const at::Tensor sums = at::empty({c.packed_bins(), c.t.batch, c.width}, accumulator(c.x));
  for_levels(c, grad_q, sums, filters, [](const auto& q_rows, const auto& rows, const auto& of_level) {
    multiply(rows, q_rows, of_level);
  });
  return at::empty(c.levels.sizes(), c.levels.options()).copy_(sums.permute({1, 2, 0}));
}

}  // namespace pspnet_fast::cuda
