// What the C++ sides of the pyramid's operators share: statistics as tensors, and products.
#pragma once

#include <ATen/ops/mm.h>

#include "../checks.h"
#include "pyramid_norm.h"

namespace pspnet_fast::cuda {

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

// out = a · b by cuBLAS, whose sums are float32 in half precision; `out` has the type of a and b, or float32.
inline void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) {
    at::mm_out(out, a, b);
  } else {
    at::mm_out(out, a, b, out.scalar_type());
  }
}

// Rows of a product: the `count` bins from `first` of all images, of a contiguous tensor [Σhw, B, ...].
inline at::Tensor rows_of_bins(const at::Tensor& of_bins, int64_t first, int64_t count) {
  return of_bins.narrow(0, first, count).flatten(0, 1);
}

}  // namespace pspnet_fast::cuda
