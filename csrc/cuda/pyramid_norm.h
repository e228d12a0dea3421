// A normalisation by fixed statistics, as kernels take it.
#pragma once

namespace pspnet_fast::cuda {

// Absent where `mean` is null.
struct Norm {
  const void *mean, *var, *gamma, *beta;  // of the accumulator's type if `wide`, else of the map's
  double eps;
  bool wide;
};

}  // namespace pspnet_fast::cuda
