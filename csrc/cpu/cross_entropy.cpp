// The cross-entropies of upsampled logits on CPU tensors: checks, geometry and threads round cross_entropy_kernel.cpp.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <limits>
#include <string_view>
#include <tuple>
#include <vector>

#include "upsampled_logits.h"

namespace pspnet_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr int64_t kChunkRows = 8;  // cell rows of a task; of the shapes only, so that threads do not change the sums

struct Labels {
  at::Tensor target, class_weight, pixel_weight;

  Labels(
      CrossEntropyProblem& p, const at::Tensor& labels, const OptionalTensor& weights, const OptionalTensor& weight_map,
      at::ScalarType real) {
    TORCH_CHECK_VALUE(
        labels.dim() == 3 && labels.size(0) == p.batch, "target must be [", p.batch, ", H, W], not ", labels.sizes());
    target = labels.contiguous();
    p.label_type = label_type("target", target.scalar_type());
    p.target = target.const_data_ptr();
    if (weights) {
      TORCH_CHECK_VALUE(
          weights->dim() == 1 && weights->size(0) == p.classes, "weight must be [", p.classes, "], not ",
          weights->sizes());
      class_weight = weights->to(real).contiguous();
      p.class_weight = class_weight.const_data_ptr();
    }
    if (weight_map) {
      TORCH_CHECK_VALUE(
          weight_map->sizes() == labels.sizes(), "pixel_weight must be ", labels.sizes(), ", not ", weight_map->sizes());
      pixel_weight = weight_map->to(real).contiguous();
      p.pixel_weight = pixel_weight.const_data_ptr();
    }
  }
};

struct Options {
  const OptionalTensor& weight;
  const OptionalTensor& pixel_weight;
  int64_t ignore_index;
  double label_smoothing;
  std::string_view reduction;  // none, sum, mean
  double denominator;          // of the mean: 0 the weights of the labelled pixels, -1 all pixels, or a number
  std::string_view empty;      // the mean of nothing: nan, zero
  bool align_corners;

  bool per_pixel() const { return reduction == "none"; }

  // d loss / d(sum of losses)
  double scale(double divisor, int64_t pixels) const {
    if (reduction != "mean") return 1;
    if (denominator != 0) divisor = denominator > 0 ? denominator : static_cast<double>(pixels);
    return divisor == 0 ? 0 : 1 / divisor;
  }
  double loss(double sum, double scale) const {
    if (scale != 0) return sum * scale;
    return empty == "zero" ? 0 : std::numeric_limits<double>::quiet_NaN();
  }
};

struct Losses {
  at::Tensor loss[2], state[2], scale;
};

// The part of a chunk's gradient that falls on the last row of nodes of the chunk above.
template <typename Real>
void add_boundary(const CrossEntropyProblem& p, const CrossEntropyHead& head, int64_t task) {
  const int64_t row = chunk_begin(p, task % p.chunks), width = p.columns.nodes;
  if (row == 0) return;
  const Real* from = static_cast<const Real*>(head.boundary) + task * p.classes * width;
  Real* to = static_cast<Real*>(head.grad) + task / p.chunks * p.stride_b + node_at(p.rows, row) * p.stride_h;
  for (int64_t c = 0; c < p.classes; ++c) {
    for (int64_t w = 0; w < width; ++w) to[c * p.stride_c + w * p.stride_w] += from[c * width + w];
  }
}

void run(const CrossEntropyProblem& p) {
  run_tasks(p.batch * p.chunks, PSPNET_FAST_PER_ISA(cross_entropy_scratch, p), [&](int64_t task, void* scratch) {
    PSPNET_FAST_PER_ISA(cross_entropy_chunk, p, task, scratch);
  });
  for (int64_t i = 0; i < p.heads; ++i) {
    if (p.head[i].grad == nullptr) continue;
    for (int64_t task = 0; task < p.batch * p.chunks; ++task) {
      p.type == LogitType::f64 ? add_boundary<double>(p, p.head[i], task) : add_boundary<float>(p, p.head[i], task);
    }
  }
}

// Losses of one or two heads of one size, and d(sum of losses)/d(logits) if wanted and not per pixel.
Losses cross_entropy(
    const std::vector<at::Tensor>& heads, const at::Tensor& target, bool gradient, const Options& options) {
  TORCH_CHECK_VALUE(target.dim() == 3, "target must be [B, H, W], not of shape ", target.sizes());
  const at::ScalarType real = real_type(heads[0]);
  const at::TensorOptions floats = heads[0].options().dtype(real).memory_format(std::nullopt);
  const bool channels_last = in_channels_last(heads[0]);
  std::vector<at::Tensor> logits;
  for (const at::Tensor& head : heads) logits.push_back(dense(head, channels_last));

  gradient = gradient && !options.per_pixel();
  CrossEntropyProblem p{};
  const Upsampling upsampling(p, logits[0], target.size(1), target.size(2), options.align_corners);
  const Labels labels(p, target, options.weight, options.pixel_weight, real);
  p.ignore_index = options.ignore_index, p.smoothing = options.label_smoothing;
  p.heads = static_cast<int64_t>(heads.size());
  p.chunks = std::max<int64_t>(1, p.rows.cells / kChunkRows);
  const int64_t tasks = p.batch * p.chunks;
  std::vector<double> sums(2 * tasks), divisors(tasks);
  std::vector<int64_t> bad_labels(tasks, kNoLabel);
  p.divisor = divisors.data(), p.bad_label = bad_labels.data();

  Losses losses;
  at::Tensor boundary[2];
  for (int64_t i = 0; i < p.heads; ++i) {
    p.head[i].logits = logits[i].const_data_ptr();
    p.head[i].sum = sums.data() + i * tasks;
    losses.state[i] = gradient ? at::empty_like(logits[i], logits[i].options().dtype(real)) : at::empty({0}, floats);
    if (gradient) {
      boundary[i] = at::empty({tasks, p.classes, p.columns.nodes}, floats);
      p.head[i].grad = losses.state[i].mutable_data_ptr();
      p.head[i].boundary = boundary[i].mutable_data_ptr();
    }
    if (options.per_pixel()) {
      losses.loss[i] = at::empty(target.sizes(), floats);
      p.head[i].loss = losses.loss[i].mutable_data_ptr();
    }
  }

  if (target.numel() > 0) {
    run(p);
  } else if (gradient) {
    for (int64_t i = 0; i < p.heads; ++i) losses.state[i].zero_();
  }
  double divisor = 0, total[2] = {0, 0};
  for (int64_t task = 0; task < tasks; ++task) {
    TORCH_CHECK_INDEX(bad_labels[task] == kNoLabel, "Target ", bad_labels[task], " is out of bounds.");
    divisor += divisors[task];
    for (int64_t i = 0; i < p.heads; ++i) total[i] += sums[i * tasks + task];
  }
  const double scale = options.scale(divisor, target.numel());
  losses.scale = at::scalar_tensor(scale, floats);
  for (int64_t i = 0; i < p.heads && !options.per_pixel(); ++i) {
    losses.loss[i] = at::scalar_tensor(options.loss(total[i], scale), floats);
  }
  return losses;
}

// Backward of a loss per pixel: the gradient of the sum of losses, each weighted by its upstream gradient.
at::Tensor weighted_gradient(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target, const Options& options) {
  const OptionalTensor weight =
      options.pixel_weight ? at::mul(grad, options.pixel_weight->to(grad.scalar_type())) : grad;
  const Options weighted{
      options.weight, weight, options.ignore_index, options.label_smoothing, "sum", 0, "nan", options.align_corners};
  return cross_entropy({logits}, target, true, weighted).state[0].to(logits.scalar_type());
}

at::Tensor backward(
    const at::Tensor& grad, const at::Tensor& scale, const at::Tensor& logits, const at::Tensor& target,
    const at::Tensor& state, const Options& options) {
  if (options.per_pixel()) return weighted_gradient(grad, logits, target, options);
  TORCH_CHECK(
      state.sizes() == logits.sizes(),
      "the cross-entropy was computed without its gradient: call the operator with gradient=True");
  return scaled(state, grad.item<double>() * scale.item<double>(), logits.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy(
    const at::Tensor& logits, const at::Tensor& target, bool gradient, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, std::string_view reduction,
    double denominator, std::string_view empty, bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  Losses losses = cross_entropy({logits}, target, gradient, options);
  return {losses.loss[0], losses.scale, losses.state[0]};
}

at::Tensor upsample_cross_entropy_backward(
    const at::Tensor& grad, const at::Tensor& scale, const at::Tensor& logits, const at::Tensor& target,
    const at::Tensor& state, const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index,
    double label_smoothing, std::string_view reduction, double denominator, std::string_view empty,
    bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  return backward(grad, scale, logits, target, state, options);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dual_cross_entropy(
    const at::Tensor& main, const at::Tensor& aux, const at::Tensor& target, bool gradient, bool labels, bool correct,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    std::string_view reduction, double denominator, std::string_view empty, bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  Losses losses;
  if (main.sizes() == aux.sizes() && in_channels_last(main) == in_channels_last(aux)) {
    losses = cross_entropy({main, aux}, target, gradient, options);
  } else {
    losses = cross_entropy({main}, target, gradient, options);
    const Losses second = cross_entropy({aux}, target, gradient, options);
    losses.loss[1] = second.loss[0], losses.state[1] = second.state[0];
  }
  const auto [best, count] = argmax(main, target, ignore_index, align_corners, labels, correct);
  return {losses.loss[0], losses.loss[1], losses.scale, losses.state[0], losses.state[1], best, count};
}

std::tuple<at::Tensor, at::Tensor> dual_cross_entropy_backward(
    const at::Tensor& grad_main, const at::Tensor& grad_aux, const at::Tensor& scale, const at::Tensor& main,
    const at::Tensor& aux, const at::Tensor& target, const at::Tensor& main_state, const at::Tensor& aux_state,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    std::string_view reduction, double denominator, std::string_view empty, bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  return {
      backward(grad_main, scale, main, target, main_state, options),
      backward(grad_aux, scale, aux, target, aux_state, options)};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_cross_entropy", upsample_cross_entropy);
  m.impl("upsample_cross_entropy_backward", upsample_cross_entropy_backward);
  m.impl("dual_cross_entropy", dual_cross_entropy);
  m.impl("dual_cross_entropy_backward", dual_cross_entropy_backward);
}

}  // namespace pspnet_fast
