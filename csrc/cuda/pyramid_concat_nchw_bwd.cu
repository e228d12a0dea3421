// The gradient of a pyramid's levels from that of the NCHW concatenation: each node gathers from its own pixels.
//
// A block owns a few planes, or a run of their rows of nodes where there are many. Bilinear weights are products, so it
// sums
//   lines[i, w] = Σ_h weight(h, i) · grad[h, w]     a thread a pack of columns; rows of a node cut into parts where
//                                                   nodes are too few to keep the threads busy (1 x 1 sums whole planes)
//   grad_level[i, j] = Σ_w weight(w, j) · lines[i, w]     a group of lanes a node
// Weights are worked out once for all planes of the block: alone they would cost as much as the sums. A row lies in the
// ranges of two nodes; the second reading comes from L1. Everything is added in a fixed order.
#include <algorithm>

#include "elements.cuh"
#include "launch.h"
#include "pyramid_concat.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 5;   // of a multiprocessor at least: 96 registers
constexpr int kPlanes = 4;   // of a block
constexpr int kNodes = 256;  // of a block and plane, unless one row has more
constexpr int kMostParts = 8;
constexpr int kLineBytes = 12 * 1024;
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

// What a block works on: `planes` of gradient from `data` on, `nodes` rows of nodes from `first_node` on.
template <typename T>
struct Work {
  const T* data;
  int64_t pixels;
  int planes, first_node, nodes, width;
};

// 1. lines[plane][node · parts + part][w] of the columns [start, start + columns).
template <typename T, int VEC>
__device__ __forceinline__ void sum_rows(
    const LevelPlan& plan, const BilinearAxis& rows, const Work<T>& work, int start, int columns, Acc<T>* lines) {
  const int packs = columns / VEC;
  for (int item = threadIdx.x; item < work.nodes * plan.parts * packs; item += kThreads) {
    const int piece = item / packs, w = (item - piece * packs) * VEC;
    const int node = work.first_node + piece / plan.parts, part = piece % plan.parts;
    const int begin = rows.first_reader(node), size = rows.begin_of(node + 1) - begin;
    const int end = begin + (part + 1) * size / plan.parts;
    Pack<Acc<T>, VEC> sums[kPlanes] = {};
#pragma unroll 2
    for (int h = begin + part * size / plan.parts; h < end; ++h) {
      const T* row = work.data + static_cast<int64_t>(h) * work.width + start + w;
      const Acc<T> weight = rows.weight<Acc<T>>(h, node);
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        // Behind the last plane, that one again: it comes from L1, and the sum is not used.
        const auto pack = *reinterpret_cast<const Pack<T, VEC>*>(row + min(p, work.planes - 1) * work.pixels);
#pragma unroll
        for (int j = 0; j < VEC; ++j) sums[p].v[j] += weight * load(pack.v[j]);
      }
    }
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      Acc<T>* line = lines + ((p * plan.node_rows * plan.parts) + piece) * plan.tile;
      *reinterpret_cast<Pack<Acc<T>, VEC>*>(line + w) = sums[p];
    }
  }
}

// 2. Adds what these columns give to totals[plane][node, j].
template <typename Real>
__device__ __forceinline__ void sum_columns(
    const LevelPlan& plan, const BilinearAxis& axis, int nodes, int start, int columns, const Real* lines, Real* totals) {
  const int groups = kThreads / plan.lanes, lane = threadIdx.x % plan.lanes, count = nodes * axis.nodes;
  const int plane_lines = plan.node_rows * plan.parts * plan.tile;
  for (int base = 0; base < count; base += groups) {
    const int output = base + threadIdx.x / plan.lanes;
    Real sums[kPlanes] = {};
    if (output < count) {
      const int i = output / axis.nodes, j = output - i * axis.nodes;
      const int end = min(axis.begin_of(j + 1) - start, columns);
      for (int w = max(axis.first_reader(j) - start, 0) + lane; w < end; w += plan.lanes) {
        const Real weight = axis.weight<Real>(start + w, j);
        for (int part = 0; part < plan.parts; ++part) {
          const Real* line = lines + (i * plan.parts + part) * plan.tile + w;
#pragma unroll
          for (int p = 0; p < kPlanes; ++p) sums[p] += weight * line[p * plane_lines];
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      for (int bit = plan.lanes / 2; bit > 0; bit /= 2) sums[p] += __shfl_xor_sync(kAllLanes, sums[p], bit);
      if (lane == 0 && output < count) totals[p * plan.node_rows * axis.nodes + output] += sums[p];
    }
  }
}

// Shared: lines [kPlanes, node_rows · parts, tile], totals [kPlanes, node_rows, k].
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads, kBlocks) pyramid_concat_bwd_nchw_kernel(
    const __grid_constant__ ConcatShape shape, const __grid_constant__ Plan plans, const T* grad, int64_t image_stride,
    T* grad_levels) {
  int l = 0;
  while (l + 1 < shape.count && blockIdx.x >= plans.level[l + 1].first_block) ++l;
  const LevelPlan& plan = plans.level[l];
  const ConcatLevel& level = shape.level[l];
  const int64_t block = blockIdx.x - plan.first_block, plane_runs = (shape.level_channels + kPlanes - 1) / kPlanes;
  const int64_t channel = block / plan.runs % plane_runs * kPlanes, image = block / plan.runs / plane_runs;
  Work<T> work;
  work.pixels = shape.pixels();
  work.data = grad + image * image_stride + (l * shape.level_channels + channel) * work.pixels;
  work.planes = static_cast<int>(min(int64_t{kPlanes}, shape.level_channels - channel));
  work.first_node = static_cast<int>(block % plan.runs) * plan.node_rows;
  work.nodes = min(plan.node_rows, level.bins() - work.first_node);
  work.width = shape.width;

  Acc<T>* lines = dynamic_shared<Acc<T>>();
  Acc<T>* totals = lines + kPlanes * plan.node_rows * plan.parts * plan.tile;
  const int plane_totals = plan.node_rows * level.bins(), count = work.nodes * level.bins();
  for (int i = threadIdx.x; i < kPlanes * plane_totals; i += kThreads) totals[i] = 0;
  for (int start = 0; start < shape.width; start += plan.tile) {
    const int columns = min(plan.tile, shape.width - start);
    sum_rows<T, VEC>(plan, level.rows, work, start, columns, lines);
    __syncthreads();
    sum_columns(plan, level.columns, work.nodes, start, columns, lines, totals);
    __syncthreads();
  }
  T* output = grad_levels + (image * shape.level_channels + channel) * shape.packed_bins + level.first_bin +
              work.first_node * level.bins();
  for (int p = 0; p < work.planes; ++p, output += shape.packed_bins) {
    for (int i = threadIdx.x; i < count; i += kThreads) output[i] = round_to<T>(totals[p * plane_totals + i]);
  }
}

LevelPlan plan_level(int k, int width, int vec, int sum_bytes) {
  LevelPlan plan{};
  plan.node_rows = std::clamp(kNodes / k, 1, k);
  plan.runs = (k + plan.node_rows - 1) / plan.node_rows;
  plan.parts = std::clamp(kThreads / (plan.node_rows * (width / vec)), 1, kMostParts);
  const int columns = kLineBytes / sum_bytes / (kPlanes * plan.node_rows * plan.parts);
  plan.tile = std::min(width, columns / vec * vec);
  plan.lanes = 32;
  while (plan.lanes > 1 && plan.lanes * plan.node_rows * k > kThreads) plan.lanes /= 2;
  return plan;
}

template <typename T, int VEC>
void backward(const ConcatShape& shape, const ConcatGrad& grad, T* grad_levels, cudaStream_t stream) {
  Plan plans{};
  int64_t blocks = 0;
  const int64_t plane_runs = (shape.level_channels + kPlanes - 1) / kPlanes;
  int shared_sums = 0;
  for (int l = 0; l < shape.count; ++l) {
    const int k = shape.level[l].bins();
    LevelPlan& plan = plans.level[l] = plan_level(k, shape.width, VEC, sizeof(Acc<T>));
    plan.first_block = blocks;
    blocks += shape.batch * plane_runs * plan.runs;
    shared_sums = std::max(shared_sums, kPlanes * plan.node_rows * (plan.parts * plan.tile + k));
  }
  PSPNET_FAST_LAUNCH(
      (pyramid_concat_bwd_nchw_kernel<T, VEC>), static_cast<unsigned>(blocks), kThreads,
      shared_sums * static_cast<int>(sizeof(Acc<T>)), stream, shape, plans, static_cast<const T*>(grad.data),
      grad.image_stride, grad_levels);
}

}  // namespace

void launch_pyramid_concat_nchw_bwd(
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
