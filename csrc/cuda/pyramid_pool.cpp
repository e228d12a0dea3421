// Pyramid pooling on CUDA tensors: checks, geometry and scratch round the kernels of pyramid_pool.cu.
#include "pyramid_pool.h"

#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "../pool_checks.h"

namespace pspnet_fast::cuda {
namespace {

PoolType pool_type(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return PoolType::f32;
    case at::kDouble: return PoolType::f64;
    case at::kHalf: return PoolType::f16;
    case at::kBFloat16: return PoolType::bf16;
    default: TORCH_CHECK_TYPE(false, "x must be float32, float64, float16 or bfloat16, not ", x.scalar_type());
  }
}

at::TensorOptions accumulator(const at::Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// Nothing where a pyramid or map is too large for the tables: then PyTorch's own pooling serves.
std::optional<PoolTables> make_tables(
    int64_t batch, int64_t channels, int64_t height, int64_t width, at::IntArrayRef bins) {
  int64_t total = 0;
  for (int64_t k : bins) total += k;
  const int64_t cells = packed_cells(bins);
  constexpr int64_t kMaxHeight = int64_t{1} << 30;
  if (bins.size() > kMaxLevels || total > kMaxBins || width > kMaxWidth || height > kMaxHeight / width) return {};

  const Partition rows = partition_axis(height, bins), columns = partition_axis(width, bins);
  PoolTables t{};
  t.batch = batch;
  t.channels = channels;
  t.height = static_cast<int32_t>(height);
  t.width = static_cast<int32_t>(width);
  t.levels = static_cast<int32_t>(bins.size());
  t.cells = static_cast<int32_t>(cells);
  t.row_intervals = rows.intervals();
  t.column_intervals = columns.intervals();
  std::copy(bins.begin(), bins.end(), t.bins);
  std::copy(rows.edge.begin(), rows.edge.end(), t.row_edge);
  std::copy(rows.first.begin(), rows.first.end(), t.row_first);
  std::copy(rows.last.begin(), rows.last.end(), t.row_last);
  std::copy(columns.edge.begin(), columns.edge.end(), t.column_edge);
  std::copy(columns.first.begin(), columns.first.end(), t.column_first);
  std::copy(columns.last.begin(), columns.last.end(), t.column_last);

  // One-dimensional grids hold 2^31 - 1 blocks.
  const int64_t most_blocks = batch * channels * std::max<int64_t>(t.row_intervals * t.column_intervals, t.cells);
  if (most_blocks > (int64_t{1} << 31) - 1) return {};
  return t;
}

at::Tensor pool_by_levels(const at::Tensor& x, at::IntArrayRef bins) {
  std::vector<at::Tensor> levels;
  for (int64_t k : bins) levels.push_back(at::adaptive_avg_pool2d(x, {k, k}).flatten(2));
  return at::cat(levels, 2);
}

at::Tensor pool_by_levels_backward(
    const at::Tensor& grad, int64_t height, int64_t width, at::IntArrayRef bins, bool channels_last) {
  const at::Tensor like = empty_map(grad, height, width, channels_last);  // its shape and layout are what is asked for
  at::Tensor total = at::zeros_like(like);
  int64_t first = 0;
  for (int64_t k : bins) {
    total += at::_adaptive_avg_pool2d_backward(grad.narrow(2, first, k * k).unflatten(2, {k, k}).contiguous(), like);
    first += k * k;
  }
  return total;
}

at::Tensor pyramid_pool_cuda(const at::Tensor& input, at::IntArrayRef bins) {
  check_map("x", input);
  const c10::cuda::CUDAGuard guard(input.device());
  const PoolType type = pool_type(input);
  const bool channels_last = reads_channels_last(input);
  const at::Tensor x = channels_last ? input : input.contiguous();
  const auto tables = make_tables(x.size(0), x.size(1), x.size(2), x.size(3), bins);
  if (!tables) return pool_by_levels(x, bins);
  at::Tensor out = at::empty({x.size(0), x.size(1), tables->cells}, x.options());
  if (out.numel() == 0) return out;

  at::Tensor atoms;
  if (channels_last) {
    atoms = at::empty({x.size(0), tables->row_intervals * tables->column_intervals, x.size(1)}, accumulator(x));
  }
  launch_pyramid_pool_fwd(
      type, channels_last, *tables, x.const_data_ptr(), channels_last ? atoms.mutable_data_ptr() : nullptr,
      out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

at::Tensor pyramid_pool_backward_cuda(
    const at::Tensor& upstream, int64_t height, int64_t width, at::IntArrayRef bins, bool channels_last) {
  check_packed(upstream, bins);
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  const c10::cuda::CUDAGuard guard(upstream.device());
  const PoolType type = pool_type(upstream);
  const at::Tensor grad = upstream.contiguous();
  const auto tables = make_tables(grad.size(0), grad.size(1), height, width, bins);
  if (!tables) return pool_by_levels_backward(grad, height, width, bins, channels_last);
  at::Tensor grad_x = empty_map(grad, height, width, channels_last);
  if (grad_x.numel() == 0) return grad_x;

  launch_pyramid_pool_bwd(
      type, channels_last, *tables, grad.const_data_ptr(), grad_x.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) {
  m.impl("pyramid_pool", pyramid_pool_cuda);
  m.impl("pyramid_pool_backward", pyramid_pool_backward_cuda);
}

}  // namespace pspnet_fast::cuda
