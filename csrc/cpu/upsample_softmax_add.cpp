// Probabilities of upsampled logits added into a map, on CPU tensors.
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../softmax_add_checks.h"
#include "upsampled_logits.h"

namespace pspnet_fast {
namespace {

// The cell of every output position.
std::vector<int32_t> cell_of(const Cells& cells, int64_t out) {
  std::vector<int32_t> cell(out);
  for (int64_t q = 0; q < cells.size(); ++q) {
    std::fill_n(cell.begin() + (cells.count[q] ? cells.begin[q] : 0), cells.count[q], static_cast<int32_t>(q));
  }
  return cell;
}

AxisTable table(
    const char* name, const std::optional<at::Tensor>& index, const std::optional<at::Tensor>& weight, int64_t size) {
  if (!index.has_value()) return {nullptr, nullptr};
  const int32_t* position = index->const_data_ptr<int32_t>();
  for (int64_t i = 0; i < index->numel(); ++i) {
    TORCH_CHECK_VALUE(
        position[i] >= 0 && position[i] < size, name, ".position must be in [0, ", size, ") for the upsampled map, not ",
        position[i], " for position ", i / 2);
  }
  return {position, weight->const_data_ptr()};
}

void upsample_softmax_add(
    at::Tensor& total, const at::Tensor& given, int64_t height, int64_t width, bool align_corners, bool flip,
    double weight, const std::optional<at::Tensor>& row_index, const std::optional<at::Tensor>& row_weight,
    const std::optional<at::Tensor>& column_index, const std::optional<at::Tensor>& column_weight) {
  check_softmax_add(total, given, height, width, row_index, row_weight, column_index, column_weight);
  const at::Tensor logits = dense(given, in_channels_last(given));
  SoftmaxAddProblem p{};
  const Upsampling upsampling(p, logits, height, width, align_corners);
  const std::vector<int32_t> cell_of_row = cell_of(upsampling.rows, height);
  const std::vector<int32_t> cell_of_column = cell_of(upsampling.columns, width);
  p.logits = logits.const_data_ptr();
  p.cell_of_row = cell_of_row.data(), p.cell_of_column = cell_of_column.data();
  p.flip = flip, p.weight = weight;
  p.row_table = table("rows", row_index, row_weight, height);
  p.column_table = table("columns", column_index, column_weight, width);
  if (total.numel() == 0) return;
  p.total = total.mutable_data_ptr();
  p.total_height = total.size(2), p.total_width = total.size(3);
  p.total_stride_b = total.stride(0), p.total_stride_c = total.stride(1);
  p.total_stride_h = total.stride(2), p.total_stride_w = total.stride(3);

  constexpr int64_t kBlock = 16;  // rows: neighbouring ones read the same nodes
  const int64_t blocks = (p.total_height + kBlock - 1) / kBlock;
  run_tasks(p.batch * blocks, PSPNET_FAST_PER_ISA(softmax_add_scratch, p), [&](int64_t i, void* scratch) {
    const int64_t begin = i % blocks * kBlock, end = std::min(p.total_height, begin + kBlock);
    PSPNET_FAST_PER_ISA(upsample_softmax_add_rows, p, i / blocks, begin, end, scratch);
  });
}

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) { m.impl("upsample_softmax_add", upsample_softmax_add); }

}  // namespace
}  // namespace pspnet_fast
