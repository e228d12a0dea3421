// Checks and geometry that the CPU and CUDA sides of pyramid pooling share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "geometry.h"

namespace pspnet_fast {

inline int64_t packed_cells(at::IntArrayRef bins) {
  TORCH_CHECK_VALUE(!bins.empty(), "bins must hold at least one positive integer, not []");
  int64_t cells = 0;
  for (int64_t k : bins) {
    TORCH_CHECK_VALUE(k >= 1, "bins must be positive integers such as [1, 2, 3, 6], not ", bins);
    cells += k * k;
  }
  return cells;
}

inline void check_map(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " must be [B, C, H, W], not of shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(2) >= 1 && x.size(3) >= 1, name, " has no cells: its shape is ", x.sizes());
}

inline void check_packed(const at::Tensor& grad, at::IntArrayRef bins) {
  const int64_t cells = packed_cells(bins);
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && grad.size(2) == cells, "grad must be [B, C, ", cells, "] for bins ", bins, ", not ", grad.sizes());
}

// A gradient of x that more is added into, in place.
inline void check_accumulator(const at::Tensor& grad_x, const at::Tensor& grad, at::IntArrayRef bins) {
  check_map("grad_x", grad_x);
  check_packed(grad, bins);
  TORCH_CHECK_VALUE(
      grad.size(0) == grad_x.size(0) && grad.size(1) == grad_x.size(1), "grad must be [", grad_x.size(0), ", ",
      grad_x.size(1), ", Σk²] for grad_x of shape ", grad_x.sizes(), ", not ", grad.sizes());
  TORCH_CHECK_TYPE(
      grad.scalar_type() == grad_x.scalar_type(), "grad is ", grad.scalar_type(), " but grad_x ", grad_x.scalar_type(),
      "; convert one of them");
  TORCH_CHECK_VALUE(
      grad.device() == grad_x.device(), "grad is on ", grad.device(), " but grad_x on ", grad_x.device(), "; move one");
  TORCH_CHECK_VALUE(
      grad_x.is_contiguous() || grad_x.is_contiguous(at::MemoryFormat::ChannelsLast),
      "grad_x must be dense in NCHW or channels_last memory to be added into, not of strides ", grad_x.strides(),
      " for shape ", grad_x.sizes(), "; pass grad_x.contiguous()");
}

inline bool reads_channels_last(const at::Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
}

inline at::Tensor empty_map(const at::Tensor& packed, int64_t height, int64_t width, bool channels_last) {
  return at::empty(
      {packed.size(0), packed.size(1), height, width},
      packed.options().memory_format(
          channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
}

}  // namespace pspnet_fast
