// Cross-entropy of upsampled logits on raw memory: what csrc/cpu/cross_entropy.cpp asks of the kernels of the active
// instruction set. One head; full-resolution logits exist one output row at a time, in registers.
//
// Work is cut into cell rows: the output rows whose upper neighbours are one row of low-resolution nodes. Within a row,
// lanes are neighbouring cells (the output columns between two nodes), and step k is the k-th output column of each.
#pragma once

#include <cstdint>

#include "isa.h"

namespace pspnet_fast {

enum class LogitType { f32, f64, f16, bf16 };
enum class LabelType { i64, i32, u8 };
constexpr int64_t kNoLabel = INT64_MIN;

struct CrossEntropyProblem {
  // Logits [B, C, h, w] with the strides of NCHW or channels_last. Sums are taken in `Real`: double for f64, else float.
  LogitType type;
  const void* logits;
  int64_t batch, classes, height, width;
  int64_t stride_b, stride_c, stride_h, stride_w;

  // Upsampling. Output row y lies in cell row r where row_begin[r] <= y < row_begin[r + 1], at fraction row_t[y] below
  // it; output column x is step_of[x] of cell cell_of[x], at fraction column_t[x].
  int64_t out_height, out_width, steps;
  const int64_t* row_begin;  // [h + 1]
  const double* row_t;       // [H]
  const int32_t *cell_of, *step_of;  // [W]
  const double* column_t;            // [W]

  // Labels [B, H, W] and what they weigh; null pointers are ones. Null target: no loss (arg-max only).
  LabelType label_type;
  const void* target;
  int64_t ignore_index;
  const void* class_weight;  // Real [C]
  const void* pixel_weight;  // Real [B, H, W]
  double smoothing;

  // Forward, each unless null: log-sum-exp, less the interpolated maximum of the nodes (Real [B, H, W],
  // for backward), loss (Real [B, H, W]), arg-max
  // (labels_out_type [B, H, W]); for every cell row of the batch its sum of losses and of weights (double [B · h]) and
  // the first label outside [0, C), else kNoLabel (int64 [B · h]).
  void *lse, *loss;
  LabelType labels_out_type;
  void* labels_out;
  double *row_loss, *row_divisor;
  int64_t* row_bad_label;

  // Backward: reads lse; upstream is Real, [B, H, W] or one number. The gradient is Real, with the strides of logits.
  const void* upstream;
  bool upstream_per_pixel;
  void* grad;
};

// Cell rows begin, begin + 1, … end - 1 of the B · h.
PSPNET_FAST_DECLARE_PER_ISA(void cross_entropy_forward(const CrossEntropyProblem& problem, int64_t begin, int64_t end))

// The same for those of one parity within their image: `begin` and `end` count the even (odd) cell rows of the batch. A
// cell row gives to the two rows of nodes that bound it, and no two of one parity share one: even rows write, odd ones
// then add, so no buffer, no atomics, and one order of summation whatever the number of threads.
PSPNET_FAST_DECLARE_PER_ISA(
    void cross_entropy_backward(const CrossEntropyProblem& problem, int64_t parity, int64_t begin, int64_t end))

inline int64_t rows_of_parity(int64_t height, int64_t parity) { return (height + 1 - parity) / 2; }

}  // namespace pspnet_fast
