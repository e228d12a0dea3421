// Checks of pyramid_concat's arguments.
#pragma once

#include "pool_checks.h"

namespace pspnet_fast {

inline void check_concat(const at::Tensor& x, const at::Tensor& levels, at::IntArrayRef bins) {
  check_map("x", x);
  const int64_t cells = packed_cells(bins);
  TORCH_CHECK_VALUE(
      levels.dim() == 3 && levels.size(0) == x.size(0) && levels.size(2) == cells, "levels must be [", x.size(0),
      ", channels, ", cells, "] for x of batch ", x.size(0), " and bins ", bins, ", not ", levels.sizes());
  TORCH_CHECK_TYPE(
      levels.scalar_type() == x.scalar_type(), "levels is ", levels.scalar_type(), " but x ", x.scalar_type(),
      "; convert one of them");
  TORCH_CHECK_VALUE(
      levels.device() == x.device(), "levels is on ", levels.device(), " but x on ", x.device(), "; move one of them");
}

// Returns the channels of one level.
inline int64_t check_concat_grad(const at::Tensor& grad, int64_t channels, at::IntArrayRef bins) {
  check_map("grad", grad);
  packed_cells(bins);
  const auto count = static_cast<int64_t>(bins.size());
  const int64_t of_levels = grad.size(1) - channels;
  TORCH_CHECK_VALUE(
      channels >= 0 && of_levels >= 0 && of_levels % count == 0, "grad has ", grad.size(1), " channels, which are not ",
      channels, " of x and as many again for each of ", count, " levels; channels must be x.size(1)");
  return of_levels / count;
}

}  // namespace pspnet_fast
