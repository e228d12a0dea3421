// Launchers of the pyramid's convolution, apart from its products, which cuBLAS takes. Free of torch; they enqueue on
// `stream` and never synchronise. The maths is in pspnet_fast/ops/pyramid_conv_composed.py.
#pragma once

#include "pyramid_norm.h"
#include "pyramid_pool.h"

namespace pspnet_fast::cuda {

// The geometry of one call, by value. A position is a packed bin of the pyramid and a tap of the kernel, (bin, dy, dx);
// a term is what a row of the image needs of one level, (dx, column of bins).
struct ConvTables {
  int64_t batch, out_channels;
  int32_t height, width;
  int32_t kernel_height, kernel_width;
  int32_t levels, positions;
  int32_t terms, row_terms;  // kernel_width · Σcolumns and kernel_height · Σrows
  bool align_corners;
  int32_t rows[kMaxLevels], columns[kMaxLevels];  // of a level's bins
  int32_t first_bin[kMaxLevels], first_row[kMaxLevels], first_column[kMaxLevels];  // of all levels'
};

// How the image is cut into blocks: an image, 32 output channels, a run of rows and one of 64 columns each.
constexpr int kRunChannels = 32, kRunColumns = 64, kMostWarps = 8;
struct ConvGrid {
  int64_t channel_runs, column_runs, row_runs, blocks;
  int32_t run_rows, warps;
  int32_t shared_bytes;
  bool staged;  // the block's positions lie in shared memory, else in global memory

  int64_t parts() const { return column_runs * row_runs; }
};

// Blocks are as many as keep a large GPU busy, whatever the GPU: results do not depend on it. `warps` is 0 where the
// tables of a block need more than `most_shared_bytes`.
ConvGrid conv_add_grid(ElementType type, const ConvTables& tables, int64_t most_shared_bytes);
ConvGrid conv_gather_grid(ElementType type, const ConvTables& tables, int64_t most_shared_bytes);

// y += every level's term, then norm and ReLU where there is one.
void launch_pyramid_conv_add(
    ElementType type,
    bool channels_last,
    const ConvTables& tables,
    const ConvGrid& grid,
    const void* q,  // [Σhw, B, O, taps] float (double for f64)
    void* y,        // [B, O, H, W], in place
    const Norm& norm,
    cudaStream_t stream);

// The gradient of q, and of all levels in one pass over grad.
void launch_pyramid_conv_gather(
    ElementType type,
    bool channels_last,
    const ConvTables& tables,
    const ConvGrid& grid,
    const void* grad,  // [B, O, H, W]
    void* parts,       // [parts, B, positions, O] float (double for f64)
    void* grad_q,      // [Σhw, B, O, taps], their sum: of the map's type, but float for f16, whose range sums leave
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
