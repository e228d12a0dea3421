// Arg-max of upsampled logits on CPU tensors, and what the operators on upsampled logits share.
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <vector>

#include "upsampled_logits.h"

namespace pspnet_fast {

namespace {

void run(const ArgmaxProblem& p) {
  // Neighbouring cell rows share a row of nodes: blocks of them, not single ones.
  constexpr int64_t kBlock = 4;
  const int64_t rows = p.batch * p.rows.cells;
  run_tasks((rows + kBlock - 1) / kBlock, PSPNET_FAST_PER_ISA(argmax_scratch, p), [&](int64_t i, void* scratch) {
    PSPNET_FAST_PER_ISA(upsample_argmax_rows, p, i * kBlock, std::min(rows, (i + 1) * kBlock), scratch);
  });
}

at::Tensor upsample_argmax(
    const at::Tensor& given, int64_t height, int64_t width, bool align_corners, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(height >= 1 && width >= 1, "height and width must be at least 1, not ", height, " and ", width);
  const at::Tensor logits = dense(given, in_channels_last(given));
  ArgmaxProblem p{};
  const Upsampling upsampling(p, logits, height, width, align_corners);
  at::Tensor labels =
      at::empty({logits.size(0), height, width}, logits.options().dtype(dtype).memory_format(std::nullopt));
  p.logits = logits.const_data_ptr();
  p.out_type = label_type("dtype", dtype);
  p.out = labels.mutable_data_ptr();
  run(p);
  return labels;
}

}  // namespace

std::pair<at::Tensor, at::Tensor> argmax(
    const at::Tensor& given, const at::Tensor& target, int64_t ignore_index, bool align_corners, bool labels,
    bool correct) {
  const at::TensorOptions integers = given.options().dtype(at::kLong).memory_format(std::nullopt);
  at::Tensor best = labels ? at::empty(target.sizes(), integers) : at::empty({0}, integers);
  if (!labels && !correct) return {best, at::empty({0}, integers)};

  const at::Tensor logits = dense(given, in_channels_last(given)), truth = target.contiguous();
  ArgmaxProblem p{};
  const Upsampling upsampling(p, logits, target.size(1), target.size(2), align_corners);
  std::vector<int64_t> counts(p.batch * p.rows.cells);
  p.logits = logits.const_data_ptr();
  p.out_type = LabelType::i64;
  p.out = labels ? best.mutable_data_ptr() : nullptr;
  if (correct) {
    p.target = truth.const_data_ptr();
    p.label_type = label_type("target", truth.scalar_type());
    p.ignore_index = ignore_index;
    p.correct = counts.data();
  }
  if (target.numel() > 0) run(p);
  int64_t total = 0;
  for (int64_t count : counts) total += count;
  return {best, correct ? at::scalar_tensor(total, integers) : at::empty({0}, integers)};
}

TORCH_LIBRARY_IMPL(pspnet_fast, CPU, m) { m.impl("upsample_argmax", upsample_argmax); }

}  // namespace pspnet_fast
