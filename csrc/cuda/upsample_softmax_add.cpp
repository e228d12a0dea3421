// Probabilities of upsampled logits added into a map, on CUDA tensors: checks round the kernel of upsample_softmax_add.cu.
#include "upsample_softmax_add.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <optional>

#include "../softmax_add_checks.h"
#include "upsampled_tensors.h"

namespace pspnet_fast::cuda {
namespace {

AxisTable table(const std::optional<at::Tensor>& index, const std::optional<at::Tensor>& weight) {
  if (!index.has_value()) return {nullptr, nullptr};
  return {index->const_data_ptr<int32_t>(), weight->const_data_ptr()};
}

void upsample_softmax_add_cuda(
    at::Tensor& total, const at::Tensor& logits, int64_t height, int64_t width, bool align_corners, bool flip,
    double weight, const std::optional<at::Tensor>& row_index, const std::optional<at::Tensor>& row_weight,
    const std::optional<at::Tensor>& column_index, const std::optional<at::Tensor>& column_weight) {
  check_softmax_add(total, logits, height, width, row_index, row_weight, column_index, column_weight);
  check_logits(logits, height, width);
  check_logits(logits, total.size(2), total.size(3));
  if (total.numel() == 0) return;
  const c10::cuda::OptionalCUDAGuard guard(logits.device());
  SoftmaxAddProblem p{};
  p.logits = logit_map(logits);
  p.rows = upsampled_axis(logits.size(2), height, align_corners);
  p.columns = upsampled_axis(logits.size(3), width, align_corners);
  p.batch = static_cast<int32_t>(logits.size(0)), p.classes = static_cast<int32_t>(logits.size(1));
  p.flip = flip, p.weight = weight;
  p.row_table = table(row_index, row_weight), p.column_table = table(column_index, column_weight);
  p.total = total.mutable_data_ptr();
  p.height = static_cast<int32_t>(total.size(2)), p.width = static_cast<int32_t>(total.size(3));
  p.stride_b = total.stride(0), p.stride_c = total.stride(1);
  p.stride_h = total.stride(2), p.stride_w = total.stride(3);
  launch_upsample_softmax_add(p, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) { m.impl("upsample_softmax_add", upsample_softmax_add_cuda); }

}  // namespace
}  // namespace pspnet_fast::cuda
