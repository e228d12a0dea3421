// What the C++ sides of the pyramid's operators share: element types, and tensors as axes of products.
#pragma once

#include "../checks.h"
#include "pyramid_product.h"

namespace pspnet_fast::cuda {

// Whether an axis of a side can be read in vectors of 16 bytes: neighbours follow each other, and all else is aligned.
inline bool follows(Axis axis, Strides along, Strides across, int64_t vector) {
  const bool one_run = axis.size == axis.inner;
  return along.inner == 1 && axis.inner % vector == 0 && (one_run || along.outer % vector == 0) &&
         across.inner % vector == 0 && across.outer % vector == 0;
}

// How to read a side of `rows` x `depth`.
inline Reading reading_of(const Side& side, Axis rows, Axis depth, int64_t element_bytes) {
  const int64_t vector = 16 / element_bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(side.data) % 16 == 0;
  if (aligned && follows(depth, side.depth, side.row, vector)) return Reading::packs_along_depth;
  if (aligned && follows(rows, side.row, side.depth, vector)) return Reading::packs_along_rows;
  return side.depth.inner <= side.row.inner ? Reading::along_depth : Reading::along_rows;
}

// Keeps the tensors of a Norm alive for the call.
struct NormTensors {
  at::Tensor tensors[4];
  Norm norm{};

  NormTensors() = default;
  NormTensors(
      const at::Tensor& like, const at::Tensor& mean, const at::Tensor& var, const at::Tensor& gamma,
      const at::Tensor& beta, double eps)
      : tensors{mean, var, gamma, beta} {
    bool own = true;
    for (const at::Tensor& t : tensors) own = own && t.scalar_type() == like.scalar_type();
    for (at::Tensor& t : tensors) t = (own ? t : t.to(accumulator_type(like))).contiguous();
    norm = {tensors[0].const_data_ptr(), tensors[1].const_data_ptr(), tensors[2].const_data_ptr(),
            tensors[3].const_data_ptr(), eps, !own};
  }
};

}  // namespace pspnet_fast::cuda
