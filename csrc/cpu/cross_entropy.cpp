// The cross-entropies of upsampled logits on CPU tensors: checks, geometry and threads round cross_entropy_kernel.cpp.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

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
  bool per_pixel, align_corners;
};

struct Losses {
  at::Tensor total[2], state[2], divisor;
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

// Losses of one or two heads of one size, and d(sum of losses)/d(logits) if wanted.
Losses cross_entropy(
    const std::vector<at::Tensor>& heads, const at::Tensor& target, bool gradient, const Options& options) {
  TORCH_CHECK_VALUE(target.dim() == 3, "target must be [B, H, W], not of shape ", target.sizes());
  const at::ScalarType real = real_type(heads[0]);
  const at::TensorOptions floats = heads[0].options().dtype(real).memory_format(std::nullopt);
  const bool channels_last = in_channels_last(heads[0]);
  std::vector<at::Tensor> logits;
  for (const at::Tensor& head : heads) logits.push_back(dense(head, channels_last));

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
    if (options.per_pixel) {
      losses.total[i] = at::empty(target.sizes(), floats);
      p.head[i].loss = losses.total[i].mutable_data_ptr();
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
  losses.divisor = at::scalar_tensor(divisor, floats);
  for (int64_t i = 0; i < p.heads && !options.per_pixel; ++i) losses.total[i] = at::scalar_tensor(total[i], floats);
  return losses;
}

// Backward of `per_pixel`: the gradient of the sum of losses, each pixel weighted by its upstream gradient.
at::Tensor weighted_gradient(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target, const Options& options) {
  const OptionalTensor weight = options.pixel_weight ? at::mul(grad, options.pixel_weight->to(grad.scalar_type())) : grad;
  const Options weighted{
      options.weight, weight, options.ignore_index, options.label_smoothing, false, options.align_corners};
  return cross_entropy({logits}, target, true, weighted).state[0].to(logits.scalar_type());
}

at::Tensor backward(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target, const at::Tensor& state,
    const Options& options) {
  if (options.per_pixel) return weighted_gradient(grad, logits, target, options);
  TORCH_CHECK(state.numel() == logits.numel(), "the gradient was not kept: call forward with gradient = true");
  return scaled(state, grad, logits.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy(
    const at::Tensor& logits, const at::Tensor& target, bool gradient, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, bool per_pixel,
    bool align_corners) {
  const Options options{weight, pixel_weight, ignore_index, label_smoothing, per_pixel, align_corners};
  Losses losses = cross_entropy({logits}, target, gradient && !per_pixel, options);
  return {losses.total[0], losses.divisor, losses.state[0]};
}

at::Tensor upsample_cross_entropy_backward(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& target, const at::Tensor& state,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    bool per_pixel, bool align_corners) {
  const Options options{weight, pixel_weight, ignore_index, label_smoothing, per_pixel, align_corners};
  return backward(grad, logits, target, state, options);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dual_cross_entropy(
    const at::Tensor& main, const at::Tensor& aux, const at::Tensor& target, bool gradient, bool labels, bool correct,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    bool per_pixel, bool align_corners) {
  const Options options{weight, pixel_weight, ignore_index, label_smoothing, per_pixel, align_corners};
  gradient = gradient && !per_pixel;
  Losses losses;
  if (main.sizes() == aux.sizes()) {
    losses = cross_entropy({main, aux}, target, gradient, options);
  } else {
    losses = cross_entropy({main}, target, gradient, options);
    const Losses second = cross_entropy({aux}, target, gradient, options);
    losses.total[1] = second.total[0], losses.state[1] = second.state[0];
  }
  const auto [best, count] = argmax(main, target, ignore_index, align_corners, labels, correct);
  return {losses.total[0], losses.total[1], losses.divisor, losses.state[0], losses.state[1], best, count};
}

std::tuple<at::Tensor, at::Tensor> dual_cross_entropy_backward(
    const at::Tensor& grad_main, const at::Tensor& grad_aux, const at::Tensor& main, const at::Tensor& aux,
    const at::Tensor& target, const at::Tensor& main_state, const at::Tensor& aux_state, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, bool per_pixel,
    bool align_corners) {
  const Options options{weight, pixel_weight, ignore_index, label_smoothing, per_pixel, align_corners};
  return {
      backward(grad_main, main, target, main_state, options), backward(grad_aux, aux, target, aux_state, options)};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("upsample_cross_entropy", upsample_cross_entropy);
  m.impl("upsample_cross_entropy_backward", upsample_cross_entropy_backward);
  m.impl("dual_cross_entropy", dual_cross_entropy);
  m.impl("dual_cross_entropy_backward", dual_cross_entropy_backward);
}

}  // namespace pspnet_fast
