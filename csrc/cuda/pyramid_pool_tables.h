// The tables of pyramid_pool.h for a map and its bins, and pooling by them.
#pragma once

#include <algorithm>
#include <optional>

#include "../checks.h"
#include "pyramid_pool.h"

namespace pspnet_fast::cuda {

// Nothing where a pyramid or map is too large for the tables: then PyTorch's own pooling serves.
inline std::optional<PoolTables> make_tables(
    int64_t batch, int64_t channels, int64_t height, int64_t width, at::IntArrayRef bins) {
  int64_t total = 0;
  for (int64_t k : bins) total += k;
  const int64_t packed = packed_bins(bins);
  constexpr int64_t kMaxHeight = int64_t{1} << 30;
  if (bins.size() > kMaxLevels || total > kMaxBins || width > kMaxWidth || height > kMaxHeight / width) return {};

  const Partition rows = partition_axis(height, bins), columns = partition_axis(width, bins);
  PoolTables t{};
  t.batch = batch;
  t.channels = channels;
  t.height = static_cast<int32_t>(height);
  t.width = static_cast<int32_t>(width);
  t.levels = static_cast<int32_t>(bins.size());
  t.packed_bins = static_cast<int32_t>(packed);
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
  const int64_t most_blocks = batch * channels * std::max<int64_t>(t.row_intervals * t.column_intervals, t.packed_bins);
  if (most_blocks > (int64_t{1} << 31) - 1) return {};
  return t;
}

// The bins [B, C, Σk²] of a map that is dense in NCHW or channels_last memory.
at::Tensor pool(const at::Tensor& x, const PoolTables& tables);

}  // namespace pspnet_fast::cuda
