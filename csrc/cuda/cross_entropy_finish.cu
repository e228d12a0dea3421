// What follows the cross-entropy kernel: the loss, the nodes between two strips; and in backward the scaled gradient.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cross_entropy.h"
#include "launch.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

struct Results {
  void* loss[2];
  void* scale;
};

__device__ __forceinline__ int64_t partial_count(const CrossEntropyProblem& p, const CrossEntropyHead& head) {
  return int64_t{p.batch} * head.tiles * (head.rows.nodes - head.first_row);
}

// A block sums a head's losses, and the divisor, which is the first head's: every thread its own, then in pairs.
template <typename Real>
__device__ __forceinline__ void reduce_head(
    const CrossEntropyProblem& p, const Reduction& reduction, const Results& results, int which) {
  __shared__ double losses[kThreads], divisors[kThreads];
  const int thread = threadIdx.x;
  double loss = 0, divisor = 0;
  for (int64_t i = thread; i < partial_count(p, p.head[which]); i += kThreads) loss += p.head[which].partial[i].x;
  for (int64_t i = thread; i < partial_count(p, p.head[0]); i += kThreads) divisor += p.head[0].partial[i].y;
  losses[thread] = loss, divisors[thread] = divisor;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) losses[thread] += losses[thread + half], divisors[thread] += divisors[thread + half];
  }
  if (thread != 0) return;

  divisor = reduction.divisor > 0 ? reduction.divisor : divisors[0];
  const bool nothing = reduction.mean && divisor == 0;
  const double scale = nothing ? 0 : reduction.mean ? 1 / divisor : 1;
  if (which == 0) *static_cast<Real*>(results.scale) = static_cast<Real>(scale);
  if (results.loss[which] == nullptr) return;
  *static_cast<Real*>(results.loss[which]) = static_cast<Real>(nothing ? reduction.nothing : losses[0] * scale);
}

int64_t blocks_of_row(const CrossEntropyProblem& p, const CrossEntropyHead& head) {
  const int64_t values = int64_t{p.classes} * head.columns.nodes;
  return (values + kThreads * kPerThread - 1) / (kThreads * kPerThread);
}

// A block adds a part of one row of nodes, of all classes, to the row that the strip above has written.
template <typename Real>
__device__ __forceinline__ void add_edges(
    const CrossEntropyProblem& p, const CrossEntropyHead& head, int64_t block, int64_t row_blocks) {
  const int64_t edge = block / row_blocks;  // strip · batch + image
  const int width = head.columns.nodes, values = p.classes * width;
  const int strip = static_cast<int>(edge / p.batch), image = static_cast<int>(edge % p.batch);
  const int row = head.first_row + (strip + 1) * head.strip_rows;
  const Strides& stride = head.grad_stride;
  const Real* from = static_cast<const Real*>(head.edges) + edge * values;
  Real* to = static_cast<Real*>(head.grad) + image * stride.b + row * stride.h;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = static_cast<int>(block % row_blocks) * kThreads * kPerThread + j * kThreads + threadIdx.x;
    if (i >= values) return;
    const int c = stride.c == 1 ? i % p.classes : i / width, w = stride.c == 1 ? i / p.classes : i % width;
    to[c * stride.c + w * stride.w] += from[i];
  }
}

// Blocks: one for each head's loss, then those of the first head's edges, then those of the second's.
template <typename Real>
__global__ void __launch_bounds__(kThreads) cross_entropy_finish_kernel(
    const __grid_constant__ CrossEntropyProblem p, const __grid_constant__ Reduction reduction,
    const __grid_constant__ Results results, int64_t edge_blocks_of_first, int64_t row_blocks_of_first,
    int64_t row_blocks_of_second) {
  const int64_t block = int64_t{blockIdx.x} - p.heads;
  if (block < 0) {
    reduce_head<Real>(p, reduction, results, blockIdx.x);
  } else if (block < edge_blocks_of_first) {
    add_edges<Real>(p, p.head[0], block, row_blocks_of_first);
  } else {
    add_edges<Real>(p, p.head[1], block - edge_blocks_of_first, row_blocks_of_second);
  }
}

template <typename Real>
void finish(const CrossEntropyProblem& p, const Reduction& reduction, const Results& results, cudaStream_t stream) {
  int64_t edge_blocks[2] = {0, 0}, row_blocks[2] = {1, 1};
  for (int i = 0; i < p.heads; ++i) {
    row_blocks[i] = blocks_of_row(p, p.head[i]);
    if (p.head[i].grad != nullptr) edge_blocks[i] = row_blocks[i] * (p.head[i].strips - 1) * p.batch;
  }
  const auto blocks = static_cast<unsigned>(p.heads + edge_blocks[0] + edge_blocks[1]);
  PSPNET_FAST_LAUNCH(
      (cross_entropy_finish_kernel<Real>), blocks, kThreads, 0, stream, p, reduction, results, edge_blocks[0],
      row_blocks[0], row_blocks[1]);
}

struct ScaledGradients {
  ScaledGradient head[2];
};

template <typename T, typename Real>
__global__ void __launch_bounds__(kThreads) scale_gradient_kernel(const __grid_constant__ ScaledGradients heads) {
  const ScaledGradient& head = heads.head[blockIdx.y];
  const Real* state = static_cast<const Real*>(head.state);
  T* grad_logits = static_cast<T*>(head.grad_logits);
  const Real scale = *static_cast<const Real*>(head.grad) * *static_cast<const Real*>(head.scale);
  const int64_t first = int64_t{blockIdx.x} * kThreads * kPerThread + threadIdx.x;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t i = first + j * kThreads;
    if (i < head.count) grad_logits[i] = static_cast<T>(state[i] * scale);
  }
}

template <typename T, typename Real>
void scale_gradient(const ScaledGradient (&heads)[2], int32_t head_count, cudaStream_t stream) {
  const ScaledGradients copies{{heads[0], heads[head_count - 1]}};
  const int64_t most = std::max(copies.head[0].count, copies.head[1].count);
  if (most == 0) return;
  const dim3 blocks(static_cast<unsigned>((most + kThreads * kPerThread - 1) / (kThreads * kPerThread)), head_count);
  PSPNET_FAST_LAUNCH((scale_gradient_kernel<T, Real>), blocks, kThreads, 0, stream, copies);
}

}  // namespace

void launch_cross_entropy_finish(
    const CrossEntropyProblem& problem, const Reduction& reduction, void* const (&losses)[2], void* scale,
    cudaStream_t stream) {
  const Results results{{losses[0], losses[1]}, scale};
  if (problem.head[0].logits.type == LogitType::f64) return finish<double>(problem, reduction, results, stream);
  finish<float>(problem, reduction, results, stream);
}

void launch_scale_gradient(LogitType type, const ScaledGradient (&heads)[2], int32_t head_count, cudaStream_t stream) {
  switch (type) {
    case LogitType::f32: return scale_gradient<float, float>(heads, head_count, stream);
    case LogitType::f64: return scale_gradient<double, double>(heads, head_count, stream);
    case LogitType::f16: return scale_gradient<__half, float>(heads, head_count, stream);
    case LogitType::bf16: return scale_gradient<__nv_bfloat16, float>(heads, head_count, stream);
  }
}

}  // namespace pspnet_fast::cuda
