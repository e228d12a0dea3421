// The levels of a pyramid in evaluation mode on CUDA tensors: pooling, a product for each level, and one launch for all
// normalisations.
#include "pyramid_levels.h"

#include <ATen/core/List.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/relu.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "pyramid_pool_tables.h"
#include "pyramid_tensors.h"

namespace pspnet_fast::cuda {
namespace {

struct Level {
  at::Tensor weight;  // [Ck, C, 1, 1]
  at::Tensor mean, var, gamma, beta;
  double eps;
};

std::vector<Level> check_levels(
    const at::Tensor& x, at::IntArrayRef bins, at::TensorList weight, at::TensorList mean, at::TensorList var,
    at::TensorList gamma, at::TensorList beta, at::ArrayRef<double> eps) {
  check_map("x", x);
  packed_bins(bins);
  const size_t count = bins.size();
  for (const size_t given : {weight.size(), mean.size(), var.size(), gamma.size(), beta.size(), eps.size()}) {
    TORCH_CHECK_VALUE(given == count, "every list must hold one entry for each of ", count, " bins, not ", given);
  }
  std::vector<Level> levels;
  for (size_t l = 0; l < count; ++l) {
    const std::vector<int64_t> shape = {weight[0].size(0), x.size(1), 1, 1};
    TORCH_CHECK_VALUE(weight[l].sizes() == at::IntArrayRef(shape), "weight ", l, " must be ", shape, ", not ", weight[l].sizes());
    TORCH_CHECK_TYPE(
        weight[l].scalar_type() == x.scalar_type(), "weight ", l, " is ", weight[l].scalar_type(), " but x ", x.scalar_type());
    levels.push_back({weight[l], mean[l], var[l], gamma[l], beta[l], eps[l]});
  }
  return levels;
}

// By PyTorch's own operators, where a pyramid or map is too large for the tables.
at::Tensor by_levels(const at::Tensor& x, at::IntArrayRef bins, const std::vector<Level>& levels) {
  std::vector<at::Tensor> transformed;
  for (size_t l = 0; l < levels.size(); ++l) {
    const auto& [weight, mean, var, gamma, beta, eps] = levels[l];
    const at::Tensor projected = at::conv2d(at::adaptive_avg_pool2d(x, {bins[l], bins[l]}), weight);
    transformed.push_back(at::relu(at::batch_norm(projected, gamma, beta, mean, var, false, 0.0, eps, false)).flatten(2));
  }
  return at::cat(transformed, 2);
}

at::Tensor pyramid_levels_cuda(
    const at::Tensor& input, at::IntArrayRef bins, at::TensorList weight, at::TensorList mean, at::TensorList var,
    at::TensorList gamma, at::TensorList beta, at::ArrayRef<double> eps) {
  const std::vector<Level> levels = check_levels(input, bins, weight, mean, var, gamma, beta, eps);
  const c10::cuda::CUDAGuard guard(input.device());
  const ElementType type = element_type("x", input);
  const bool channels_last = is_channels_last(input);
  const at::Tensor x = channels_last ? input : input.contiguous();
  const auto tables = make_tables(x.size(0), x.size(1), x.size(2), x.size(3), bins);
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t width = weight[0].size(0);
  if (!tables || x.size(0) > kMost / tables->packed_bins ||
      width > kMost / (x.size(0) * tables->packed_bins + 1) * 1024) {
    return by_levels(x, bins, levels);
  }
  at::Tensor out = at::empty(
      {x.size(0), width, tables->packed_bins}, at::TensorOptions(x.device()).dtype(x.scalar_type()));
  if (out.numel() == 0) return out;

  const at::Tensor pooled = pool(x, *tables).permute({2, 0, 1}).contiguous();
  at::Tensor projected = at::empty({tables->packed_bins, x.size(0), width}, accumulator(x));
  LevelNorms norms{tables->levels, {}, {}};
  std::vector<NormTensors> statistics;
  int32_t first = 0;
  for (int32_t l = 0; l < tables->levels; ++l) {
    const int32_t bins_of_level = tables->bins[l] * tables->bins[l];
    const auto& [of_level, mean, var, gamma, beta, eps] = levels[l];
    multiply(
        rows_of_bins(projected, first, bins_of_level), rows_of_bins(pooled, first, bins_of_level),
        of_level.flatten(1).t());
    norms.norm[l] = statistics.emplace_back(x, mean, var, gamma, beta, eps).norm;
    norms.bins_to[l] = first += bins_of_level;
  }
  launch_pyramid_levels(
      type, norms, x.size(0), width, projected.const_data_ptr(), out.mutable_data_ptr(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) { m.impl("pyramid_levels", pyramid_levels_cuda); }

}  // namespace pspnet_fast::cuda
