// The operators on a pyramid's upsampled levels on raw memory: what csrc/cpu/pyramid_conv.cpp and upsample_add.cpp
// call in the kernels of the active instruction set. Everything is summed in `Acc`: double for f64, else float;
// scratch is counted in those.
#pragma once

#include "../types.h"
#include "isa.h"

namespace pspnet_fast {

// What a position of an axis reads of a level: two of its rows or columns (pspnet_fast::Taps). Both weights are 0 in
// the padding.
struct AxisTap {
  int32_t first, second;
  double first_weight, second_weight;

  bool in_padding() const { return first_weight == 0 && second_weight == 0; }
};

// ---- The pyramid's part of a convolution ---------------------------------------------------------------------------
//
//   Q_l[(o, t), (b, i, j)] = Σ_c W_l[o, c, t] · p_l[b, c, i, j]        t = (dy, dx): the taps of the kernel
//   R[h, (l, dx, j)]       = Σ_{dy, i} u_l(h + dy - pad, i) · Q_l[(o, dy, dx), (b, i, j)]           for an image and o
//   y[b, o, h, w]         += Σ_{l, dx, j} u_l(w + dx - pad, j) · R[h, (l, dx, j)]
//
// and backward the transpose of each step.

struct ConvLevel {
  int64_t height, width;
  int64_t first_bin;  // first packed bin
  int64_t column;     // first of its kernel_columns · width columns of R
  int64_t position;   // first of its taps · height · width positions of an output channel
  int64_t pitch;      // batch · height · width, rounded up to whole vectors
  int64_t q, pooled;  // where its Q and its p begin, in elements

  int64_t area() const { return height * width; }
};

// What becomes of y and the interpolated sum s: y + s; s alone; or normalised by fixed statistics and rectified,
// max(0, factor[o] · (y + s) + summand[o]).
enum class ConvWrite { add, store, norm_relu };

// The geometry of one call, and what a kernel reads and writes. Pitches are whole vectors; what lies between a row's
// end and its pitch is never read.
//
// The matrices that products read lie in panels: `panel` columns of all rows, then the next ones; the last panel is as
// wide as the pitch leaves it. A product reads one panel for many rows of its left factor, out of the caches.
struct ConvProblem {
  ElementType type;
  bool channels_last;
  int64_t batch, level_channels, height, width;
  int64_t first_out, out_channels;  // of this Q
  int64_t kernel_rows, kernel_columns;
  int64_t panel;
  int64_t levels, packed_bins;                                // packed_bins = Σ height · width
  int64_t columns, positions;                                 // of R; of one output channel, all levels together
  int64_t column_pitch, width_pitch, out_pitch, level_pitch;  // columns, width, out_channels, level_channels rounded up
  const ConvLevel* level;                                     // [levels]
  const AxisTap* row_taps;                                    // [height, levels, kernel_rows]: row h + dy - pad
  const AxisTap* column_reads;                                // [width, levels, kernel_columns]: column w + dx - pad
  const void* column_taps;                                    // Acc [width, column_pitch]: u_l(w + dx - pad, j)
  const void* column_taps_t;                                  // Acc [columns, width_pitch]: the same transposed

  // Of y and its gradient, in elements: from image to image, and in channels_last from pixel to pixel.
  int64_t image_stride, pixel_stride;
  // Of the weight, in elements; `weight_level` is the first input channel of level 0.
  int64_t weight_out, weight_channel, weight_tap, weight_level;

  const void *weight, *pooled, *q, *map;
  void* result;
  ConvWrite write;
  const void *factor, *summand;  // Acc, of every output channel

  int64_t taps() const { return kernel_rows * kernel_columns; }
};

// Output channels, level channels and panels of a level that a task takes.
constexpr int64_t kConvOuts = 8, kConvChannels = 24, kConvPanels = 16;

// Runs of kConvPanels panels of a level, and of all levels together.
static inline int64_t conv_runs(const ConvProblem& p, const ConvLevel& level) {
  return ceil_div(level.pitch, p.panel * kConvPanels);
}
static inline int64_t conv_runs(const ConvProblem& p) {
  int64_t runs = 0;
  for (int64_t l = 0; l < p.levels; ++l) runs += conv_runs(p, p.level[l]);
  return runs;
}

// Lanes of a vector, what pitches are multiples of; and columns of a panel.
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_lanes(ElementType type))
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_panel(ElementType type))

// Products. conv_q: tasks are runs of panels for each block of output channels; from `pooled`, p as [level_channels,
// pitch] a level in panels, to Q as [out_channels · taps, pitch] a level in panels, or in channels_last [batch ·
// positions, out_pitch]. conv_weight_gradient: tasks are levels for each block of output channels; from Q and p
// transposed, [batch · height · width, level_pitch] a level in panels. conv_level_gradient: tasks are runs of panels
// for each block of level channels; to the gradient of p as conv_q reads it, where first_out > 0 added to what is
// there.
static inline int64_t conv_product_scratch(const ConvProblem& p) {
  return p.taps() * larger(kConvOuts * (p.panel + p.level_pitch), kConvChannels * p.out_channels);
}
PSPNET_FAST_DECLARE_PER_ISA(Kernel<ConvProblem> conv_q, conv_weight_gradient, conv_level_gradient)

// Between Q and map. conv_q_to_map brings the interpolated Q into y; tasks are planes b·O in NCHW, rows b·H in
// channels_last. conv_map_to_q gives the gradient of Q, as NCHW has it, from that of y; tasks are planes b·O in NCHW,
// panels of channels of each image in channels_last.
static inline int64_t conv_map_scratch(const ConvProblem& p) {
  if (p.channels_last) return (p.positions + p.columns + p.width) * p.panel;
  return p.positions + p.height * (p.column_pitch + p.width_pitch);
}
PSPNET_FAST_DECLARE_PER_ISA(Kernel<ConvProblem> conv_q_to_map, conv_map_to_q)

// ---- Sums of upsampled maps ----------------------------------------------------------------------------------------

struct UpsampleLevel {
  int64_t height, width;
  int64_t first_bin;              // in the packed levels
  int64_t first_row;              // Σ height of the levels before
  const AxisTap *rows, *columns;  // what those of the map read
  // [height] of a row of bins: the first row of the map that reads it, and one past the last.
  const int32_t *first_reader, *last;
};

// A *line* is a row of pixels: of one channel in NCHW, of all channels in channels_last.
struct UpsampleProblem {
  ElementType type;
  int64_t planes, unit;  // batch · channels and 1 in NCHW, batch and channels in channels_last
  int64_t height, width;
  int64_t levels, packed_bins, rows;  // Σ height · width, Σ height
  const UpsampleLevel* level;

  const void* from;  // forward the levels [planes, packed_bins, unit], backward the gradient of the map
  const void* base;  // [planes, height, line] or null
  void* to;

  int64_t line() const { return width * unit; }
};

// Rows of the map that a forward task takes: as much as a processor's second-level cache holds besides two lines.
static inline int64_t upsample_add_rows(const UpsampleProblem& p) {
  return larger(4, smaller(65536 / p.line(), p.height));
}

// Forward tasks are runs of rows of each plane; backward rows of bins of each plane, level after level.
PSPNET_FAST_DECLARE_PER_ISA(Kernel<UpsampleProblem> upsample_add, upsample_add_backward)

}  // namespace pspnet_fast
