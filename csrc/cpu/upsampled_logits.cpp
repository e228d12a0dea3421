// The operators on upsampled logits on CPU tensors: checks, geometry and tasks round the kernels of
// upsampled_logits_kernel.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../geometry.h"
#include "../loss_options.h"
#include "../softmax_add_checks.h"
#include "../tensors.h"
#include "tasks.h"
#include "upsampled_logits_kernel.h"

namespace pspnet_fast {
namespace {

at::Tensor in_own_layout(const at::Tensor& logits) { return logits.contiguous(format_of(logits)); }

// The geometry of `logits` upsampled to [out_height, out_width]; `problem` points into it.
struct Upsampling {
  Cells rows, columns;

  Upsampling(
      UpsampledLogits& problem, const at::Tensor& logits, int64_t out_height, int64_t out_width, bool align_corners) {
    problem.type = element_type("logits", logits);
    TORCH_CHECK_VALUE(
        logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
        "logits must be [B, C, h, w] with C, h and w at least 1, not of shape ", logits.sizes());
    rows = cut_cells(logits.size(2), out_height, align_corners);
    columns = cut_cells(logits.size(3), out_width, align_corners);
    problem.batch = logits.size(0), problem.classes = logits.size(1);
    problem.stride_b = logits.stride(0), problem.stride_c = logits.stride(1);
    problem.stride_h = logits.stride(2), problem.stride_w = logits.stride(3);
    problem.rows = axis(rows, logits.size(2)), problem.columns = axis(columns, logits.size(3));
    problem.out_height = out_height, problem.out_width = out_width;
  }
  Upsampling(const Upsampling&) = delete;

 private:
  static CellAxis axis(const Cells& cells, int64_t nodes) {
    const int64_t most = std::max<int64_t>(1, cells.most());
    return {nodes, cells.size(), cells.first_node, most, cells.begin.data(), cells.count.data(), cells.start.data(),
            cells.step};
  }
};

// ---- Arg-max -------------------------------------------------------------------------------------------------------

void find_argmax(const ArgmaxProblem& p) {
  const int64_t blocks = ceil_div(p.batch * p.rows.cells, kArgmaxBlock);
  run_tasks(PSPNET_FAST_PER_ISA(upsample_argmax), p, blocks, PSPNET_FAST_PER_ISA(argmax_scratch)(p));
}

at::Tensor upsample_argmax(
    const at::Tensor& given, int64_t height, int64_t width, bool align_corners, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  const at::Tensor logits = in_own_layout(given);
  ArgmaxProblem p{};
  const Upsampling upsampling(p, logits, height, width, align_corners);
  at::Tensor labels =
      at::empty({logits.size(0), height, width}, logits.options().dtype(dtype).memory_format(std::nullopt));
  p.logits = logits.const_data_ptr();
  p.out_type = label_type("dtype", dtype);
  p.out = labels.mutable_data_ptr();
  find_argmax(p);
  return labels;
}

// Labels [B, H, W] of upsampled logits and the number of those that are `target`; each empty unless wanted.
std::tuple<at::Tensor, at::Tensor> labels_and_correct(
    const at::Tensor& given, const at::Tensor& target, const LossOptions& options, bool labels, bool correct) {
  const at::TensorOptions integers = given.options().dtype(at::kLong).memory_format(std::nullopt);
  at::Tensor best = labels ? at::empty(target.sizes(), integers) : at::empty({0}, integers);
  if (!labels && !correct) return {best, at::empty({0}, integers)};

  const at::Tensor logits = in_own_layout(given), truth = target.contiguous();
  ArgmaxProblem p{};
  const Upsampling upsampling(p, logits, target.size(1), target.size(2), options.align_corners);
  std::vector<int64_t> counts(p.batch * p.rows.cells);
  p.logits = logits.const_data_ptr();
  p.out_type = LabelType::i64;
  p.out = labels ? best.mutable_data_ptr() : nullptr;
  if (correct) {
    p.target = truth.const_data_ptr();
    p.label_type = label_type("target", truth.scalar_type());
    p.ignore_index = options.ignore_index;
    p.correct = counts.data();
  }
  if (target.numel() > 0) find_argmax(p);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  return {best, correct ? at::scalar_tensor(total, integers) : at::empty({0}, integers)};
}

// ---- Cross-entropies -----------------------------------------------------------------------------------------------

constexpr int64_t kTaskRows = 8;  // cell rows of a task; of the shapes only, so that threads do not change the sums

// The part of a task's gradient that falls on the last row of nodes of the task above.
template <typename Real>
void add_boundary(const CrossEntropyProblem& p, const CrossEntropyHead& head, int64_t task) {
  const int64_t row = task_begin(p, task % p.tasks_per_image), width = p.columns.nodes;
  if (row == 0) return;
  const Real* from = static_cast<const Real*>(head.boundary) + task * p.classes * width;
  Real* to = static_cast<Real*>(head.grad) + task / p.tasks_per_image * p.stride_b + node_at(p.rows, row) * p.stride_h;
  for (int64_t c = 0; c < p.classes; ++c) {
    for (int64_t w = 0; w < width; ++w) to[c * p.stride_c + w * p.stride_w] += from[c * width + w];
  }
}

void sum_losses(const CrossEntropyProblem& p) {
  const int64_t tasks = p.batch * p.tasks_per_image;
  run_tasks(PSPNET_FAST_PER_ISA(upsample_cross_entropy), p, tasks, PSPNET_FAST_PER_ISA(cross_entropy_scratch)(p));
  for (int64_t i = 0; i < p.heads && p.head[0].grad; ++i) {
    for (int64_t task = 0; task < tasks; ++task) {
      p.type == ElementType::f64 ? add_boundary<double>(p, p.head[i], task) : add_boundary<float>(p, p.head[i], task);
    }
  }
}

// Losses of one or two heads of one size, and the gradients of their sums if wanted and not per pixel.
LossSums cross_entropy(
    const LossOptions& options, const std::vector<at::Tensor>& heads, const at::Tensor& target, bool per_pixel,
    bool gradient) {
  TORCH_CHECK_VALUE(target.dim() == 3, "target must be [B, H, W], not of shape ", target.sizes());
  const at::TensorOptions floats = accumulator(heads[0]);
  std::vector<at::Tensor> logits;
  for (const at::Tensor& head : heads) logits.push_back(in_own_layout(head));

  gradient = gradient && !per_pixel;
  CrossEntropyProblem p{};
  const Upsampling upsampling(p, logits[0], target.size(1), target.size(2), options.align_corners);
  const LossTensors given(options, target, p.batch, p.classes, accumulator_type(logits[0]));
  p.label_type = label_type("target", target.scalar_type()), p.target = given.target.const_data_ptr();
  p.class_weight = given.class_weights(), p.pixel_weight = given.pixel_weights();
  p.ignore_index = options.ignore_index, p.smoothing = options.label_smoothing;
  p.heads = static_cast<int64_t>(heads.size());
  p.tasks_per_image = std::max<int64_t>(1, p.rows.cells / kTaskRows);
  const int64_t tasks = p.batch * p.tasks_per_image;
  std::vector<double> sums(2 * tasks), divisors(tasks);
  std::vector<int64_t> bad_labels(tasks, kNoLabel);
  p.divisor = divisors.data(), p.bad_label = bad_labels.data();

  LossSums result;
  at::Tensor boundary[2];
  for (int64_t i = 0; i < p.heads; ++i) {
    p.head[i].logits = logits[i].const_data_ptr();
    p.head[i].sum = sums.data() + i * tasks;
    result.states[i] = gradient ? at::empty_like(logits[i], floats) : at::empty({0}, floats);
    if (gradient) {
      boundary[i] = at::empty({tasks, p.classes, p.columns.nodes}, floats);
      p.head[i].grad = result.states[i].mutable_data_ptr();
      p.head[i].boundary = boundary[i].mutable_data_ptr();
    }
    if (per_pixel) {
      result.losses[i] = at::empty(target.sizes(), floats);
      p.head[i].loss = result.losses[i].mutable_data_ptr();
    }
  }

  if (target.numel() > 0) {
    sum_losses(p);
  } else if (gradient) {
    for (int64_t i = 0; i < p.heads; ++i) result.states[i].zero_();
  }
  double divisor = 0, total[2] = {0, 0};
  for (int64_t task = 0; task < tasks; ++task) {
    TORCH_CHECK_INDEX(bad_labels[task] == kNoLabel, "Target ", bad_labels[task], " is out of bounds.");
    divisor += divisors[task];
    for (int64_t i = 0; i < p.heads; ++i) total[i] += sums[i * tasks + task];
  }
  result.divisor = at::scalar_tensor(divisor, floats);
  for (int64_t i = 0; i < p.heads && !per_pixel; ++i) result.losses[i] = at::scalar_tensor(total[i], floats);
  return result;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy(
    const LossOptions& options, const at::Tensor& logits, const at::Tensor& target, bool per_pixel, bool gradient) {
  const LossSums sums = cross_entropy(options, {logits}, target, per_pixel, gradient);
  return {sums.losses[0], sums.divisor, sums.states[0]};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dual_cross_entropy(
    const LossOptions& options, const at::Tensor& main, const at::Tensor& aux, const at::Tensor& target, bool per_pixel,
    bool gradient, bool labels, bool correct) {
  LossSums sums;
  if (main.sizes() == aux.sizes() && is_channels_last(main) == is_channels_last(aux)) {
    sums = cross_entropy(options, {main, aux}, target, per_pixel, gradient);
  } else {
    sums = cross_entropy(options, {main}, target, per_pixel, gradient);
    const LossSums second = cross_entropy(options, {aux}, target, per_pixel, gradient);
    sums.losses[1] = second.losses[0], sums.states[1] = second.states[0];
  }
  const auto [best, count] = labels_and_correct(main, target, options, labels, correct);
  return {sums.losses[0], sums.losses[1], sums.divisor, sums.states[0], sums.states[1], best, count};
}

// ---- Probabilities added into a map --------------------------------------------------------------------------------

// The cell of every output position.
std::vector<int32_t> cell_of(const Cells& cells, int64_t out) {
  std::vector<int32_t> cell(out);
  for (int64_t q = 0; q < cells.size(); ++q) {
    std::fill_n(cell.begin() + (cells.count[q] ? cells.begin[q] : 0), cells.count[q], static_cast<int32_t>(q));
  }
  return cell;
}

AxisTable table(
    const char* name, const std::optional<at::Tensor>& index, const std::optional<at::Tensor>& weight, int64_t size) {
  if (!index.has_value()) return {nullptr, nullptr};
  const int32_t* position = index->const_data_ptr<int32_t>();
  for (int64_t i = 0; i < index->numel(); ++i) {
    TORCH_CHECK_VALUE(
        position[i] >= 0 && position[i] < size, name, ".position must be in [0, ", size,
        ") for the upsampled map, not ", position[i], " for position ", i / 2);
  }
  return {position, weight->const_data_ptr()};
}

void upsample_softmax_add(
    at::Tensor& total, const at::Tensor& given, int64_t height, int64_t width, bool align_corners, bool flip,
    double weight, const std::optional<at::Tensor>& row_index, const std::optional<at::Tensor>& row_weight,
    const std::optional<at::Tensor>& column_index, const std::optional<at::Tensor>& column_weight) {
  check_softmax_add(total, given, height, width, row_index, row_weight, column_index, column_weight);
  const at::Tensor logits = in_own_layout(given);
  SoftmaxAddProblem p{};
  const Upsampling upsampling(p, logits, height, width, align_corners);
  const std::vector<int32_t> cell_of_row = cell_of(upsampling.rows, height);
  const std::vector<int32_t> cell_of_column = cell_of(upsampling.columns, width);
  p.logits = logits.const_data_ptr();
  p.cell_of_row = cell_of_row.data(), p.cell_of_column = cell_of_column.data();
  p.flip = flip, p.weight = weight;
  p.row_table = table("rows", row_index, row_weight, height);
  p.column_table = table("columns", column_index, column_weight, width);
  if (total.numel() == 0) return;
  p.total = total.mutable_data_ptr();
  p.total_height = total.size(2), p.total_width = total.size(3);
  p.total_stride_b = total.stride(0), p.total_stride_c = total.stride(1);
  p.total_stride_h = total.stride(2), p.total_stride_w = total.stride(3);

  const int64_t blocks = p.batch * ceil_div(p.total_height, kSoftmaxBlock);
  run_tasks(PSPNET_FAST_PER_ISA(upsample_softmax_add), p, blocks, PSPNET_FAST_PER_ISA(softmax_add_scratch)(p));
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_argmax", upsample_argmax);
  m.impl("upsample_cross_entropy", with_loss_options(upsample_cross_entropy));
  m.impl("dual_cross_entropy", with_loss_options(dual_cross_entropy));
  m.impl("upsample_softmax_add", upsample_softmax_add);
}

}  // namespace pspnet_fast
