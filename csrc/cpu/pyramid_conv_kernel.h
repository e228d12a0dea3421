// The pyramid's part of a convolution on raw memory: what csrc/cpu/pyramid_conv.cpp calls in the kernels of the active
// instruction set. Everything is summed in `Acc`: double for f64, else float.
//
//   Q_l[(o, t), (b, i, j)] = Σ_c W_l[o, c, t] · p_l[b, c, i, j]        t = (dy, dx): the taps of the kernel
//   R[h, (l, dx, j)]       = Σ_{dy, i} u_l(h + dy - pad, i) · Q_l[(o, dy, dx), (b, i, j)]           for an image and o
//   y[b, o, h, w]         += Σ_{l, dx, j} u_l(w + dx - pad, j) · R[h, (l, dx, j)]
//
// and backward the transpose of each step.
#pragma once

#include <cstdint>

#include "../types.h"
#include "isa.h"

namespace pspnet_fast {

// What row h + dy - pad of an upsampled level reads: two rows of its bins; and what column w + dx - pad does. Both
// weights are 0 in the padding.
struct AxisTap {
  int32_t first, second;
  double first_weight, second_weight;

  bool in_padding() const { return first_weight == 0 && second_weight == 0; }
};

struct ConvLevel {
  int64_t height, width;
  int64_t first_bin;  // first packed bin
  int64_t column;    // first of its kernel_columns · width columns of R
  int64_t position;  // first of its taps · height · width positions of an output channel
  int64_t pitch;     // batch · height · width, rounded up to whole vectors
  int64_t q, pooled;  // where its Q and its p begin, in elements

  int64_t area() const { return height * width; }
};

// The geometry of one call. Pitches are whole vectors; what lies between a row's end and its pitch is never read.
//
// The matrices that products read lie in panels: `panel` columns of all rows, then the next ones; the last panel is as
// wide as the pitch leaves it. A product reads one panel for many rows of its left factor, out of the caches.
struct ConvShape {
  int64_t batch, out_channels, level_channels, height, width;
  int64_t kernel_rows, kernel_columns;
  int64_t panel;
  int64_t levels, packed_bins;                              // packed_bins = Σ height · width
  int64_t columns, positions;                                // of R; of one output channel, all levels together
  int64_t column_pitch, width_pitch, out_pitch, level_pitch; // columns, width, out_channels, level_channels rounded up
  const ConvLevel* level;                                    // [levels]
  const AxisTap* row_taps;                                   // [height, levels, kernel_rows]
  const AxisTap* column_reads;                               // [width, levels, kernel_columns]
  const void* column_taps;                                   // Acc [width, column_pitch]: u_l(w + dx - pad, j)
  const void* column_taps_t;                                 // Acc [columns, width_pitch]: the same transposed

  // Of y and its gradient, in elements: from image to image, and in channels_last from pixel to pixel.
  int64_t image_stride, pixel_stride;
  // Of the weight, in elements; `weight_level` is the first input channel of level 0.
  int64_t weight_out, weight_channel, weight_tap, weight_level;

  int64_t taps() const { return kernel_rows * kernel_columns; }
};

// What becomes of y and the interpolated sum s: y + s; s alone; or normalised by fixed statistics and rectified,
// max(0, factor[o] · (y + s) + summand[o]), Acc [out_channels].
enum class ConvWrite { add, store, norm_relu };
struct ConvEpilogue {
  ConvWrite write;
  const void *factor = nullptr, *summand = nullptr;

  // For a run of channels from `first` on.
  ConvEpilogue from(int64_t first, ElementType type) const {
    if (factor == nullptr) return *this;
    const int64_t bytes = first * (type == ElementType::f64 ? 8 : 4);
    return {write, static_cast<const char*>(factor) + bytes, static_cast<const char*>(summand) + bytes};
  }
};

// Output channels, level channels and panels of a level that a task takes.
constexpr int64_t kConvOuts = 8, kConvChannels = 24, kConvPanels = 16;

// Lanes of a vector, what pitches are multiples of; and columns of a panel.
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_lanes(ElementType type))
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_panel(ElementType type))

// ---- Products. Scratch: [conv_q_scratch] a thread. ------------------------------------------------------------
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_q_scratch(const ConvShape& shape))
// Runs of kConvPanels panels, all levels together: tasks are these for each block of channels.
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_runs(const ConvShape& shape))
// Tasks [begin, end) are runs of panels for each block of output channels. `pooled` is p, [level_channels, pitch] a level
// in panels; Q is [out_channels · taps, pitch] a level in panels, or with channels_last [batch · positions, out_pitch].
PSPNET_FAST_DECLARE_PER_ISA(void conv_q(
    ElementType type, bool channels_last, const ConvShape& shape, const void* weight, const void* pooled, void* q,
    void* scratch, int64_t begin, int64_t end))
// The gradient of the weight from that of Q. Tasks are levels for each block of output channels; `pooled` is p
// transposed, [batch · height · width, level_pitch] a level in panels.
PSPNET_FAST_DECLARE_PER_ISA(void conv_weight_gradient(
    ElementType type, const ConvShape& shape, const void* q, const void* pooled, void* grad_weight, void* scratch,
    int64_t begin, int64_t end))
// Tasks [begin, end) are runs of panels for each block of level channels: the gradient of p as conv_q reads it, added to
// what is there if `add`.
PSPNET_FAST_DECLARE_PER_ISA(void conv_level_gradient(
    ElementType type, const ConvShape& shape, bool add, const void* weight, const void* q, void* grad_bins,
    void* scratch, int64_t begin, int64_t end))

// ---- Between Q and map. Scratch: [conv_nchw_scratch] or [conv_nhwc_scratch] a thread. -----------------------
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_nchw_scratch(const ConvShape& shape))
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_nhwc_scratch(ElementType type, const ConvShape& shape))

// Adds the interpolated Q to y. Tasks are planes b·O in NCHW, rows b·H in channels_last.
PSPNET_FAST_DECLARE_PER_ISA(void conv_add_nchw(
    ElementType type, const ConvShape& shape, const void* q, void* y, ConvEpilogue epilogue, void* scratch,
    int64_t begin, int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void conv_add_nhwc(
    ElementType type, const ConvShape& shape, const void* q, void* y, ConvEpilogue epilogue, void* scratch,
    int64_t begin, int64_t end))

// The gradient of Q from that of y. Tasks are planes b·O in NCHW, blocks of channels b·conv_nhwc_blocks in channels_last.
PSPNET_FAST_DECLARE_PER_ISA(int64_t conv_nhwc_blocks(ElementType type, const ConvShape& shape))
PSPNET_FAST_DECLARE_PER_ISA(void conv_gather_nchw(
    ElementType type, const ConvShape& shape, const void* grad, void* q, void* scratch, int64_t begin,
    int64_t end))
PSPNET_FAST_DECLARE_PER_ISA(void conv_gather_nhwc(
    ElementType type, const ConvShape& shape, const void* grad, void* q, void* scratch, int64_t begin,
    int64_t end))

}  // namespace pspnet_fast
