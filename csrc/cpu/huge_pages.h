// Memory for large results.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pspnet_fast {

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
