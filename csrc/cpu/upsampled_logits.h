// What the operators on upsampled logits share on CPU tensors: types, geometry, threads, and the arg-max.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "../geometry.h"
#include "../tensors.h"
#include "upsampled_logits_kernel.h"

namespace pspnet_fast {

inline ElementType logit_type(const at::Tensor& logits) { return element_type("logits", logits); }
inline at::ScalarType real_type(const at::Tensor& logits) { return accumulator_type(logits); }
inline bool in_channels_last(const at::Tensor& logits) { return is_channels_last(logits); }
inline at::Tensor dense(const at::Tensor& logits, bool channels_last) {
  return logits.contiguous(channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

// The geometry of `logits` upsampled to [out_height, out_width]; `problem` points into it.
struct Upsampling {
  Cells rows, columns;

  Upsampling(
      UpsampledLogits& problem, const at::Tensor& logits, int64_t out_height, int64_t out_width, bool align_corners) {
    problem.type = logit_type(logits);
    TORCH_CHECK_VALUE(
        logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
        "logits must be [B, C, h, w] with C, h and w at least 1, not of shape ", logits.sizes());
    rows = cut_cells(logits.size(2), out_height, align_corners);
    columns = cut_cells(logits.size(3), out_width, align_corners);
    problem.batch = logits.size(0), problem.classes = logits.size(1);
    problem.stride_b = logits.stride(0), problem.stride_c = logits.stride(1);
    problem.stride_h = logits.stride(2), problem.stride_w = logits.stride(3);
    problem.rows = axis(rows, logits.size(2)), problem.columns = axis(columns, logits.size(3));
    problem.out_height = out_height, problem.out_width = out_width;
  }
  Upsampling(const Upsampling&) = delete;

 private:
  static CellAxis axis(const Cells& cells, int64_t nodes) {
    return {nodes,
            cells.size(),
            cells.first_node,
            std::max<int64_t>(1, cells.most()),
            cells.begin.data(),
            cells.count.data(),
            cells.start.data(),
            cells.step};
  }
};

// Calls task(i, scratch) for every i below `tasks` on torch's threads, each with memory of its own; a thread takes the
// next task when it is free.
template <typename Task>
void run_tasks(int64_t tasks, int64_t scratch_bytes, const Task& task) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    struct Free {
      void operator()(void* memory) const { std::free(memory); }
    };
    const std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, (scratch_bytes + 63) / 64 * 64));
    if (scratch == nullptr) throw std::bad_alloc();
    for (int64_t i = next++; i < tasks; i = next++) task(i, scratch.get());
  });
}

// Labels [B, H, W] of upsampled logits and the number of those that are `target`; each empty unless wanted.
std::pair<at::Tensor, at::Tensor> argmax(
    const at::Tensor& logits, const at::Tensor& target, int64_t ignore_index, bool align_corners, bool labels,
    bool correct);

}  // namespace pspnet_fast
