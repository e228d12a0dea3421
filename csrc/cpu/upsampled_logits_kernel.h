// The operators on upsampled logits on raw memory: what csrc/cpu/upsampled_logits.cpp calls in the kernels of the active
// instruction set. Loss and gradient of the cross-entropy are one pass; full-resolution logits exist in registers only.
//
// A cell is the patch of output pixels between four neighbouring nodes (low-resolution logits). Lanes are neighbouring
// cells of one row of cells. Several cell rows are one task, summed by one thread in one order, so that the result does
// not depend on the number of threads.
#pragma once

#include "../types.h"
#include "isa.h"

namespace pspnet_fast {

constexpr int64_t kNoLabel = 0;  // a class always, so never a label out of range

// How one axis is upsampled. Cell q lies between nodes first_node + q and first_node + q + 1, clamped to the map: with
// half-pixel centres the border pixels lie outside the outer nodes, in cells -1 and n - 1. It holds the output
// positions begin[q], …, begin[q] + count[q] - 1 (none where the map is made smaller), at fractions start[q], start[q]
// + step, ….
struct CellAxis {
  int64_t nodes, cells, first_node;
  int64_t most;  // largest count
  const int32_t *begin, *count;
  const double* start;
  double step;
};
// Outputs in front of the first node lie at it, and have no share of the second, which is their cell's top or left
// node: that shows where a logit is infinite, as no share of it is NaN.
static inline bool in_front(const CellAxis& axis, int64_t q) { return q < -axis.first_node; }
static inline int64_t node_at(const CellAxis& axis, int64_t q) {  // top or left node of cell q
  const int64_t n = in_front(axis, q) ? 1 : axis.first_node + q;
  return n < axis.nodes ? n : axis.nodes - 1;
}
static inline double step_in(const CellAxis& axis, int64_t q) { return in_front(axis, q) ? 0.0 : axis.step; }
static inline double fraction_in(const CellAxis& axis, int64_t q, int64_t i) {  // of its i-th output
  return in_front(axis, q) ? 1.0 : axis.start[q] + static_cast<double>(i) * axis.step;
}

// Logits [B, C, h, w], with the strides of NCHW or channels_last, upsampled to [out_height, out_width].
struct UpsampledLogits {
  ElementType type;
  int64_t batch, classes;
  int64_t stride_b, stride_c, stride_h, stride_w;
  CellAxis rows, columns;
  int64_t out_height, out_width;
};

struct CrossEntropyHead {
  const void* logits;
  void* loss;      // Real [B, H, W], or null: only the sum is wanted
  void* grad;      // d(sum of losses)/d(logits): Real, with the strides of logits; or null
  void* boundary;  // Real [tasks, C, w]: what a task adds to the row of nodes that it shares with the task above
  double* sum;     // [tasks] sums of losses
};

// One or two heads of one size and layout. Sums are taken in `Real`: double for f64, else float.
struct CrossEntropyProblem : UpsampledLogits {
  int64_t heads;
  CrossEntropyHead head[2];

  // Labels [B, H, W] and what they weigh; null pointers are ones.
  LabelType label_type;
  const void* target;
  int64_t ignore_index;
  const void* class_weight;  // Real [C]
  const void* pixel_weight;  // Real [B, H, W]
  double smoothing;

  int64_t tasks_per_image;
  double* divisor;     // [tasks] sums of the weights of labelled pixels
  int64_t* bad_label;  // [tasks] the first label outside [0, C), or kNoLabel
};
static inline int64_t task_begin(const CrossEntropyProblem& p, int64_t of_image) {  // cell row
  return p.rows.cells * of_image / p.tasks_per_image;
}

struct ArgmaxProblem : UpsampledLogits {
  const void* logits;
  LabelType out_type;
  void* out;  // [B, H, W], or null

  // Null, or labels to compare with: correct[i] of cell row i of the batch is the number of pixels whose arg-max is
  // their label.
  const void* target;
  LabelType label_type;
  int64_t ignore_index;
  int64_t* correct;  // [B · cell rows]
};

struct SoftmaxAddProblem : UpsampledLogits {
  const void* logits;
  const int32_t *cell_of_row, *cell_of_column;  // [out_height], [out_width]
  bool flip;
  double weight;
  AxisTable row_table, column_table;

  void* total;  // Real [B, C, total_height, total_width]
  int64_t total_height, total_width;
  int64_t total_stride_b, total_stride_c, total_stride_h, total_stride_w;
};

// Tasks are those of the problem; blocks of kArgmaxBlock cell rows of the batch; blocks of kSoftmaxBlock rows of each
// image of the total. Neighbouring rows read the same nodes: so blocks of them.
constexpr int64_t kArgmaxBlock = 4, kSoftmaxBlock = 16;
PSPNET_FAST_DECLARE_PER_ISA(Kernel<CrossEntropyProblem> upsample_cross_entropy)
PSPNET_FAST_DECLARE_PER_ISA(Kernel<ArgmaxProblem> upsample_argmax)
PSPNET_FAST_DECLARE_PER_ISA(Kernel<SoftmaxAddProblem> upsample_softmax_add)

// A thread's memory for each, in bytes.
PSPNET_FAST_DECLARE_PER_ISA(int64_t cross_entropy_scratch(const CrossEntropyProblem& problem))
PSPNET_FAST_DECLARE_PER_ISA(int64_t argmax_scratch(const ArgmaxProblem& problem))
PSPNET_FAST_DECLARE_PER_ISA(int64_t softmax_add_scratch(const SoftmaxAddProblem& problem))

}  // namespace pspnet_fast
