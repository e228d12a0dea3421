// Low-resolution logits, and the labels that they are compared with. Free of torch, host and device.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "../types.h"

namespace pspnet_fast::cuda {

struct LogitMap {
  const void* data;  // [B, C, h, w], any strides
  ElementType type;
  int64_t stride_b, stride_c, stride_h, stride_w;
};

struct LabelMap {
  const void* data;  // [B, H, W] contiguous, or null
  LabelType type;
  int64_t ignore_index;
  int64_t* bad_label;  // host-mapped: where a kernel leaves a label outside [0, C) (see label_flag.h)
};

}  // namespace pspnet_fast::cuda
