// The levels of a pyramid in evaluation mode on CUDA tensors: two launches, pooling and the projection of all levels.
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

// What each level is projected by and to. `pooled` is [B, C, Σk²], or undefined where the kernel reads atoms.
Products products_of(
    const PoolTables& t, const std::vector<Level>& levels, const std::vector<NormTensors>& norms,
    const at::Tensor& pooled, const at::Tensor& out) {
  const int64_t width = out.size(1), bytes = out.element_size();
  const auto channels = static_cast<int32_t>(t.channels);
  Products products{t.levels, {}};
  int64_t first_bin = 0;
  for (int32_t l = 0; l < t.levels; ++l) {
    Product& p = products.of[l];
    const at::Tensor& weight = levels[l].weight;
    const int32_t k = t.bins[l];
    p.m = {static_cast<int32_t>(width), static_cast<int32_t>(width)};
    p.n = {static_cast<int32_t>(t.batch) * k * k, k * k};
    p.k = {channels, channels};
    p.a = {weight.const_data_ptr(), {0, weight.stride(0)}, {0, weight.stride(1)}, {}};
    p.a.reading = reading_of(p.a, p.m, p.k, bytes);
    if (pooled.defined()) {
      const char* data = static_cast<const char*>(pooled.const_data_ptr()) + first_bin * bytes;
      p.b = {data, {t.channels * t.packed_bins, 1}, {0, t.packed_bins}, {}};
      p.b.reading = reading_of(p.b, p.n, p.k, bytes);
    } else {
      p.b = {nullptr, {k * k, 1}, {0, 1}, Reading::along_depth};
    }
    p.c = static_cast<char*>(out.mutable_data_ptr()) + first_bin * bytes;
    p.c_row = {0, t.packed_bins}, p.c_column = {width * t.packed_bins, 1};
    p.c_along_rows = false;
    p.norm = norms[l].norm;
    first_bin += int64_t{k} * k;
  }
  return products;
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
  if (!tables || x.size(1) > kMost || width > kMost || x.size(0) > kMost / tables->packed_bins) {
    return by_levels(x, bins, levels);
  }
  const at::TensorOptions options = at::TensorOptions(x.device()).dtype(x.scalar_type());
  at::Tensor out = at::empty({x.size(0), width, tables->packed_bins}, options);
  if (out.numel() == 0) return out;

  std::vector<NormTensors> norms;
  for (const Level& l : levels) norms.emplace_back(x, l.mean, l.var, l.gamma, l.beta, l.eps);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  at::Tensor pooled, atoms;
  if (channels_last) {
    atoms = at::empty({x.size(0), tables->row_intervals * tables->column_intervals, x.size(1)}, accumulator(x));
    launch_pyramid_pool_nhwc_fwd(type, *tables, x.const_data_ptr(), atoms.mutable_data_ptr(), nullptr, stream);
  } else {
    pooled = at::empty({x.size(0), x.size(1), tables->packed_bins}, out.options());
    launch_pyramid_pool_nchw_fwd(type, *tables, x.const_data_ptr(), pooled.mutable_data_ptr(), stream);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const Products products = products_of(*tables, levels, norms, pooled, out);
  launch_pyramid_levels(type, *tables, channels_last ? atoms.const_data_ptr() : nullptr, products, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) { m.impl("pyramid_levels", pyramid_levels_cuda); }

}  // namespace pspnet_fast::cuda
