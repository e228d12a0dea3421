// The arg-max of upsampled logits on CUDA tensors: checks and geometry round the kernel of upsample_argmax.cu.
#include "upsample_argmax.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "upsampled_tensors.h"

namespace pspnet_fast::cuda {
namespace {

ArgmaxProblem problem_of(const at::Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  ArgmaxProblem p{};
  p.logits = logit_map(logits);
  p.rows = upsampled_axis(logits.size(2), height, align_corners);
  p.columns = upsampled_axis(logits.size(3), width, align_corners);
  p.batch = static_cast<int32_t>(logits.size(0)), p.classes = static_cast<int32_t>(logits.size(1));
  return p;
}

at::Tensor upsample_argmax_cuda(
    const at::Tensor& logits, int64_t height, int64_t width, bool align_corners, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  check_logits(logits, height, width);
  const LabelType type = label_type("dtype", dtype);
  const c10::cuda::OptionalCUDAGuard guard(logits.device());
  at::Tensor labels =
      at::empty({logits.size(0), height, width}, logits.options().dtype(dtype).memory_format(std::nullopt));
  if (labels.numel() == 0) return labels;
  ArgmaxProblem p = problem_of(logits, height, width, align_corners);
  p.labels = labels.mutable_data_ptr();
  p.label_type = type;
  launch_upsample_argmax(p, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return labels;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> argmax(
    const at::Tensor& logits, const at::Tensor& target, int64_t ignore_index, bool align_corners, bool labels,
    bool correct) {
  const at::TensorOptions integers = logits.options().dtype(at::kLong).memory_format(std::nullopt);
  const c10::cuda::OptionalCUDAGuard guard(logits.device());
  at::Tensor best = labels ? at::empty(target.sizes(), integers) : at::empty({0}, integers);
  at::Tensor count = correct ? at::zeros({}, integers) : at::empty({0}, integers);
  if ((!labels && !correct) || target.numel() == 0) return {best, count};

  const at::Tensor truth = target.contiguous();
  ArgmaxProblem p = problem_of(logits, target.size(1), target.size(2), align_corners);
  p.labels = labels ? best.mutable_data_ptr() : nullptr;
  p.label_type = LabelType::i64;
  p.target = {truth.const_data_ptr(), label_type("target", truth.scalar_type()), ignore_index, nullptr};
  p.correct = correct ? static_cast<unsigned long long*>(count.mutable_data_ptr()) : nullptr;
  launch_upsample_argmax(p, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {best, count};
}

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) { m.impl("upsample_argmax", upsample_argmax_cuda); }

}  // namespace pspnet_fast::cuda
