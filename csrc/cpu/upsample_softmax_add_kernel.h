// Probabilities of upsampled logits added into a map, on raw memory (see isa.h).
#pragma once

#include "cross_entropy_kernel.h"

namespace pspnet_fast {

struct SoftmaxAddProblem {
  ElementType type;
  const void* logits;
  int64_t batch, classes;
  int64_t stride_b, stride_c, stride_h, stride_w;
  CellAxis rows, columns;
  int64_t out_height, out_width;                 // of the upsampled map
  const int32_t *cell_of_row, *cell_of_column;  // [out_height], [out_width]
  bool flip;
  double weight;
  AxisTable row_table, column_table;

  void* total;  // Real [B, C, total_height, total_width]
  int64_t total_height, total_width;
  int64_t total_stride_b, total_stride_c, total_stride_h, total_stride_w;
};

// A thread's memory, in bytes, aligned to 64.
PSPNET_FAST_DECLARE_PER_ISA(int64_t softmax_add_scratch(const SoftmaxAddProblem& problem))
// Rows begin, …, end - 1 of image b of the total.
PSPNET_FAST_DECLARE_PER_ISA(
    void upsample_softmax_add_rows(
        const SoftmaxAddProblem& problem, int64_t b, int64_t begin, int64_t end, void* scratch))

}  // namespace pspnet_fast
