// Checks of upsample_softmax_add's arguments, for every device.
#pragma once

#include <optional>

#include "tensors.h"

namespace pspnet_fast {

inline void check_axis_table(
    const char* name, const at::Tensor& total, int64_t dim, int64_t upsampled, const std::optional<at::Tensor>& index,
    const std::optional<at::Tensor>& weight) {
  const int64_t size = total.size(dim);
  TORCH_CHECK_VALUE(index.has_value() == weight.has_value(), name, " needs both its index and its weight");
  if (!index.has_value()) {
    TORCH_CHECK_VALUE(
        size == upsampled, "total has ", size, " ", name, " but the upsampled map ", upsampled, "; give ", name);
    return;
  }
  for (const at::Tensor* table : {&*index, &*weight}) {
    TORCH_CHECK_VALUE(
        table->dim() == 2 && table->size(0) == size && table->size(1) == 2 && table->is_contiguous() &&
            table->device() == total.device(),
        name, " must be contiguous tables [", size, ", 2] on ", total.device(), ", not of shape ", table->sizes(), " on ",
        table->device());
  }
  TORCH_CHECK_TYPE(
      index->scalar_type() == at::kInt && weight->scalar_type() == total.scalar_type(), name, " must be of int32 and ",
      total.scalar_type(), ", not ", index->scalar_type(), " and ", weight->scalar_type());
}

inline void check_softmax_add(
    const at::Tensor& total, const at::Tensor& logits, int64_t height, int64_t width,
    const std::optional<at::Tensor>& row_index, const std::optional<at::Tensor>& row_weight,
    const std::optional<at::Tensor>& column_index, const std::optional<at::Tensor>& column_weight) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  TORCH_CHECK_VALUE(
      logits.dim() == 4 && total.dim() == 4 && total.size(0) == logits.size(0) && total.size(1) == logits.size(1),
      "total must be [B, C, H, W] for logits [B, C, h, w], not ", total.sizes(), " for ", logits.sizes());
  TORCH_CHECK_TYPE(
      total.scalar_type() == accumulator_type(logits), "total must be ", accumulator_type(logits), " for logits of ",
      logits.scalar_type(), ", not ", total.scalar_type());
  TORCH_CHECK_VALUE(
      total.device() == logits.device(), "total is on ", total.device(), " but logits on ", logits.device());
  check_axis_table("rows", total, 2, height, row_index, row_weight);
  check_axis_table("columns", total, 3, width, column_index, column_weight);
}

}  // namespace pspnet_fast
