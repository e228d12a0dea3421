// Sums of upsampled maps on CPU tensors: tables and threads round the kernels of upsample_add_kernel.cpp. Work is cut
// into tasks by shape alone, each done by one thread in one order: the result does not depend on the number of threads.
#include "upsample_add_kernel.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "pyramid_conv_map.h"

namespace pspnet_fast {
namespace {

struct AxisTables {
  std::vector<int32_t> first, second, first_reader, last;
  std::vector<double> first_weight, second_weight;

  AxisTables(int64_t nodes, int64_t out, bool align_corners) : first_reader(nodes, 0), last(nodes, 0) {
    for (int64_t i = 0; i < out; ++i) {
      const Taps taps = bilinear_taps(i, nodes, out, align_corners);
      first.push_back(taps.first), second.push_back(taps.second);
      first_weight.push_back(taps.first_weight), second_weight.push_back(taps.second_weight);
      for (const int32_t node : {taps.first, taps.second}) {
        if (last[node] == 0) first_reader[node] = static_cast<int32_t>(i);
        last[node] = static_cast<int32_t>(i) + 1;
      }
    }
  }
  UpsampleAxis axis() const { return {first.data(), second.data(), first_weight.data(), second_weight.data()}; }
};

// The geometry of one call, and what its pointers point into.
struct UpsampleGeometry {
  UpsampleShape shape{};

  // `map` is the result or its gradient, dense.
  UpsampleGeometry(const at::Tensor& map, bool channels_last, at::IntArrayRef sizes, bool align_corners) {
    shape.planes = channels_last ? map.size(0) : map.size(0) * map.size(1);
    shape.unit = channels_last ? map.size(1) : 1;
    shape.height = map.size(2), shape.width = map.size(3);
    shape.levels = static_cast<int64_t>(sizes.size()) / 2;
    tables_.reserve(sizes.size());
    for (int64_t l = 0; l < shape.levels; ++l) {
      UpsampleLevel level{};
      level.height = sizes[2 * l], level.width = sizes[2 * l + 1];
      level.first_bin = shape.packed_bins, level.first_row = shape.rows;
      const AxisTables& rows = tables_.emplace_back(level.height, shape.height, align_corners);
      const AxisTables& columns = tables_.emplace_back(level.width, shape.width, align_corners);
      level.rows = rows.axis(), level.columns = columns.axis();
      level.first_reader = rows.first_reader.data(), level.last = rows.last.data();
      shape.packed_bins += level.height * level.width;
      shape.rows += level.height;
      levels_.push_back(level);
    }
    shape.level = levels_.data();
  }
  UpsampleGeometry(const UpsampleGeometry&) = delete;

 private:
  std::vector<AxisTables> tables_;
  std::vector<UpsampleLevel> levels_;
};

at::Tensor upsample_add_cpu(
    const at::Tensor& levels, const std::optional<at::Tensor>& base, int64_t height, int64_t width,
    at::IntArrayRef sizes, bool align_corners, bool last_without_base) {
  const at::AutoDispatchBelowAutograd below;
  check_upsample_add(levels, base, height, width, sizes);
  const bool channels_last = base ? is_channels_last(*base) : last_without_base;
  const at::Tensor y = empty_map(levels, height, width, channels_last);
  if (y.numel() == 0) return y;
  const UpsampleGeometry geometry(y, channels_last, sizes, align_corners);
  const UpsampleShape& shape = geometry.shape;
  const ElementType type = element_type("levels", levels);
  // [planes, packed bins, unit]
  const at::Tensor packed = (channels_last ? levels.transpose(1, 2) : levels).contiguous();
  const at::Tensor onto = base && !channels_last ? base->contiguous() : base.value_or(at::Tensor());
  const void* base_data = base ? onto.const_data_ptr() : nullptr;

  const int64_t runs = ceil_div(height, PSPNET_FAST_PER_ISA(upsample_add_rows, shape));
  const int64_t scratch = PSPNET_FAST_PER_ISA(upsample_add_scratch, shape);
  for_tasks(shape.planes * runs, scratch, y, [&](void* own, int64_t begin, int64_t end) {
    PSPNET_FAST_PER_ISA(
        upsample_add, type, shape, packed.const_data_ptr(), base_data, y.mutable_data_ptr(), own, begin, end);
  });
  return y;
}

at::Tensor upsample_add_backward_cpu(const at::Tensor& upstream, at::IntArrayRef sizes, bool align_corners) {
  const at::AutoDispatchBelowAutograd below;
  check_map("grad", upstream);
  const bool channels_last = is_channels_last(upstream);
  const at::Tensor grad = channels_last ? upstream : upstream.contiguous();
  const at::Tensor grad_levels = empty_levels(grad, packed_sizes(sizes), channels_last);
  if (grad.numel() == 0) return grad_levels;
  const UpsampleGeometry geometry(grad, channels_last, sizes, align_corners);
  const UpsampleShape& shape = geometry.shape;
  const ElementType type = element_type("grad", grad);
  const int64_t scratch = PSPNET_FAST_PER_ISA(upsample_add_scratch, shape);
  for_tasks(shape.planes * shape.rows, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
    PSPNET_FAST_PER_ISA(
        upsample_add_backward, type, shape, grad.const_data_ptr(), grad_levels.mutable_data_ptr(), own, begin, end);
  });
  return grad_levels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_add", upsample_add_cpu);
  m.impl("upsample_add_backward", upsample_add_backward_cpu);
}

}  // namespace pspnet_fast
