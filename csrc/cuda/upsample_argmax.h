// Launcher of the arg-max kernel. Free of torch; it enqueues on `stream` and never synchronises.
#pragma once

#include <cuda_runtime.h>

#include "upsampled_logits.h"

namespace pspnet_fast::cuda {

struct ArgmaxProblem {
  LogitMap logits;
  UpsampledAxis rows, columns;
  int32_t batch, classes;
  void* labels;  // [B, H, W] of `label_type`, or null
  LabelType label_type;
  LabelMap target;              // to compare with, if correct is not null
  unsigned long long* correct;  // the number of pixels whose arg-max is their target is added here
};

void launch_upsample_argmax(const ArgmaxProblem& problem, cudaStream_t stream);

}  // namespace pspnet_fast::cuda
