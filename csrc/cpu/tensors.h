// Tensors as the kernels see them: element type, scratch, and memory for large results.
#pragma once

#include <ATen/core/Tensor.h>

#include "element_type.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pspnet_fast {

inline ElementType element_type(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return ElementType::f32;
    case at::kDouble: return ElementType::f64;
    case at::kHalf: return ElementType::f16;
    case at::kBFloat16: return ElementType::bf16;
    default: TORCH_CHECK_TYPE(false, "x must be float32, float64, float16 or bfloat16, not ", x.scalar_type());
  }
}

// Options of scratch in the type that sums of x are taken in.
inline at::TensorOptions accumulator(const at::Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// The C library takes a large block from the system anew in every call, and the first write to each page of 4 KiB is a
// fault: for a map of 59 MB they cost several times the writing itself. Asks for pages of 2 MiB where the system gives
// them on request; nothing happens where it does not.
inline void use_huge_pages(const at::Tensor& fresh) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  if (fresh.nbytes() < 4 * kPage) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(fresh.const_data_ptr());
  const uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + fresh.nbytes()) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace pspnet_fast
