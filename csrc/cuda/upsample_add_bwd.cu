// The gradient of upsampled maps from that of their sum: each bin gathers from its own pixels, in a fixed order.
//
// A block owns a rectangle of a level's bins, of one channel in NCHW and of 32 in channels_last. Bilinear weights are
// products, so it sums
//   lines[i, w] = Σ_h weight(h, i) · grad[h, w]          a thread goes down some rows of bins for neighbours of a line
//   grad_level[i, j] = Σ_w weight(w, j) · lines[i, w]    a group of lanes a bin
// A pixel lies in one cell, between two rows of bins: it is read once for both, and again where a thread's rows begin.
// Where rows of bins are too few to keep the threads busy, their cells are cut into parts. A 64 x 64 level of a map of
// 128 x 128 takes 14 KB and 4 blocks a channel, whose second and later readings of the map come from L2 (calculated).
#include <algorithm>

#include "elements.cuh"
#include "launch.h"
#include "upsample_add.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 5;  // on a multiprocessor: for more, a compiler would save registers and wait for each load
constexpr int kMostParts = 8;
constexpr int kMostColumns = 512;      // of a tile
constexpr int kLineBytes = 16 * 1024;  // of lines in a block
constexpr int kMostValues = 2048;      // gradients of a block
constexpr unsigned kWholeWarp = 0xffffffffu;

template <bool CHANNELS_LAST>
constexpr int kChannels = CHANNELS_LAST ? 32 : 1;  // of a block

// How blocks share the work of one level.
struct LevelPlan {
  int32_t first_block;              // of a plane's channels
  int32_t node_rows, node_columns;  // of a block
  int32_t column_runs;              // blocks beside each other
  int32_t row_runs, parts;          // of a block: runs of its rows, and of each of their cells
  int32_t tile;                     // columns of the map summed at a time
  int32_t lanes;                    // for a bin: a power of two
};
struct Plan {
  int32_t channel_runs, blocks;  // of a plane, of its channels
  LevelPlan level[kMostUpsampleLevels];
};

// What a block works on: bins [first_row, first_row + rows) x [first_column, first_column + columns) of some channels.
struct Work {
  int64_t plane;
  int channel, channels;
  int first_row, rows, first_column, columns;

  __device__ __forceinline__ Work(
      const UpsampleShape& shape, const UpsampleLevel& level, const Plan& plans, const LevelPlan& plan, int most) {
    const int64_t run = blockIdx.x / plans.blocks;
    const int block = static_cast<int>(blockIdx.x % plans.blocks) - plan.first_block;
    plane = run / plans.channel_runs;
    channel = static_cast<int>(run % plans.channel_runs) * most;
    channels = min(most, shape.unit - channel);
    first_row = block / plan.column_runs * plan.node_rows;
    rows = min(plan.node_rows, level.rows.nodes - first_row);
    first_column = block % plan.column_runs * plan.node_columns;
    columns = min(plan.node_columns, level.columns.nodes - first_column);
  }
};

// A block's shared memory, in this order.
template <typename Real>
struct BackwardShared {
  Real* lines;    // [node_rows · parts, tile, kChannels]
  Real* totals;   // [node_rows, node_columns, kChannels]
  Real* shares;   // [tile] of the second bin in a column of the map
  int32_t* begins;  // [node_rows + 2] the first rows of cells, from the one in front of the block's; then columns

  __host__ __device__ static int64_t values(const LevelPlan& plan, int channels) {
    const int64_t lines = int64_t{plan.node_rows} * plan.parts * plan.tile * channels;
    return lines + int64_t{plan.node_rows} * plan.node_columns * channels + plan.tile;
  }
  static int64_t bytes(const LevelPlan& plan, int channels) {
    return values(plan, channels) * sizeof(Real) + (plan.node_rows + plan.node_columns + 4) * sizeof(int32_t);
  }
  __device__ BackwardShared(const LevelPlan& plan, int channels) {
    lines = dynamic_shared<Real>();
    totals = lines + plan.node_rows * plan.parts * plan.tile * channels;
    shares = totals + plan.node_rows * plan.node_columns * channels;
    begins = reinterpret_cast<int32_t*>(lines + values(plan, channels));
  }
};

// begins[i] of the cells from the one in front of node `first` on.
__device__ __forceinline__ void find_cells(const BilinearAxis& axis, int first, int nodes, int32_t* begins) {
  for (int i = threadIdx.x; i < nodes + 2; i += kThreads) begins[i] = axis.begin_of(first + i - 1);
}

// 1. lines[node · parts + part] of the columns [start, start + columns).
template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ void sum_rows(
    const UpsampleShape& shape, const BilinearAxis& axis, const LevelPlan& plan, const Work& work, int start,
    int columns, const int32_t* begins, const T* grad, Acc<T>* lines) {
  constexpr int kSide = kChannels<CHANNELS_LAST>;
  const int channels = CHANNELS_LAST ? work.channels : 1, packs = (columns * channels + VEC - 1) / VEC;
  const int64_t line = shape.line();
  for (int item = threadIdx.x; item < plan.row_runs * plan.parts * packs; item += kThreads) {
    const int piece = item / packs, part = piece % plan.parts, run = piece / plan.parts;
    const int at = (item - piece * packs) * VEC, column = at / channels, channel = at - column * channels;
    const T* pixels = grad + work.plane * shape.height * line;
    pixels += int64_t{start + column} * shape.unit + work.channel + channel;
    Acc<T>* to = lines + column * kSide + channel;
    const int begin = run * work.rows / plan.row_runs, end = (run + 1) * work.rows / plan.row_runs;

    Acc<T> carried[VEC] = {};  // to a row of bins, by the cell in front of it
    for (int i = begin - 1; i < end; ++i) {
      const int node = work.first_row + i, cell = begins[i + 1], size = begins[i + 2] - cell;
      Acc<T> top[VEC] = {}, bottom[VEC] = {};
      const int first = cell + part * size / plan.parts, last = cell + (part + 1) * size / plan.parts;
      const T* from = pixels + first * line;
      in_batches<4>(
          last - first, [&](int h) { return *reinterpret_cast<const Pack<T, VEC>*>(from + h * line); },
          [&](int h, const Pack<T, VEC>& pack) {
            const Acc<T> share = axis.share<Acc<T>>(first + h, node);
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
              top[j] += (1 - share) * load(pack.v[j]);
              bottom[j] += share * load(pack.v[j]);
            }
          });
      // Behind the last row of bins, and at equal sizes, both are that row.
      const bool same = axis.next(node) == node;
      Pack<Acc<T>, VEC> sum;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        sum.v[j] = carried[j] + top[j] + (same ? bottom[j] : Acc<T>(0));
        carried[j] = same ? Acc<T>(0) : bottom[j];
      }
      if (i < begin) continue;
      *reinterpret_cast<Pack<Acc<T>, VEC>*>(to + (i * plan.parts + part) * plan.tile * kSide) = sum;
    }
  }
}

// 2. What the columns [start, start + columns) give to the bins; store(value, sum) for each bin and channel.
template <int SIDE, typename Real, typename Store>
__device__ __forceinline__ void sum_columns(
    const BilinearAxis& axis, const LevelPlan& plan, const Work& work, int start, int columns, const int32_t* begins,
    const Real* shares, const Real* lines, const Store& store) {
  const int groups = kThreads / plan.lanes, lane = threadIdx.x % plan.lanes;
  const int channels = SIDE > 1 ? work.channels : 1, values = work.rows * work.columns * channels;
  for (int first = 0; first < values; first += groups) {
    const int value = first + threadIdx.x / plan.lanes;
    Real sum = 0;
    if (value < values) {
      const int bin = value / channels, channel = value - bin * channels;
      const int i = bin / work.columns, j = bin - i * work.columns, node = work.first_column + j;
      const bool same = axis.next(node) == node;
      const int own = begins[j + 1], end = min(begins[j + 2], start + columns);
      for (int w = max(axis.same_size() ? own : begins[j], start) + lane; w < end; w += plan.lanes) {
        const Real share = shares[w - start];
        for (int part = 0; part < plan.parts; ++part) {
          const Real pixel = lines[((i * plan.parts + part) * plan.tile + w - start) * SIDE + channel];
          sum += (w < own ? share : 1 - share) * pixel;
          if (w >= own && same) sum += share * pixel;
        }
      }
    }
    for (int bit = plan.lanes / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bit);
    if (lane == 0 && value < values) store(value, sum);
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kBlocks) upsample_add_bwd_kernel(
    const __grid_constant__ UpsampleShape shape, const __grid_constant__ Plan plans, const T* grad, T* grad_levels) {
  constexpr int kSide = kChannels<CHANNELS_LAST>;
  int l = 0;
  while (l + 1 < shape.count && static_cast<int>(blockIdx.x % plans.blocks) >= plans.level[l + 1].first_block) ++l;
  const UpsampleLevel& level = shape.level[l];
  const LevelPlan& plan = plans.level[l];
  const Work work(shape, level, plans, plan, kSide);
  const BackwardShared<Acc<T>> shared(plan, kSide);
  int32_t* column_begins = shared.begins + plan.node_rows + 2;
  find_cells(level.rows, work.first_row, work.rows, shared.begins);
  find_cells(level.columns, work.first_column, work.columns, column_begins);
  __syncthreads();

  // The loop is gone through once at least: bins that no column reads are zero.
  const int first = column_begins[0], begin = CHANNELS_LAST ? first : first / VEC * VEC;
  const int end = column_begins[work.columns + 1];
  int start = begin;
  do {
    const int columns = min(plan.tile, end - start);
    for (int w = threadIdx.x; w < columns; w += kThreads) {
      shared.shares[w] = level.columns.share<Acc<T>>(start + w, level.columns.node(start + w));
    }
    sum_rows<T, VEC, CHANNELS_LAST>(
        shape, level.rows, plan, work, start, columns, shared.begins, grad, shared.lines);
    __syncthreads();
    sum_columns<kSide>(
        level.columns, plan, work, start, columns, column_begins, shared.shares, shared.lines,
        [&](int value, Acc<T> sum) { shared.totals[value] = start == begin ? sum : shared.totals[value] + sum; });
    __syncthreads();
  } while ((start += plan.tile) < end);
  for (int value = threadIdx.x; value < work.rows * work.columns * work.channels; value += kThreads) {
    const int bin = value / work.channels, i = bin / work.columns;
    const int64_t at = level.first_bin + int64_t{work.first_row + i} * level.columns.nodes + work.first_column + bin -
                       i * work.columns;
    grad_levels[(work.plane * shape.packed_bins + at) * shape.unit + work.channel + value - bin * work.channels] =
        round_to<T>(shared.totals[value]);
  }
}

template <typename Real, int VEC, bool CHANNELS_LAST>
LevelPlan plan_level(const UpsampleLevel& level, int width) {
  constexpr int kSide = kChannels<CHANNELS_LAST>, kColumns = kLineBytes / static_cast<int>(sizeof(Real)) / kSide;
  const BilinearAxis& axis = level.columns;
  LevelPlan plan{};
  plan.node_rows = std::min(level.rows.nodes, CHANNELS_LAST ? 4 : 16);
  const int columns = std::min({width, kMostColumns, kColumns / plan.node_rows});
  const int packs = (columns * kSide + VEC - 1) / VEC;
  plan.row_runs = std::clamp(kThreads / packs, 1, plan.node_rows);
  plan.parts = std::clamp(kThreads / (packs * plan.row_runs), 1, kMostParts);
  const int tile = std::min(columns, kColumns / (plan.node_rows * plan.parts));
  plan.tile = CHANNELS_LAST ? tile : tile / VEC * VEC;

  // As many bins beside each other as a tile has columns for, the cell in front of them included.
  const int cell = axis.step > 0 ? (axis.denominator + axis.step - 1) / axis.step : axis.out;
  const int most = plan.tile >= width ? axis.nodes : std::max(plan.tile / cell - 1, 1);
  plan.node_columns = std::min({axis.nodes, most, kMostValues / (plan.node_rows * kSide)});
  plan.column_runs = (axis.nodes + plan.node_columns - 1) / plan.node_columns;
  plan.lanes = 1;
  while (!CHANNELS_LAST && plan.lanes < 32 && plan.lanes * 4 <= cell) plan.lanes *= 2;
  return plan;
}

template <typename T, int VEC, bool CHANNELS_LAST>
void backward(const UpsampleShape& shape, const T* grad, T* grad_levels, cudaStream_t stream) {
  constexpr int kSide = kChannels<CHANNELS_LAST>;
  Plan plans{};
  plans.channel_runs = (shape.unit + kSide - 1) / kSide;
  int64_t shared_bytes = 0;
  for (int l = 0; l < shape.count; ++l) {
    LevelPlan& plan = plans.level[l] = plan_level<Acc<T>, VEC, CHANNELS_LAST>(shape.level[l], shape.width);
    plan.first_block = plans.blocks;
    plans.blocks += (shape.level[l].rows.nodes + plan.node_rows - 1) / plan.node_rows * plan.column_runs;
    shared_bytes = std::max(shared_bytes, BackwardShared<Acc<T>>::bytes(plan, kSide));
  }
  PSPNET_FAST_LAUNCH(
      (upsample_add_bwd_kernel<T, VEC, CHANNELS_LAST>),
      static_cast<unsigned>(shape.planes * plans.channel_runs * plans.blocks), kThreads,
      static_cast<int>(shared_bytes), stream, shape, plans, grad, grad_levels);
}

}  // namespace

void launch_upsample_add_bwd(
    ElementType type, bool channels_last, const UpsampleShape& shape, const void* grad, void* grad_levels,
    cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = sizeof(T) <= 4 ? 4 : 2;
    const bool packs =
        (channels_last ? shape.unit : shape.width) % kVec == 0 && is_aligned(grad, sizeof(Pack<T, kVec>));
    const auto run = channels_last ? (packs ? backward<T, kVec, true> : backward<T, 1, true>)
                                   : (packs ? backward<T, kVec, false> : backward<T, 1, false>);
    run(shape, static_cast<const T*>(grad), static_cast<T*>(grad_levels), stream);
  });
}

}  // namespace pspnet_fast::cuda
