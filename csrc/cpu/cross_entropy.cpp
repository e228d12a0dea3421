// The cross-entropies and the arg-max of upsampled logits on CPU tensors: checks, geometry and threads round the kernels
// of cross_entropy_*_kernel.cpp. A cell row is summed by one thread in one order, and the sums of cell rows are added in
// theirs: the result does not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../geometry.h"
#include "cross_entropy_kernel.h"

namespace pspnet_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

LogitType logit_type(const at::Tensor& logits) {
  switch (logits.scalar_type()) {
    case at::kFloat: return LogitType::f32;
    case at::kDouble: return LogitType::f64;
    case at::kHalf: return LogitType::f16;
    case at::kBFloat16: return LogitType::bf16;
    default: TORCH_CHECK_TYPE(false, "logits must be floating-point, not ", logits.scalar_type());
  }
}

LabelType label_type(const char* name, at::ScalarType type) {
  switch (type) {
    case at::kLong: return LabelType::i64;
    case at::kInt: return LabelType::i32;
    case at::kByte: return LabelType::u8;
    default: TORCH_CHECK_TYPE(false, name, " must be int64, int32 or uint8, not ", type);
  }
}

at::ScalarType real_type(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor dense(const at::Tensor& logits) {
  const bool fits = logits.is_contiguous() || logits.is_contiguous(at::MemoryFormat::ChannelsLast);
  return fits ? logits : logits.contiguous();
}

// The geometry of one head, and the tensors that a problem points into.
struct Problem {
  at::Tensor logits, target, weight, pixel_weight;
  std::vector<int64_t> row_begin;
  std::vector<double> row_t, column_t;
  std::vector<int32_t> cell_of, step_of;
  CrossEntropyProblem raw{};

  Problem(const at::Tensor& given, int64_t out_height, int64_t out_width, bool align_corners) : logits(dense(given)) {
    TORCH_CHECK_VALUE(given.dim() == 4, "logits must be [B, C, h, w], not of shape ", given.sizes());
    raw.type = logit_type(logits);
    raw.logits = logits.const_data_ptr();
    raw.batch = logits.size(0), raw.classes = logits.size(1), raw.height = logits.size(2), raw.width = logits.size(3);
    raw.stride_b = logits.stride(0), raw.stride_c = logits.stride(1);
    raw.stride_h = logits.stride(2), raw.stride_w = logits.stride(3);
    raw.out_height = out_height, raw.out_width = out_width;

    row_begin.assign(raw.height + 1, out_height);
    for (int64_t y = out_height - 1; y >= 0; --y) row_begin[bilinear_tap(y, raw.height, out_height, align_corners).lo] = y;
    for (int64_t r = raw.height - 1; r >= 0; --r) row_begin[r] = std::min(row_begin[r], row_begin[r + 1]);
    for (int64_t y = 0; y < out_height; ++y) row_t.push_back(bilinear_tap(y, raw.height, out_height, align_corners).t);

    raw.steps = 1;
    for (int64_t x = 0; x < out_width; ++x) {
      const Tap tap = bilinear_tap(x, raw.width, out_width, align_corners);
      const bool same_cell = x > 0 && cell_of.back() == tap.lo;
      step_of.push_back(same_cell ? step_of.back() + 1 : 0);
      cell_of.push_back(static_cast<int32_t>(tap.lo));
      column_t.push_back(tap.t);
      raw.steps = std::max<int64_t>(raw.steps, step_of.back() + 1);
    }
    raw.row_begin = row_begin.data(), raw.row_t = row_t.data(), raw.column_t = column_t.data();
    raw.cell_of = cell_of.data(), raw.step_of = step_of.data();
  }
  Problem(const Problem&) = delete;  // raw points into the vectors

  void score(
      const at::Tensor& labels, const OptionalTensor& class_weight, const OptionalTensor& weight_map,
      int64_t ignore_index, double label_smoothing) {
    TORCH_CHECK_VALUE(
        labels.dim() == 3 && labels.size(0) == raw.batch, "target must be [", raw.batch, ", H, W], not ", labels.sizes());
    target = labels.contiguous();
    raw.label_type = label_type("target", target.scalar_type());
    raw.target = target.const_data_ptr();
    raw.ignore_index = ignore_index, raw.smoothing = label_smoothing;
    const at::ScalarType real = real_type(logits);
    if (class_weight) {
      TORCH_CHECK_VALUE(
          class_weight->dim() == 1 && class_weight->size(0) == raw.classes, "weight must be [", raw.classes, "], not ",
          class_weight->sizes());
      weight = class_weight->to(real).contiguous();
      raw.class_weight = weight.const_data_ptr();
    }
    if (weight_map) {
      TORCH_CHECK_VALUE(
          weight_map->sizes() == labels.sizes(), "pixel_weight must be ", labels.sizes(), ", not ", weight_map->sizes());
      pixel_weight = weight_map->to(real).contiguous();
      raw.pixel_weight = pixel_weight.const_data_ptr();
    }
  }

  bool empty() const { return raw.batch * raw.out_height * raw.out_width == 0; }
};

struct Forward {
  at::Tensor total, divisor, lse, labels;
};

Forward run_forward(Problem& problem, bool per_pixel, bool want_labels) {
  CrossEntropyProblem& raw = problem.raw;
  const at::TensorOptions real = problem.logits.options().dtype(real_type(problem.logits)).memory_format(std::nullopt);
  const std::vector<int64_t> shape = {raw.batch, raw.out_height, raw.out_width};
  Forward result;
  result.lse = at::empty(shape, real);
  result.labels = at::empty(want_labels ? shape : std::vector<int64_t>{0}, real.dtype(at::kLong));
  if (per_pixel) result.total = at::empty(shape, real);

  const int64_t rows = raw.batch * raw.height;
  std::vector<double> losses(rows), divisors(rows);
  std::vector<int64_t> bad_labels(rows, kNoLabel);
  raw.lse = result.lse.mutable_data_ptr();
  raw.loss = per_pixel ? result.total.mutable_data_ptr() : nullptr;
  raw.labels_out_type = LabelType::i64;
  raw.labels_out = want_labels ? result.labels.mutable_data_ptr() : nullptr;
  raw.row_loss = losses.data(), raw.row_divisor = divisors.data(), raw.row_bad_label = bad_labels.data();
  if (!problem.empty()) {
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(cross_entropy_forward, raw, begin, end);
    });
  }

  double loss = 0, divisor = 0;
  for (int64_t i = 0; i < rows; ++i) {
    TORCH_CHECK_INDEX(bad_labels[i] == kNoLabel, "Target ", bad_labels[i], " is out of bounds.");
    loss += losses[i], divisor += divisors[i];
  }
  if (!per_pixel) result.total = at::scalar_tensor(loss, real);
  result.divisor = at::scalar_tensor(divisor, real);
  return result;
}

at::Tensor run_backward(Problem& problem, const at::Tensor& upstream, const at::Tensor& lse) {
  CrossEntropyProblem& raw = problem.raw;
  const at::Tensor grad_out = upstream.to(real_type(problem.logits)).contiguous();
  const at::Tensor log_sums = lse.contiguous();
  at::Tensor grad = at::empty_like(problem.logits, problem.logits.options().dtype(real_type(problem.logits)));
  if (problem.empty()) return grad.zero_().to(problem.logits.scalar_type());
  raw.lse = log_sums.data_ptr();
  raw.upstream = grad_out.const_data_ptr();
  raw.upstream_per_pixel = grad_out.dim() == 3;
  raw.grad = grad.mutable_data_ptr();
  for (int64_t parity : {0, 1}) {
    at::parallel_for(0, raw.batch * rows_of_parity(raw.height, parity), 1, [&](int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(cross_entropy_backward, raw, parity, begin, end);
    });
  }
  return grad.to(problem.logits.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy(
    const at::Tensor& logits, const at::Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, bool per_pixel,
    bool align_corners) {
  Problem problem(logits, target.size(1), target.size(2), align_corners);
  problem.score(target, weight, pixel_weight, ignore_index, label_smoothing);
  const Forward result = run_forward(problem, per_pixel, false);
  return {result.total, result.divisor, result.lse};
}

at::Tensor upsample_cross_entropy_backward(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target, const at::Tensor& lse,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    bool, bool align_corners) {
  Problem problem(logits, target.size(1), target.size(2), align_corners);
  problem.score(target, weight, pixel_weight, ignore_index, label_smoothing);
  return run_backward(problem, grad, lse);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dual_cross_entropy(
    const at::Tensor& main, const at::Tensor& aux, const at::Tensor& target, bool labels, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, bool per_pixel,
    bool align_corners) {
  Problem main_problem(main, target.size(1), target.size(2), align_corners);
  Problem aux_problem(aux, target.size(1), target.size(2), align_corners);
  main_problem.score(target, weight, pixel_weight, ignore_index, label_smoothing);
  aux_problem.score(target, weight, pixel_weight, ignore_index, label_smoothing);
  const Forward first = run_forward(main_problem, per_pixel, labels);
  const Forward second = run_forward(aux_problem, per_pixel, false);
  return {first.total, second.total, first.divisor, first.lse, second.lse, first.labels};
}

std::tuple<at::Tensor, at::Tensor> dual_cross_entropy_backward(
    const at::Tensor& grad_main, const at::Tensor& grad_aux, const at::Tensor& main, const at::Tensor& aux,
    const at::Tensor& target, const at::Tensor& lse_main, const at::Tensor& lse_aux, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, bool per_pixel,
    bool align_corners) {
  const auto one = [&](const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& lse) {
    return upsample_cross_entropy_backward(
        grad, logits, target, lse, weight, pixel_weight, ignore_index, label_smoothing, per_pixel, align_corners);
  };
  return {one(grad_main, main, lse_main), one(grad_aux, aux, lse_aux)};
}

at::Tensor upsample_argmax(
    const at::Tensor& logits, int64_t height, int64_t width, bool align_corners, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  Problem problem(logits, height, width, align_corners);
  at::Tensor labels =
      at::empty({logits.size(0), height, width}, logits.options().dtype(dtype).memory_format(std::nullopt));
  CrossEntropyProblem& raw = problem.raw;
  raw.labels_out_type = label_type("dtype", dtype);
  raw.labels_out = labels.mutable_data_ptr();
  if (!problem.empty()) {
    at::parallel_for(0, raw.batch * raw.height, 1, [&](int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(cross_entropy_forward, raw, begin, end);
    });
  }
  return labels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_cross_entropy", upsample_cross_entropy);
  m.impl("upsample_cross_entropy_backward", upsample_cross_entropy_backward);
  m.impl("dual_cross_entropy", dual_cross_entropy);
  m.impl("dual_cross_entropy_backward", dual_cross_entropy_backward);
  m.impl("upsample_argmax", upsample_argmax);
}

}  // namespace pspnet_fast
