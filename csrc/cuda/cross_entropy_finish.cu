// What follows the cross-entropy kernel: sums of losses, and the nodes between two tiles.
#include "cross_entropy.h"
#include "launch.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

struct Results {
  void* loss[2];
  void* divisor;
};

__device__ __forceinline__ int64_t partial_count(const CrossEntropyProblem& p, const CrossEntropyHead& head) {
  return int64_t{p.batch} * head.tile_columns * (head.rows.nodes - head.first_row);
}

// A block sums a head's losses, and the divisor, which is the first head's: every thread its own, then in pairs.
template <typename Real>
__device__ __forceinline__ void reduce_head(const CrossEntropyProblem& p, const Results& results, int which) {
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

  if (which == 0) *static_cast<Real*>(results.divisor) = static_cast<Real>(divisors[0]);
  if (results.loss[which] != nullptr) *static_cast<Real*>(results.loss[which]) = static_cast<Real>(losses[0]);
}

int64_t blocks_of_row(const CrossEntropyProblem& p, const CrossEntropyHead& head) {
  const int64_t values = int64_t{p.classes} * head.columns.nodes;
  return (values + kThreads * kPerThread - 1) / (kThreads * kPerThread);
}

// A block adds a part of one row of nodes, of all classes, to the row that the tile above has written.
template <typename Real>
__device__ __forceinline__ void add_edges(
    const CrossEntropyProblem& p, const CrossEntropyHead& head, int64_t block, int64_t row_blocks) {
  const int64_t edge = block / row_blocks;  // tile · batch + image
  const int width = head.columns.nodes, values = p.classes * width;
  const int tile = static_cast<int>(edge / p.batch), image = static_cast<int>(edge % p.batch);
  const int row = head.first_row + (tile + 1) * head.rows_of_tile;
  const MapStrides& stride = head.grad_stride;
  const Real* from = static_cast<const Real*>(head.edges) + edge * values;
  Real* to = static_cast<Real*>(head.grad) + image * stride.b + row * stride.h;
  // All loads are under way before the first sum: beyond the row they read its last value, for nothing.
  const int first = static_cast<int>(block % row_blocks) * kThreads * kPerThread + threadIdx.x;
  const int inner = stride.c == 1 ? p.classes : width;  // of the row, as edges have it
  const int64_t inner_stride = stride.c == 1 ? 1 : stride.w, outer_stride = stride.c == 1 ? stride.w : stride.c;
  Real* place[kPerThread];
  Real edges[kPerThread], before[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = min(first + j * kThreads, values - 1);
    place[j] = to + i / inner * outer_stride + i % inner * inner_stride;
    edges[j] = __ldcg(from + i), before[j] = __ldcg(place[j]);
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    if (first + j * kThreads < values) __stcg(place[j], before[j] + edges[j]);
  }
}

// Blocks: one for each head's loss, then those of the first head's edges, then those of the second's.
template <typename Real>
__global__ void __launch_bounds__(kThreads) cross_entropy_finish_kernel(
    const __grid_constant__ CrossEntropyProblem p, const __grid_constant__ Results results, int64_t edge_blocks_of_first,
    int64_t row_blocks_of_first, int64_t row_blocks_of_second) {
  const int64_t block = int64_t{blockIdx.x} - p.heads;
  if (block < 0) {
    reduce_head<Real>(p, results, blockIdx.x);
  } else if (block < edge_blocks_of_first) {
    add_edges<Real>(p, p.head[0], block, row_blocks_of_first);
  } else {
    add_edges<Real>(p, p.head[1], block - edge_blocks_of_first, row_blocks_of_second);
  }
}

template <typename Real>
void finish(const CrossEntropyProblem& p, const Results& results, cudaStream_t stream) {
  int64_t edge_blocks[2] = {0, 0}, row_blocks[2] = {1, 1};
  for (int i = 0; i < p.heads; ++i) {
    row_blocks[i] = blocks_of_row(p, p.head[i]);
    if (p.head[i].grad != nullptr) edge_blocks[i] = row_blocks[i] * (p.head[i].tile_rows - 1) * p.batch;
  }
  const auto blocks = static_cast<unsigned>(p.heads + edge_blocks[0] + edge_blocks[1]);
  PSPNET_FAST_LAUNCH(
      (cross_entropy_finish_kernel<Real>), blocks, kThreads, 0, stream, p, results, edge_blocks[0], row_blocks[0],
      row_blocks[1]);
}

}  // namespace

void launch_cross_entropy_finish(
    const CrossEntropyProblem& problem, void* const (&losses)[2], void* divisor, cudaStream_t stream) {
  const Results results{{losses[0], losses[1]}, divisor};
  if (problem.head[0].logits.type == ElementType::f64) return finish<double>(problem, results, stream);
  finish<float>(problem, results, stream);
}

}  // namespace pspnet_fast::cuda
