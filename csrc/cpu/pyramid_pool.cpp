// Pyramid pooling on CPU tensors: checks, geometry, scratch and threads round the kernels of pyramid_pool_*_kernel.cpp.
//
// Work is cut into planes (NCHW) or into bands and channel blocks (channels_last), each summed by one thread in one
// order: the result does not depend on the number of threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "pyramid_pool_kernel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pspnet_fast {
namespace {

// A thread is given at least this many elements of x.
constexpr int64_t kGrain = 32768;

// The C library takes a large block from the system anew in every call, and the first write to each page of 4 KiB is a
// fault: for a map of 59 MB they cost several times the writing itself. Asks for pages of 2 MiB where the system gives
// them on request; nothing happens where it does not.
void use_huge_pages(const at::Tensor& fresh) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  if (fresh.nbytes() < 4 * kPage) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(fresh.const_data_ptr());
  const uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + fresh.nbytes()) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

struct Geometry {
  Partition rows, columns;
  PoolShape shape;

  Geometry(int64_t channels, int64_t height, int64_t width, at::IntArrayRef bins)
      : rows(partition_axis(height, bins)), columns(partition_axis(width, bins)) {
    shape = {
        channels,
        height,
        width,
        static_cast<int64_t>(bins.size()),
        packed_bins(bins),
        bins.data(),
        rows.intervals(),
        columns.intervals(),
        rows.edge.data(),
        columns.edge.data(),
        rows.first.data(),
        rows.last.data(),
        columns.first.data(),
        columns.last.data(),
    };
  }
  Geometry(const Geometry&) = delete;  // shape points into rows and columns

  int64_t plane_scratch(ElementType type) const { return PSPNET_FAST_PER_ISA(pool_nchw_scratch, type, shape); }
  int64_t plane_grain() const { return std::max<int64_t>(1, kGrain / (shape.height * shape.width)); }
  int64_t blocks_per_image() const { return (shape.channels + kChannelBlock - 1) / kChannelBlock; }
};

at::Tensor pyramid_pool_cpu(const at::Tensor& input, at::IntArrayRef bins) {
  check_map("x", input);
  const ElementType type = element_type("x", input);
  const bool channels_last = is_channels_last(input);
  const at::Tensor x = channels_last ? input : input.contiguous();
  const int64_t batch = x.size(0), channels = x.size(1);
  const Geometry geometry(channels, x.size(2), x.size(3), bins);
  const PoolShape& shape = geometry.shape;
  at::Tensor out = at::empty({batch, channels, shape.packed_bins}, x.options());
  if (out.numel() == 0) return out;

  if (!channels_last) {
    at::parallel_for(0, batch * channels, geometry.plane_grain(), [&](int64_t begin, int64_t end) {
      at::Tensor scratch = at::empty({geometry.plane_scratch(type)}, accumulator(x));
      PSPNET_FAST_PER_ISA(
          pool_nchw_forward, type, shape, x.const_data_ptr(), out.mutable_data_ptr(), scratch.mutable_data_ptr(),
          begin, end);
    });
    return out;
  }
  at::Tensor atoms =
      at::empty({batch, shape.row_intervals, shape.column_intervals, channels}, accumulator(x));
  at::parallel_for(0, batch * shape.row_intervals, 1, [&](int64_t begin, int64_t end) {
    PSPNET_FAST_PER_ISA(
        pool_nhwc_atoms_forward, type, shape, x.const_data_ptr(), atoms.mutable_data_ptr(), begin, end);
  });
  at::parallel_for(0, batch * geometry.blocks_per_image(), 1, [&](int64_t begin, int64_t end) {
    PSPNET_FAST_PER_ISA(
        pool_nhwc_bins_forward, type, shape, atoms.const_data_ptr(), out.mutable_data_ptr(), begin, end);
  });
  return out;
}

// Writes the gradient of x into grad_x, or adds it; grad_x is dense, in channels_last memory or NCHW.
void spread(const at::Tensor& upstream, const at::Tensor& grad_x, at::IntArrayRef bins, bool channels_last, bool add) {
  const ElementType type = element_type("grad", upstream);
  const at::Tensor grad = upstream.contiguous();
  const int64_t batch = grad.size(0), channels = grad.size(1);
  const Geometry geometry(channels, grad_x.size(2), grad_x.size(3), bins);
  const PoolShape& shape = geometry.shape;

  if (!channels_last) {
    at::parallel_for(0, batch * channels, geometry.plane_grain(), [&](int64_t begin, int64_t end) {
      at::Tensor scratch = at::empty({geometry.plane_scratch(type)}, accumulator(grad));
      PSPNET_FAST_PER_ISA(
          pool_nchw_backward, type, add, shape, grad.const_data_ptr(), grad_x.mutable_data_ptr(),
          scratch.mutable_data_ptr(), begin, end);
    });
    return;
  }
  at::Tensor shares = at::empty({batch, shape.packed_bins, channels}, accumulator(grad));
  at::parallel_for(0, batch * geometry.blocks_per_image(), 1, [&](int64_t begin, int64_t end) {
    PSPNET_FAST_PER_ISA(
        pool_nhwc_bins_backward, type, shape, grad.const_data_ptr(), shares.mutable_data_ptr(), begin, end);
  });
  at::parallel_for(0, batch * shape.row_intervals, 1, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({shape.column_intervals, channels}, accumulator(grad));
    PSPNET_FAST_PER_ISA(
        pool_nhwc_atoms_backward, type, add, shape, shares.const_data_ptr(), grad_x.mutable_data_ptr(),
        scratch.mutable_data_ptr(), begin, end);
  });
}

at::Tensor pyramid_pool_backward_cpu(
    const at::Tensor& grad, int64_t height, int64_t width, at::IntArrayRef bins, bool channels_last) {
  check_packed(grad, bins);
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  at::Tensor grad_x = empty_map(grad, height, width, channels_last);
  use_huge_pages(grad_x);
  if (grad_x.numel() != 0) spread(grad, grad_x, bins, channels_last, /*add=*/false);
  return grad_x;
}

void pyramid_pool_backward_add_cpu(at::Tensor& grad_x, const at::Tensor& grad, at::IntArrayRef bins) {
  check_accumulator(grad_x, grad, bins);
  if (grad_x.numel() != 0) spread(grad, grad_x, bins, is_channels_last(grad_x), /*add=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) {
  m.impl("pyramid_pool", pyramid_pool_cpu);
  m.impl("pyramid_pool_backward", pyramid_pool_backward_cpu);
  m.impl("pyramid_pool_backward_add", pyramid_pool_backward_add_cpu);
}

}  // namespace pspnet_fast
