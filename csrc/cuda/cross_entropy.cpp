// The cross-entropies of upsampled logits on CUDA tensors: checks, geometry and scratch round the kernels of
// cross_entropy.cu.
#include "cross_entropy.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mul.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <string_view>
#include <tuple>
#include <vector>

#include "label_flag.h"
#include "upsampled_tensors.h"

namespace pspnet_fast::cuda {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

struct Options {
  const OptionalTensor& weight;
  const OptionalTensor& pixel_weight;
  int64_t ignore_index;
  double label_smoothing;
  std::string_view reduction;  // none, sum, mean
  double denominator;          // of the mean: 0 what labelled pixels weigh, -1 the number of all pixels, or a number
  std::string_view empty;      // the mean of nothing: nan, zero
  bool align_corners;

  bool per_pixel() const { return reduction == "none"; }

  Reduction with(int64_t pixels) const {
    const double nothing = empty == "zero" ? 0 : std::numeric_limits<double>::quiet_NaN();
    return {reduction == "mean", denominator < 0 ? static_cast<double>(pixels) : denominator, nothing};
  }
};

struct Losses {
  at::Tensor loss[2], state[2], scale;
};

// What a problem points into.
struct Labels {
  at::Tensor target, class_weight, pixel_weight;

  Labels(CrossEntropyProblem& p, const at::Tensor& labels, const Options& options, at::ScalarType real) {
    TORCH_CHECK_VALUE(
        labels.size(0) == p.batch, "target must be [", p.batch, ", H, W], not of shape ", labels.sizes());
    target = labels.contiguous();
    p.out_height = static_cast<int32_t>(target.size(1)), p.out_width = static_cast<int32_t>(target.size(2));
    p.labels = {
        target.const_data_ptr(), label_type("target", target.scalar_type()), options.ignore_index,
        label_flag(target.get_device())};
    if (options.weight) {
      TORCH_CHECK_VALUE(
          options.weight->dim() == 1 && options.weight->size(0) == p.classes, "weight must be [", p.classes, "], not ",
          options.weight->sizes());
      class_weight = options.weight->to(real).contiguous();
      p.class_weight = class_weight.const_data_ptr();
    }
    if (options.pixel_weight) {
      TORCH_CHECK_VALUE(
          options.pixel_weight->sizes() == labels.sizes(), "pixel_weight must be ", labels.sizes(), ", not ",
          options.pixel_weight->sizes());
      pixel_weight = options.pixel_weight->to(real).contiguous();
      p.pixel_weight = pixel_weight.const_data_ptr();
    }
  }
};

int32_t multiprocessors(c10::DeviceIndex device) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// The gradient has the layout of the logits if that is NCHW or channels_last, else it is NCHW.
at::Tensor empty_gradient(const at::Tensor& logits, at::ScalarType type) {
  const bool dense = logits.is_contiguous() || logits.is_contiguous(at::MemoryFormat::ChannelsLast);
  return at::empty_like(
      logits, logits.options().dtype(type), dense ? at::MemoryFormat::Preserve : at::MemoryFormat::Contiguous);
}

// A head of a problem, and its scratch.
struct Head {
  at::Tensor partial, edges;

  Head(
      CrossEntropyHead& head, const at::Tensor& logits, const CrossEntropyProblem& p, const Options& options,
      Losses& losses, int i, bool gradient) {
    const at::TensorOptions floats = losses.scale.options();
    head.logits = logit_map(logits);
    head.rows = upsampled_axis(logits.size(2), p.out_height, options.align_corners);
    head.columns = upsampled_axis(logits.size(3), p.out_width, options.align_corners);
    plan_cross_entropy(head, p.batch, p.heads, multiprocessors(logits.get_device()));
    const int64_t rows = head.rows.nodes - head.first_row;
    partial = at::empty({p.batch, head.tiles, rows, 2}, floats.dtype(at::kDouble));
    head.partial = static_cast<double2*>(partial.mutable_data_ptr());

    const std::vector<int64_t> map = {p.batch, p.out_height, p.out_width};
    losses.loss[i] = at::empty(options.per_pixel() ? map : std::vector<int64_t>{}, floats);
    if (options.per_pixel()) head.loss = losses.loss[i].mutable_data_ptr();
    losses.state[i] = gradient ? empty_gradient(logits, floats.dtype().toScalarType()) : at::empty({0}, floats);
    if (!gradient) return;
    const at::Tensor& state = losses.state[i];
    edges = at::empty({head.strips - 1, p.batch, p.classes, head.columns.nodes}, floats);
    head.grad = state.mutable_data_ptr();
    head.grad_stride = {state.stride(0), state.stride(1), state.stride(2), state.stride(3)};
    head.edges = edges.mutable_data_ptr();
  }
};

// Of an empty batch.
Losses nothing_to_score(
    const std::vector<at::Tensor>& heads, const at::Tensor& target, bool gradient, const Options& options) {
  const at::ScalarType real = real_type(heads[0]);
  const at::TensorOptions floats = heads[0].options().dtype(real).memory_format(std::nullopt);
  const Reduction reduction = options.with(0);
  const bool nothing = reduction.mean && reduction.divisor == 0;
  Losses losses;
  losses.scale = at::full({}, nothing ? 0 : reduction.mean ? 1 / reduction.divisor : 1, floats);
  for (size_t i = 0; i < heads.size(); ++i) {
    losses.loss[i] = at::full(
        options.per_pixel() ? target.sizes() : at::IntArrayRef{}, nothing ? reduction.nothing : 0, floats);
    losses.state[i] = gradient ? empty_gradient(heads[i], real).zero_() : at::empty({0}, floats);
  }
  return losses;
}

// Losses of one or two heads, and d(sum of losses)/d(logits) if wanted and not per pixel.
Losses cross_entropy(
    const std::vector<at::Tensor>& heads, const at::Tensor& target, bool gradient, const Options& options) {
  TORCH_CHECK_VALUE(target.dim() == 3, "target must be [B, H, W], not of shape ", target.sizes());
  for (const at::Tensor& logits : heads) check_logits(logits, target.size(1), target.size(2));
  const at::Tensor& first = heads[0];
  TORCH_CHECK_VALUE(first.size(1) <= kMaxClasses, "at most ", kMaxClasses, " classes, not ", first.size(1));
  const c10::cuda::OptionalCUDAGuard guard(first.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  raise_for_earlier_labels(first.get_device(), stream);
  gradient = gradient && !options.per_pixel();
  if (target.numel() == 0) return nothing_to_score(heads, target, gradient, options);

  CrossEntropyProblem p{};
  p.heads = static_cast<int32_t>(heads.size());
  p.batch = static_cast<int32_t>(first.size(0)), p.classes = static_cast<int32_t>(first.size(1));
  p.smoothing = options.label_smoothing, p.smoothed = options.label_smoothing > 0;
  const Labels labels(p, target, options, real_type(first));
  Losses losses;
  losses.scale = at::empty({}, first.options().dtype(real_type(first)).memory_format(std::nullopt));
  std::vector<Head> scratch;
  void* sums[2] = {nullptr, nullptr};
  for (int i = 0; i < p.heads; ++i) {
    scratch.emplace_back(p.head[i], heads[i], p, options, losses, i, gradient);
    if (!options.per_pixel()) sums[i] = losses.loss[i].mutable_data_ptr();
  }

  launch_cross_entropy(p, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  launch_cross_entropy_finish(p, options.with(target.numel()), sums, losses.scale.mutable_data_ptr(), stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  check_labels(first.get_device(), stream);
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

std::vector<at::Tensor> backward(
    const std::vector<at::Tensor>& grads, const at::Tensor& scale, const std::vector<at::Tensor>& heads,
    const at::Tensor& target, const std::vector<at::Tensor>& states, const Options& options) {
  const c10::cuda::OptionalCUDAGuard guard(heads[0].device());
  std::vector<at::Tensor> results;
  if (options.per_pixel()) {
    for (size_t i = 0; i < heads.size(); ++i) {
      results.push_back(weighted_gradient(grads[i], heads[i], target, options));
    }
    return results;
  }
  ScaledGradient scaled[2]{};
  for (size_t i = 0; i < heads.size(); ++i) {
    TORCH_CHECK(
        states[i].sizes() == heads[i].sizes(),
        "the cross-entropy was computed without its gradient: call the operator with gradient=True");
    TORCH_CHECK_TYPE(
        grads[i].scalar_type() == states[i].scalar_type() && scale.scalar_type() == states[i].scalar_type(),
        "grad and scale must be ", states[i].scalar_type(), ", not ", grads[i].scalar_type(), " and ",
        scale.scalar_type());
    results.push_back(at::empty_like(states[i], states[i].options().dtype(heads[i].scalar_type())));
    scaled[i] = {
        states[i].const_data_ptr(), grads[i].const_data_ptr(), scale.const_data_ptr(), results[i].mutable_data_ptr(),
        states[i].numel()};
  }
  launch_scale_gradient(
      logit_type(heads[0]), scaled, static_cast<int32_t>(heads.size()), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return results;
}

// ---- Operators ------------------------------------------------------------------------------------------------------

std::tuple<at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy_cuda(
    const at::Tensor& logits, const at::Tensor& target, bool gradient, const OptionalTensor& weight,
    const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing, std::string_view reduction,
    double denominator, std::string_view empty, bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  const Losses losses = cross_entropy({logits}, target, gradient, options);
  return {losses.loss[0], losses.scale, losses.state[0]};
}

at::Tensor upsample_cross_entropy_backward_cuda(
    const at::Tensor& grad, const at::Tensor& scale, const at::Tensor& logits, const at::Tensor& target,
    const at::Tensor& state, const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index,
    double label_smoothing, std::string_view reduction, double denominator, std::string_view empty,
    bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  return backward({grad}, scale, {logits}, target, {state}, options)[0];
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dual_cross_entropy_cuda(
    const at::Tensor& main, const at::Tensor& aux, const at::Tensor& target, bool gradient, bool labels, bool correct,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    std::string_view reduction, double denominator, std::string_view empty, bool align_corners) {
  TORCH_CHECK_VALUE(
      main.dim() == 4 && aux.dim() == 4 && main.sizes().slice(0, 2) == aux.sizes().slice(0, 2) &&
          main.scalar_type() == aux.scalar_type() && main.device() == aux.device(),
      "aux must have the batch, classes, dtype and device of main");
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  const Losses losses = cross_entropy({main, aux}, target, gradient, options);
  const auto [best, count] = argmax(main, target, ignore_index, align_corners, labels, correct);
  return {losses.loss[0], losses.loss[1], losses.scale, losses.state[0], losses.state[1], best, count};
}

std::tuple<at::Tensor, at::Tensor> dual_cross_entropy_backward_cuda(
    const at::Tensor& grad_main, const at::Tensor& grad_aux, const at::Tensor& scale, const at::Tensor& main,
    const at::Tensor& aux, const at::Tensor& target, const at::Tensor& main_state, const at::Tensor& aux_state,
    const OptionalTensor& weight, const OptionalTensor& pixel_weight, int64_t ignore_index, double label_smoothing,
    std::string_view reduction, double denominator, std::string_view empty, bool align_corners) {
  const Options options{weight,    pixel_weight, ignore_index, label_smoothing,
                        reduction, denominator,  empty,        align_corners};
  const auto grads = backward({grad_main, grad_aux}, scale, {main, aux}, target, {main_state, aux_state}, options);
  return {grads[0], grads[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("upsample_cross_entropy", upsample_cross_entropy_cuda);
  m.impl("upsample_cross_entropy_backward", upsample_cross_entropy_backward_cuda);
  m.impl("dual_cross_entropy", dual_cross_entropy_cuda);
  m.impl("dual_cross_entropy_backward", dual_cross_entropy_backward_cuda);
}

}  // namespace pspnet_fast::cuda
