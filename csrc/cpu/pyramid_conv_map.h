// Between Q of a pyramid's levels and a map, on all threads: what the convolution over a pyramid and the
// concatenation share.
#pragma once

#include <ATen/Parallel.h>

#include "pyramid_conv_geometry.h"

namespace pspnet_fast {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs body(scratch, begin, end) over tasks [0, count), with `scratch` numbers of like's accumulator for each thread.
template <typename Body>
void for_tasks(int64_t count, int64_t scratch, const at::Tensor& like, Body body) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor own = at::empty({scratch}, accumulator(like));
    body(own.mutable_data_ptr(), begin, end);
  });
}

// y from interpolated Q, as the epilogue says.
inline void q_to_map(
    const ConvGeometry& geometry, bool channels_last, const at::Tensor& q, const at::Tensor& y,
    ConvEpilogue epilogue) {
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  if (channels_last) {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nhwc_scratch, type, shape);
    for_tasks(shape.batch * shape.height, scratch, y, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_add_nhwc, type, shape, q.const_data_ptr(), y.mutable_data_ptr(), epilogue, own, begin, end);
    });
  } else {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nchw_scratch, shape);
    for_tasks(shape.batch * shape.out_channels, scratch, y, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_add_nchw, type, shape, q.const_data_ptr(), y.mutable_data_ptr(), epilogue, own, begin, end);
    });
  }
}

// The gradient of Q, as NCHW has it, from that of the map.
inline at::Tensor map_to_q(const ConvGeometry& geometry, bool channels_last, const at::Tensor& grad) {
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  at::Tensor q = at::empty({geometry.q_size(/*channels_last=*/false)}, accumulator(grad));
  if (channels_last) {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nhwc_scratch, type, shape);
    const int64_t tasks = shape.batch * PSPNET_FAST_PER_ISA(conv_nhwc_blocks, type, shape);
    for_tasks(tasks, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_gather_nhwc, type, shape, grad.const_data_ptr(), q.mutable_data_ptr(), own, begin, end);
    });
  } else {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nchw_scratch, shape);
    for_tasks(shape.batch * shape.out_channels, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_gather_nchw, type, shape, grad.const_data_ptr(), q.mutable_data_ptr(), own, begin, end);
    });
  }
  return q;
}

}  // namespace pspnet_fast
