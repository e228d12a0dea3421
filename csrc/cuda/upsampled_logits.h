// Low-resolution logits and the axes along which kernels upsample them. Free of torch, host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "../geometry.h"
#include "../types.h"

namespace pspnet_fast::cuda {

using LogitType = ElementType;

struct LogitMap {
  const void* data;  // [B, C, h, w], any strides
  LogitType type;
  int64_t stride_b, stride_c, stride_h, stride_w;
};

struct LabelMap {
  const void* data;  // [B, H, W] contiguous, or null
  LabelType type;
  int64_t ignore_index;
  int64_t* bad_label;  // host-mapped: where a kernel leaves a label outside [0, C) (see label_flag.h)
};

// One axis cut into cells. Cell q holds the outputs between nodes q and q + 1; with half-pixel centres cells -1 and
// nodes - 1 hold those outside of the outer nodes. Host and device must agree on who is in which cell, so that the one
// multiply-add in it is written out: left to the compilers, one would fuse it and the other would not.
struct UpsampledAxis {
  int32_t nodes, out;
  bool align_corners;
  double scale;    // inputs per output
  double inverse;  // and outputs per input, or 0

  PSPNET_FAST_HD double position(int32_t x) const { return align_corners ? x * scale : fma(x + 0.5, scale, -0.5); }

  PSPNET_FAST_HD int32_t cell_of(int32_t x) const {
    const double at = position(x);
    if (at < 0) return -1;
    return at < nodes - 1 ? static_cast<int32_t>(at) : nodes - 1;
  }

  // The first output in `cell` or behind it.
  PSPNET_FAST_HD int32_t begin_of(int32_t cell) const {
    if (cell <= -1) return 0;
    if (cell >= nodes) return out;
    if (inverse == 0) return cell == 0 ? 0 : out;
    const double guess = ceil(align_corners ? cell * inverse : (cell + 0.5) * inverse - 0.5);
    int32_t x = guess < out ? static_cast<int32_t>(guess < 0 ? 0 : guess) : out;
    while (x > 0 && cell_of(x - 1) >= cell) --x;
    while (x < out && cell_of(x) < cell) ++x;
    return x;
  }

  // The upper node's share in output x of `cell`, and how much more it has in the next output.
  PSPNET_FAST_HD double fraction(int32_t x, int32_t cell) const { return cell < 0 ? 1.0 : position(x) - cell; }
  PSPNET_FAST_HD double step(int32_t cell) const { return cell < 0 ? 0.0 : scale; }

  // The lower node of `cell`; the upper one is the lower one of the next. PyTorch has it so: outputs in front of node 0
  // lie at it, and those behind the last node between that and itself. It shows where a logit is infinite: an infinity
  // that weighs nothing is NaN.
  PSPNET_FAST_HD int32_t node(int32_t cell) const {
    if (cell < 0) return nodes > 1 ? 1 : 0;
    return cell < nodes ? cell : nodes - 1;
  }
};

inline UpsampledAxis upsampled_axis(int64_t nodes, int64_t out, bool align_corners) {
  const double scale = source_scale(nodes, out, align_corners);
  return {static_cast<int32_t>(nodes), static_cast<int32_t>(out), align_corners, scale, scale > 0 ? 1 / scale : 0};
}

// The largest number of outputs in one cell.
inline int32_t largest_cell(const UpsampledAxis& axis) {
  int32_t most = 0;
  for (int32_t cell = -1, begin = 0; cell < axis.nodes; ++cell) {
    const int32_t end = axis.begin_of(cell + 1);
    most = end - begin > most ? end - begin : most;
    begin = end;
  }
  return most;
}

}  // namespace pspnet_fast::cuda
