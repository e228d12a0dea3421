// Pyramid pooling on CPU tensors: checks, geometry, scratch and tasks round pyramid_pool_kernel.cpp. Tasks are planes
// in NCHW, bands of rows and blocks of channels in channels_last.
#include <torch/library.h>

#include "../checks.h"
#include "pyramid_pool_kernel.h"
#include "tasks.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pspnet_fast {
namespace {

// There are no more threads than have this many elements of x each.
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

// The geometry of one call, as kernels take it.
struct Pooling {
  Partition rows, columns;
  PoolProblem problem{};

  Pooling(ElementType type, const at::Tensor& map, at::IntArrayRef bins)
      : rows(partition_axis(map.size(2), bins)), columns(partition_axis(map.size(3), bins)) {
    problem.type = type;
    problem.batch = map.size(0), problem.channels = map.size(1);
    problem.rows = axis(map.size(2), rows), problem.columns = axis(map.size(3), columns);
    problem.levels = static_cast<int64_t>(bins.size()), problem.packed_bins = packed_bins(bins);
    problem.bins = bins.data();
  }
  Pooling(const Pooling&) = delete;  // problem points into rows and columns

  static PoolAxis axis(int64_t size, const Partition& partition) {
    return {size, partition.intervals(), partition.edge.data(), partition.first.data(), partition.last.data()};
  }

  int64_t bands() const { return problem.batch * rows.intervals(); }
  int64_t blocks() const { return problem.batch * ceil_div(problem.channels, kChannelBlock); }

  void run(
      Kernel<PoolProblem>* kernel, const at::Tensor& from, const at::Tensor& to, int64_t tasks, int64_t scratch = 0,
      int64_t chunk = 1) {
    problem.from = from.const_data_ptr(), problem.to = to.mutable_data_ptr();
    run_tasks(kernel, problem, tasks, scratch, chunk);
  }

  // Planes are worked on in lanes: a thread takes all of its planes at once.
  void run_planes(Kernel<PoolProblem>* kernel, const at::Tensor& from, const at::Tensor& to) {
    const int64_t planes = problem.batch * problem.channels;
    const int64_t elements = planes * problem.rows.size * problem.columns.size;
    const int64_t threads = std::clamp<int64_t>(ceil_div(elements, kGrain), 1, at::get_num_threads());
    run(kernel, from, to, planes, PSPNET_FAST_PER_ISA(pool_nchw_scratch)(problem), ceil_div(planes, threads));
  }
};

at::Tensor pyramid_pool_cpu(const at::Tensor& input, at::IntArrayRef bins) {
  check_map("x", input);
  const ElementType type = element_type("x", input);
  const bool channels_last = is_channels_last(input);
  const at::Tensor x = channels_last ? input : input.contiguous();
  Pooling pooling(type, x, bins);
  const int64_t batch = x.size(0), channels = x.size(1);
  at::Tensor out = at::empty({batch, channels, pooling.problem.packed_bins}, x.options());
  if (out.numel() == 0) return out;
  if (!channels_last) {
    pooling.run_planes(PSPNET_FAST_PER_ISA(pool_nchw_forward), x, out);
    return out;
  }
  const at::Tensor atoms =
      at::empty({batch, pooling.rows.intervals(), pooling.columns.intervals(), channels}, accumulator(x));
  pooling.run(PSPNET_FAST_PER_ISA(pool_nhwc_atoms_forward), x, atoms, pooling.bands());
  pooling.run(PSPNET_FAST_PER_ISA(pool_nhwc_bins_forward), atoms, out, pooling.blocks());
  return out;
}

// Writes the gradient of x into grad_x, or adds it; grad_x is dense, in channels_last memory or NCHW.
void spread(const at::Tensor& upstream, const at::Tensor& grad_x, at::IntArrayRef bins, bool channels_last, bool add) {
  const ElementType type = element_type("grad", upstream);
  const at::Tensor grad = upstream.contiguous();
  Pooling pooling(type, grad_x, bins);
  pooling.problem.add = add;
  if (!channels_last) return pooling.run_planes(PSPNET_FAST_PER_ISA(pool_nchw_backward), grad, grad_x);
  const at::TensorOptions sums = accumulator(grad);
  const at::Tensor shares = at::empty({grad.size(0), pooling.problem.packed_bins, grad.size(1)}, sums);
  const int64_t scratch = pooling.columns.intervals() * grad.size(1) * static_cast<int64_t>(sums.dtype().itemsize());
  pooling.run(PSPNET_FAST_PER_ISA(pool_nhwc_bins_backward), grad, shares, pooling.blocks());
  pooling.run(PSPNET_FAST_PER_ISA(pool_nhwc_atoms_backward), shares, grad_x, pooling.bands(), scratch);
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
