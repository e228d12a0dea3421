// Tensors' element types as the pyramid's kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "elements.h"

namespace pspnet_fast::cuda {

inline ElementType element_type(const char* name, const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return ElementType::f32;
    case at::kDouble: return ElementType::f64;
    case at::kHalf: return ElementType::f16;
    case at::kBFloat16: return ElementType::bf16;
    default: TORCH_CHECK_TYPE(false, name, " must be float32, float64, float16 or bfloat16, not ", x.scalar_type());
  }
}

// What sums are taken in.
inline at::ScalarType accumulator_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace pspnet_fast::cuda
