// The gradient of a pyramid's levels from that of the NCHW concatenation: each node gathers from its own pixels.
//
// A block owns a plane, or a run of its rows of nodes where there are many. Bilinear weights are products, so it sums
//   lines[i, w] = Σ_h weight(h, i) · grad[h, w]     a thread a pack of columns; rows of a node cut into parts where
//                                                   nodes are too few to keep the threads busy (1 x 1 sums a whole plane)
//   grad_level[i, j] = Σ_w weight(w, j) · lines[i, w]     a group of lanes a node
// A row lies in the ranges of two nodes; the second reading comes from L1. Everything is added in a fixed order.
#include <algorithm>

#include "launch.h"
#include "elements.cuh"
#include "pyramid_concat.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 8;  // of a multiprocessor at least: 64 registers
constexpr int kMostParts = 8;
constexpr int kLineBytes = 32 * 1024;
constexpr unsigned kAllLanes = 0xffffffffu;

// How blocks share the work of one level.
struct LevelPlan {
  int64_t first_block;
  int32_t node_rows, runs;  // of a block, and blocks for a plane
  int32_t parts;            // of a row of nodes
  int32_t tile;             // columns summed at a time
  int32_t lanes;            // for a node: a power of two
};
struct Plan {
  LevelPlan level[kMaxConcatLevels];
};

// 1. lines[node · parts + part, w] of the columns [start, start + columns).
template <typename T, int VEC>
__device__ __forceinline__ void sum_rows(
    const LevelPlan& plan, const BilinearAxis& rows, int first_node, int nodes, const T* plane, int width, int start,
    int columns, Acc<T>* lines) {
  const int packs = columns / VEC;
  for (int item = threadIdx.x; item < nodes * plan.parts * packs; item += kThreads) {
    const int piece = item / packs, w = (item - piece * packs) * VEC;
    const int node = first_node + piece / plan.parts, part = piece % plan.parts;
    const int begin = rows.begin_of(node - 1), size = rows.begin_of(node + 1) - begin;
    const int end = begin + (part + 1) * size / plan.parts;
    Pack<Acc<T>, VEC> sum = {};
#pragma unroll 4
    for (int h = begin + part * size / plan.parts; h < end; ++h) {
      const auto pack = *reinterpret_cast<const Pack<T, VEC>*>(plane + static_cast<int64_t>(h) * width + start + w);
      const Acc<T> weight = rows.weight<Acc<T>>(h, node);
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum.v[j] += weight * load(pack.v[j]);
    }
    *reinterpret_cast<Pack<Acc<T>, VEC>*>(lines + piece * plan.tile + w) = sum;
  }
}

// 2. Adds what these columns give to sums[node, j].
template <typename Real>
__device__ __forceinline__ void sum_columns(
    const LevelPlan& plan, const BilinearAxis& axis, int nodes, int start, int columns, const Real* lines, Real* sums) {
  const int groups = kThreads / plan.lanes, lane = threadIdx.x % plan.lanes, count = nodes * axis.nodes;
  for (int base = 0; base < count; base += groups) {
    const int output = base + threadIdx.x / plan.lanes;
    Real sum = 0;
    if (output < count) {
      const int i = output / axis.nodes, j = output - i * axis.nodes;
      const int end = min(axis.begin_of(j + 1) - start, columns);
      for (int w = max(axis.begin_of(j - 1) - start, 0) + lane; w < end; w += plan.lanes) {
        Real line = 0;
        for (int part = 0; part < plan.parts; ++part) line += lines[(i * plan.parts + part) * plan.tile + w];
        sum += axis.weight<Real>(start + w, j) * line;
      }
    }
    for (int bit = plan.lanes / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bit);
    if (lane == 0 && output < count) sums[output] += sum;
  }
}

// Shared: lines [node_rows · parts, tile], sums [node_rows, k].
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads, kBlocks) pyramid_concat_bwd_nchw_kernel(
    const __grid_constant__ ConcatShape shape, const __grid_constant__ Plan plans, const T* grad, int64_t image_stride,
    T* grad_levels) {
  int l = 0;
  while (l + 1 < shape.count && blockIdx.x >= plans.level[l + 1].first_block) ++l;
  const LevelPlan& plan = plans.level[l];
  const ConcatLevel& level = shape.level[l];
  const int64_t block = blockIdx.x - plan.first_block, channel = block / plan.runs % shape.level_channels;
  const int64_t image = block / plan.runs / shape.level_channels;
  const int first_node = static_cast<int>(block % plan.runs) * plan.node_rows;
  const int nodes = min(plan.node_rows, level.bins() - first_node), count = nodes * level.bins();

  Acc<T>* lines = dynamic_shared<Acc<T>>();
  Acc<T>* sums = lines + plan.node_rows * plan.parts * plan.tile;
  const T* plane = grad + image * image_stride + (l * shape.level_channels + channel) * shape.pixels();
  for (int i = threadIdx.x; i < count; i += kThreads) sums[i] = 0;
  for (int start = 0; start < shape.width; start += plan.tile) {
    const int columns = min(plan.tile, shape.width - start);
    sum_rows<T, VEC>(plan, level.rows, first_node, nodes, plane, shape.width, start, columns, lines);
    __syncthreads();
    sum_columns(plan, level.columns, nodes, start, columns, lines, sums);
    __syncthreads();
  }
  T* output = grad_levels + (image * shape.level_channels + channel) * shape.cells + level.first_cell +
              first_node * level.bins();
  for (int i = threadIdx.x; i < count; i += kThreads) output[i] = round_to<T>(sums[i]);
}

LevelPlan plan_level(int k, int width, int vec, int sum_bytes) {
  LevelPlan plan{};
  plan.node_rows = std::clamp(kMaxConcatBins / k, 1, k);
  plan.runs = (k + plan.node_rows - 1) / plan.node_rows;
  plan.parts = std::clamp(kThreads / (plan.node_rows * (width / vec)), 1, kMostParts);
  const int columns = kLineBytes / sum_bytes / (plan.node_rows * plan.parts);
  plan.tile = std::min(width, columns / vec * vec);
  plan.lanes = 32;
  while (plan.lanes > 1 && plan.lanes * plan.node_rows * k > kThreads) plan.lanes /= 2;
  return plan;
}

template <typename T, int VEC>
void backward(const ConcatShape& shape, const ConcatGrad& grad, T* grad_levels, cudaStream_t stream) {
  Plan plans{};
  int64_t blocks = 0;
  int shared_sums = 0;
  for (int l = 0; l < shape.count; ++l) {
    const int k = shape.level[l].bins();
    LevelPlan& plan = plans.level[l] = plan_level(k, shape.width, VEC, sizeof(Acc<T>));
    plan.first_block = blocks;
    blocks += shape.batch * shape.level_channels * plan.runs;
    shared_sums = std::max(shared_sums, plan.node_rows * (plan.parts * plan.tile + k));
  }
  PSPNET_FAST_LAUNCH(
      (pyramid_concat_bwd_nchw_kernel<T, VEC>), static_cast<unsigned>(blocks), kThreads,
      shared_sums * static_cast<int>(sizeof(Acc<T>)), stream, shape, plans, static_cast<const T*>(grad.data),
      grad.image_stride, grad_levels);
}

}  // namespace

void launch_pyramid_concat_planes_bwd(
    ElementType type, const ConcatShape& shape, const ConcatGrad& grad, void* grad_levels, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 8 / sizeof(T);
    const bool aligned = shape.width % kVec == 0 && grad.image_stride % kVec == 0 && is_aligned(grad.data, 8);
    const auto run = aligned ? backward<T, kVec> : backward<T, 1>;
    run(shape, grad, static_cast<T*>(grad_levels), stream);
  });
}

}  // namespace pspnet_fast::cuda
