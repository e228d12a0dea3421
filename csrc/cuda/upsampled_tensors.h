// Tensors as the kernels on upsampled logits take them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../tensors.h"
#include "upsampled_logits.h"

namespace pspnet_fast::cuda {

inline ElementType logit_type(const at::Tensor& logits) { return element_type("logits", logits); }
inline at::ScalarType real_type(const at::Tensor& logits) { return accumulator_type(logits); }

inline LogitMap logit_map(const at::Tensor& logits) {
  return {
      logits.const_data_ptr(), logit_type(logits), logits.stride(0), logits.stride(1), logits.stride(2),
      logits.stride(3)};
}

inline void check_logits(const at::Tensor& logits, int64_t out_height, int64_t out_width) {
  TORCH_CHECK_VALUE(
      logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
      "logits must be [B, C, h, w] with C, h and w at least 1, not of shape ", logits.sizes());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  TORCH_CHECK_VALUE(
      std::max({logits.size(0), logits.size(2), logits.size(3), out_height, out_width}) < kMost &&
          logits.size(1) < kMost / logits.size(3),
      "logits of shape ", logits.sizes(), " upsampled to ", out_height, " x ", out_width, " are too large for the GPU");
}

// The most likely class of every pixel [B, H, W], and the number of pixels where that is their label; int64, or of
// shape [0] where it is not wanted. `logits` has been checked.
std::tuple<at::Tensor, at::Tensor> argmax(
    const at::Tensor& logits, const at::Tensor& target, int64_t ignore_index, bool align_corners, bool labels,
    bool correct);

}  // namespace pspnet_fast::cuda
