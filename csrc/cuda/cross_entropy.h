// Launchers of the cross-entropy kernels. Free of torch; they enqueue on `stream` and never synchronise.
//
// A warp scores a tile: a column of cells, 31 nodes wide, down some rows of cells. It computes one cell more than the
// nodes that it owns, so that tiles side by side share nothing, and it adds a row's share of its bottom nodes to
// memory, where it finds it again at the next row. Only the nodes between two tiles are shared: the one above leaves
// its share in `edges`, and launch_cross_entropy_finish adds it. Every sum is taken in one order: no atomics, the same
// bits always.
#pragma once

#include <cuda_runtime.h>

#include "upsampled_logits.h"

namespace pspnet_fast::cuda {

constexpr int kCells = 32;          // of a row in a tile, one for each lane
constexpr int kOwnedNodes = kCells - 1;  // nodes of it
constexpr int kMaxClasses = 65534;  // labels are kept as 16 bits, two values of which have a meaning of their own

struct MapStrides {
  int64_t b, c, h, w;
};

// `Real` below is double for f64 logits, else float. Null pointers: not wanted.
struct CrossEntropyHead {
  LogitMap logits;
  UpsampledAxis rows, columns;
  void* loss;  // Real [B, H, W], the loss of every pixel
  void* grad;  // Real [B, C, h, w] of strides `grad_stride`: d(sum of losses)/d(logits)
  MapStrides grad_stride;
  void* edges;           // Real [tile rows - 1, B, C, w]; the last two dimensions are laid out as those of grad
  double2* partial;      // [B, tile columns, cell rows] sums of losses and of what they weigh
  bool may_progress;     // upsampled enough for the fast path (cross_entropy_progression.cuh)
  int32_t tile_columns;  // tiles side by side
  int32_t first_row;     // of cells: -1, or 0 where that has no pixels
  int32_t tile_rows;     // one above the other
  int32_t rows_of_tile;  // rows of cells of one
  int32_t column_parts;  // of a cell that is too wide for one pass
  int32_t pass_columns;  // that a pass has room for
};

// Logits of one or two heads of the same type. Where they have several sizes, a launch is made for each.
struct CrossEntropyProblem {
  int32_t heads;
  CrossEntropyHead head[2];
  int32_t batch, classes, out_height, out_width;
  LabelMap labels;
  const void* class_weight;  // Real [C], or null: ones
  const void* pixel_weight;  // Real [B, H, W], or null: ones
  double smoothing;  // ε
  bool smoothed;     // ε > 0
};

// Fills in a head's geometry, from logits' type, rows and columns: tiles of such a length that `heads` of them fill
// the GPU evenly. Losses do not depend on that length, nor do gradients where cells take one pass (8 pixels high and 9
// wide at most, in float32); where they take several, a node between two tiles sums its terms in another order.
void plan_cross_entropy(CrossEntropyHead& head, int64_t batch, int32_t heads, int32_t multiprocessors);

// partial, and where wanted loss or grad and edges.
void launch_cross_entropy(const CrossEntropyProblem& problem, cudaStream_t stream);

// Adds edges to grad, and sums partial up: losses are Real 0-d, or null; divisor is Real 0-d, Σ q · w_y.
void launch_cross_entropy_finish(
    const CrossEntropyProblem& problem, void* const (&losses)[2], void* divisor, cudaStream_t stream);

}  // namespace pspnet_fast::cuda
