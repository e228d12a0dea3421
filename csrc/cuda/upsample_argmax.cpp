// The arg-max of upsampled logits on CUDA tensors: checks and geometry round the kernel of upsample_argmax.cu.
#include "upsample_argmax.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "upsampled_tensors.h"

namespace pspnet_fast::cuda {
namespace {

at::Tensor upsample_argmax_cuda(
    const at::Tensor& logits, int64_t height, int64_t width, bool align_corners, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  check_logits(logits, height, width);
  const c10::cuda::OptionalCUDAGuard guard(logits.device());
  at::Tensor labels =
      at::empty({logits.size(0), height, width}, logits.options().dtype(dtype).memory_format(std::nullopt));
  ArgmaxProblem p{};
  p.label_type = label_type("dtype", dtype);
  if (labels.numel() == 0) return labels;
  p.logits = logit_map(logits);
  p.rows = upsampled_axis(logits.size(2), height, align_corners);
  p.columns = upsampled_axis(logits.size(3), width, align_corners);
  p.batch = static_cast<int32_t>(logits.size(0)), p.classes = static_cast<int32_t>(logits.size(1));
  p.labels = labels.mutable_data_ptr();
  launch_upsample_argmax(p, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return labels;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) { m.impl("upsample_argmax", upsample_argmax_cuda); }

}  // namespace pspnet_fast::cuda
