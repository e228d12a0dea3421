// The cross-entropies of upsampled logits on CUDA tensors: checks, geometry and scratch round the kernels of
// cross_entropy.cu.
#include "cross_entropy.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../loss_options.h"
#include "label_flag.h"
#include "upsampled_tensors.h"

namespace pspnet_fast::cuda {
namespace {

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
      CrossEntropyHead& head, const at::Tensor& logits, const CrossEntropyProblem& p, bool align_corners, bool per_pixel,
      bool gradient, LossSums& sums, int i) {
    const at::TensorOptions floats = sums.divisor.options();
    head.logits = logit_map(logits);
    head.rows = upsampled_axis(logits.size(2), p.out_height, align_corners);
    head.columns = upsampled_axis(logits.size(3), p.out_width, align_corners);
    plan_cross_entropy(head, p.batch, p.heads, multiprocessors(logits.get_device()));
    const int64_t rows = head.rows.nodes - head.first_row;
    partial = at::empty({p.batch, head.tile_columns, rows, 2}, floats.dtype(at::kDouble));
    head.partial = static_cast<double2*>(partial.mutable_data_ptr());

    const std::vector<int64_t> map = {p.batch, p.out_height, p.out_width};
    sums.losses[i] = at::empty(per_pixel ? map : std::vector<int64_t>{}, floats);
    if (per_pixel) head.loss = sums.losses[i].mutable_data_ptr();
    sums.states[i] = gradient ? empty_gradient(logits, floats.dtype().toScalarType()) : at::empty({0}, floats);
    if (!gradient) return;
    const at::Tensor& state = sums.states[i];
    edges = at::empty({head.tile_rows - 1, p.batch, p.classes, head.columns.nodes}, floats);
    head.grad = state.mutable_data_ptr();
    head.grad_stride = {state.stride(0), state.stride(1), state.stride(2), state.stride(3)};
    head.edges = edges.mutable_data_ptr();
  }
};

// Of an empty batch.
LossSums nothing_to_score(
    const std::vector<at::Tensor>& heads, const at::Tensor& target, bool per_pixel, bool gradient) {
  const at::ScalarType real = real_type(heads[0]);
  const at::TensorOptions floats = heads[0].options().dtype(real).memory_format(std::nullopt);
  LossSums sums;
  sums.divisor = at::zeros({}, floats);
  for (size_t i = 0; i < heads.size(); ++i) {
    sums.losses[i] = at::zeros(per_pixel ? target.sizes() : at::IntArrayRef{}, floats);
    sums.states[i] = gradient ? empty_gradient(heads[i], real).zero_() : at::empty({0}, floats);
  }
  return sums;
}

// Losses of one or two heads, and the gradients of their sums if wanted and not per pixel.
LossSums cross_entropy(
    const LossOptions& options, const std::vector<at::Tensor>& heads, const at::Tensor& target, bool per_pixel,
    bool gradient) {
  TORCH_CHECK_VALUE(target.dim() == 3, "target must be [B, H, W], not of shape ", target.sizes());
  for (const at::Tensor& logits : heads) check_logits(logits, target.size(1), target.size(2));
  const at::Tensor& first = heads[0];
  TORCH_CHECK_VALUE(first.size(1) <= kMaxClasses, "at most ", kMaxClasses, " classes, not ", first.size(1));
  const c10::cuda::OptionalCUDAGuard guard(first.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  raise_for_earlier_labels(first.get_device(), stream);
  gradient = gradient && !per_pixel;
  if (target.numel() == 0) return nothing_to_score(heads, target, per_pixel, gradient);

  CrossEntropyProblem p{};
  p.heads = static_cast<int32_t>(heads.size());
  p.batch = static_cast<int32_t>(first.size(0)), p.classes = static_cast<int32_t>(first.size(1));
  p.out_height = static_cast<int32_t>(target.size(1)), p.out_width = static_cast<int32_t>(target.size(2));
  p.smoothing = options.label_smoothing, p.smoothed = options.label_smoothing > 0;
  const LossTensors given(options, target, p.batch, p.classes, real_type(first));
  p.labels = {
      given.target.const_data_ptr(), label_type("target", target.scalar_type()), options.ignore_index,
      label_flag(target.get_device())};
  p.class_weight = given.class_weights(), p.pixel_weight = given.pixel_weights();
  LossSums sums;
  sums.divisor = at::empty({}, first.options().dtype(real_type(first)).memory_format(std::nullopt));
  std::vector<Head> scratch;
  void* losses[2] = {nullptr, nullptr};
  for (int i = 0; i < p.heads; ++i) {
    scratch.emplace_back(p.head[i], heads[i], p, options.align_corners, per_pixel, gradient, sums, i);
    if (!per_pixel) losses[i] = sums.losses[i].mutable_data_ptr();
  }

  launch_cross_entropy(p, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  launch_cross_entropy_finish(p, losses, sums.divisor.mutable_data_ptr(), stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  raise_for_own_labels(first.get_device(), stream);
  return sums;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> upsample_cross_entropy_cuda(
    const LossOptions& options, const at::Tensor& logits, const at::Tensor& target, bool per_pixel, bool gradient) {
  const LossSums sums = cross_entropy(options, {logits}, target, per_pixel, gradient);
  return {sums.losses[0], sums.divisor, sums.states[0]};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dual_cross_entropy_cuda(
    const LossOptions& options, const at::Tensor& main, const at::Tensor& aux, const at::Tensor& target, bool per_pixel,
    bool gradient, bool labels, bool correct) {
  TORCH_CHECK_VALUE(
      main.dim() == 4 && aux.dim() == 4 && main.sizes().slice(0, 2) == aux.sizes().slice(0, 2) &&
          main.scalar_type() == aux.scalar_type() && main.device() == aux.device(),
      "aux must have the batch, classes, dtype and device of main");
  const LossSums sums = cross_entropy(options, {main, aux}, target, per_pixel, gradient);
  const auto [best, count] = argmax(main, target, options.ignore_index, options.align_corners, labels, correct);
  return {sums.losses[0], sums.losses[1], sums.divisor, sums.states[0], sums.states[1], best, count};
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("upsample_cross_entropy", with_loss_options(upsample_cross_entropy_cuda));
  m.impl("dual_cross_entropy", with_loss_options(dual_cross_entropy_cuda));
}

}  // namespace pspnet_fast::cuda
