// The cross-entropies of upsampled logits on CPU tensors: checks, geometry and threads round cross_entropy_kernel.cpp.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../loss_options.h"
#include "upsampled_logits.h"

namespace pspnet_fast {
namespace {

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

void run(const CrossEntropyProblem& p) {
  const int64_t tasks = p.batch * p.tasks_per_image;
  run_tasks(tasks, PSPNET_FAST_PER_ISA(cross_entropy_scratch, p), [&](int64_t task, void* scratch) {
    PSPNET_FAST_PER_ISA(cross_entropy_task, p, task, scratch);
  });
  for (int64_t i = 0; i < p.heads; ++i) {
    if (p.head[i].grad == nullptr) continue;
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
  const at::ScalarType real = real_type(heads[0]);
  const at::TensorOptions floats = heads[0].options().dtype(real).memory_format(std::nullopt);
  const bool channels_last = in_channels_last(heads[0]);
  std::vector<at::Tensor> logits;
  for (const at::Tensor& head : heads) logits.push_back(dense(head, channels_last));

  gradient = gradient && !per_pixel;
  CrossEntropyProblem p{};
  const Upsampling upsampling(p, logits[0], target.size(1), target.size(2), options.align_corners);
  const LossTensors given(options, target, p.batch, p.classes, real);
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
    result.states[i] = gradient ? at::empty_like(logits[i], logits[i].options().dtype(real)) : at::empty({0}, floats);
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
    run(p);
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
  if (main.sizes() == aux.sizes() && in_channels_last(main) == in_channels_last(aux)) {
    sums = cross_entropy(options, {main, aux}, target, per_pixel, gradient);
  } else {
    sums = cross_entropy(options, {main}, target, per_pixel, gradient);
    const LossSums second = cross_entropy(options, {aux}, target, per_pixel, gradient);
    sums.losses[1] = second.losses[0], sums.states[1] = second.states[0];
  }
  const auto [best, count] = argmax(main, target, options.ignore_index, options.align_corners, labels, correct);
  return {sums.losses[0], sums.losses[1], sums.divisor, sums.states[0], sums.states[1], best, count};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_cross_entropy", with_loss_options(upsample_cross_entropy));
  m.impl("dual_cross_entropy", with_loss_options(dual_cross_entropy));
}

}  // namespace pspnet_fast
