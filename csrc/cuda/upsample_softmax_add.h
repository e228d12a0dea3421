// Launcher of the kernel that adds probabilities of upsampled logits into a map. Free of torch; it enqueues on `stream`
// and never synchronises.
#pragma once

#include <cuda_runtime.h>

#include "upsampled_logits.h"

namespace pspnet_fast::cuda {

struct SoftmaxAddProblem {
  LogitMap logits;
  UpsampledAxis rows, columns;
  int32_t batch, classes;
  bool flip;  // columns of the upsampled map
  double weight;
  AxisTable row_table, column_table;
  void* total;  // Real [B, C, height, width], any strides
  int32_t height, width;
  int64_t stride_b, stride_c, stride_h, stride_w;
};

void launch_upsample_softmax_add(const SoftmaxAddProblem& problem, cudaStream_t stream);

}  // namespace pspnet_fast::cuda
