// Sums of upsampled maps on CPU tensors: tables and tasks round upsample_add_kernel.cpp.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "pyramid_levels_kernel.h"
#include "tasks.h"

namespace pspnet_fast {
namespace {

struct AxisTables {
  std::vector<AxisTap> taps;
  std::vector<int32_t> first_reader, last;

  AxisTables(int64_t nodes, int64_t out, bool align_corners) : first_reader(nodes, 0), last(nodes, 0) {
    for (int32_t i = 0; i < out; ++i) {
      const Taps tap = bilinear_taps(i, nodes, out, align_corners);
      taps.push_back({tap.first, tap.second, tap.first_weight, tap.second_weight});
      for (const int32_t node : {tap.first, tap.second}) {
        if (last[node] == 0) first_reader[node] = i;
        last[node] = i + 1;
      }
    }
  }
};

// The geometry of one call, and what its pointers point into.
struct UpsampleGeometry {
  UpsampleProblem problem{};

  // `map` is the result or its gradient, dense.
  UpsampleGeometry(
      ElementType type, const at::Tensor& map, bool channels_last, at::IntArrayRef sizes, bool align_corners) {
    problem.type = type;
    problem.planes = channels_last ? map.size(0) : map.size(0) * map.size(1);
    problem.unit = channels_last ? map.size(1) : 1;
    problem.height = map.size(2), problem.width = map.size(3);
    problem.levels = static_cast<int64_t>(sizes.size()) / 2;
    tables_.reserve(sizes.size());
    int64_t widest = 0;
    for (int64_t l = 0; l < problem.levels; ++l) {
      const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
      const AxisTables& rows = tables_.emplace_back(height, problem.height, align_corners);
      const AxisTables& columns = tables_.emplace_back(width, problem.width, align_corners);
      levels_.push_back(
          {height, width, problem.packed_bins, problem.rows, rows.taps.data(), columns.taps.data(),
           rows.first_reader.data(), rows.last.data()});
      problem.packed_bins += height * width;
      problem.rows += height;
      widest = std::max(widest, width);
    }
    problem.level = levels_.data();
    const int64_t forward = (upsample_add_rows(problem) + 2) * problem.line();
    scratch_ = std::max(forward, problem.line() + widest * problem.unit) * accumulator(map).dtype().itemsize();
  }
  UpsampleGeometry(const UpsampleGeometry&) = delete;

  void run(Kernel<UpsampleProblem>* kernel, const at::Tensor& from, const at::Tensor& to, int64_t tasks) {
    problem.from = from.const_data_ptr(), problem.to = to.mutable_data_ptr();
    run_tasks(kernel, problem, tasks, scratch_);
  }

 private:
  std::vector<AxisTables> tables_;
  std::vector<UpsampleLevel> levels_;
  int64_t scratch_;  // bytes, for either direction
};

at::Tensor upsample_add_cpu(
    const at::Tensor& levels, const std::optional<at::Tensor>& base, int64_t height, int64_t width,
    at::IntArrayRef sizes, bool align_corners, bool last_without_base) {
  const at::AutoDispatchBelowAutograd below;
  check_upsample_add(levels, base, height, width, sizes);
  const bool channels_last = base ? is_channels_last(*base) : last_without_base;
  const at::Tensor y = empty_map(levels, height, width, channels_last);
  if (y.numel() == 0) return y;
  UpsampleGeometry geometry(element_type("levels", levels), y, channels_last, sizes, align_corners);
  // [planes, packed bins, unit]
  const at::Tensor packed = (channels_last ? levels.transpose(1, 2) : levels).contiguous();
  const at::Tensor onto = base && !channels_last ? base->contiguous() : base.value_or(at::Tensor());
  geometry.problem.base = base ? onto.const_data_ptr() : nullptr;
  const int64_t runs = ceil_div(height, upsample_add_rows(geometry.problem));
  geometry.run(PSPNET_FAST_PER_ISA(upsample_add), packed, y, geometry.problem.planes * runs);
  return y;
}

at::Tensor upsample_add_backward_cpu(const at::Tensor& upstream, at::IntArrayRef sizes, bool align_corners) {
  const at::AutoDispatchBelowAutograd below;
  check_map("grad", upstream);
  const bool channels_last = is_channels_last(upstream);
  const at::Tensor grad = channels_last ? upstream : upstream.contiguous();
  const at::Tensor grad_levels = empty_levels(grad, packed_sizes(sizes), channels_last);
  if (grad.numel() == 0) return grad_levels;
  UpsampleGeometry geometry(element_type("grad", grad), grad, channels_last, sizes, align_corners);
  const int64_t tasks = geometry.problem.planes * geometry.problem.rows;
  geometry.run(PSPNET_FAST_PER_ISA(upsample_add_backward), grad, grad_levels, tasks);
  return grad_levels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_add", upsample_add_cpu);
  m.impl("upsample_add_backward", upsample_add_backward_cpu);
}

}  // namespace pspnet_fast
