// Losses and gradients of one or two heads' upsampled logits in one launch (see cross_entropy.h for the division of
// work).
#include <algorithm>
#include <type_traits>

#include "cross_entropy_direct.cuh"
#include "cross_entropy_progression.cuh"
#include "cross_entropy_score.cuh"
#include "launch.h"

namespace pspnet_fast::cuda {
namespace {

// A row of cells without pixels, where a map is made smaller.
template <typename Memory>
__device__ __forceinline__ void emit_zeros(Memory& memory, int classes, Lane lane) {
  for (int c = 0; c < kChunk; ++c) {
    for (int j = 0; j < 4; ++j) memory.corners[c][j * 32 + lane.number] = 0;
  }
  for (int first = 0; first < classes; first += kChunk) emit_nodes(memory, lane, first, min(kChunk, classes - first));
}

// Goes on to the next row of cells, and places the rows of nodes on its top and bottom. The bottom one is the tile's own
// while it has a row of cells more, else it goes to the edges. The top one has been written by the row of cells
// before, if that was the tile's.
template <typename Memory>
__device__ __forceinline__ void place_row(Memory& memory, const CrossEntropyProblem& p, int cell) {
  using Real = typename Memory::Real;
  const CrossEntropyHead& head = memory.head;
  const Tile& tile = memory.tile;
  const MapStrides& stride = head.grad_stride;
  memory.row = {cell, memory.row.end, head.rows.begin_of(cell + 1)};
  if (head.grad == nullptr) return;
  Real* image = static_cast<Real*>(head.grad) + tile.image * stride.b;
  memory.top = {cell < 0 ? nullptr : image + cell * stride.h, stride.c, stride.w, cell > tile.first_row};
  if (cell == head.rows.nodes - 1) {
    memory.bottom = {nullptr, stride.c, stride.w, false};
  } else if (cell + 1 < tile.end_row) {
    memory.bottom = {image + (cell + 1) * stride.h, stride.c, stride.w, false};
  } else {
    const int width = head.columns.nodes;
    const int64_t edge = int64_t{tile.row} * p.batch + tile.image;
    Real* at = static_cast<Real*>(head.edges) + edge * p.classes * width;
    memory.bottom = {at, stride.c == 1 ? 1 : width, stride.c == 1 ? p.classes : 1, false};
  }
}

PSPNET_FAST_HD int64_t tiles_of(const CrossEntropyProblem& p, const CrossEntropyHead& head) {
  return int64_t{p.batch} * head.tile_columns * head.tile_rows;
}

// Tiles of the first head, then of the second; side by side, one above the other, image after image.
__device__ __forceinline__ Tile place_tile(const CrossEntropyHead& head, int64_t number) {
  Tile tile;
  tile.column = static_cast<int>(number % head.tile_columns), number /= head.tile_columns;
  tile.row = static_cast<int>(number % head.tile_rows), tile.image = static_cast<int>(number / head.tile_rows);
  tile.first_row = head.first_row + tile.row * head.rows_of_tile;
  tile.end_row = min(tile.first_row + head.rows_of_tile, head.rows.nodes);
  return tile;
}

template <int K, typename Memory>
__device__ __forceinline__ void score_row_by_best_path(Memory& memory, const CrossEntropyProblem& p, Lane lane) {
  using Real = typename Memory::Real;
  if (memory.row.begin == memory.row.end) {
    if (memory.head.grad != nullptr) emit_zeros(memory, p.classes, lane);
    return;
  }
  place_nodes(memory, lane);
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (choose_path(memory, p.classes, lane)) return score_row<Progression<K>>(memory, p, lane);
  }
  score_row<Direct<Real, K>>(memory, p, lane);
}

// Warps for which registers leave room on a multiprocessor. Shared memory (13.3 KB a warp at 8 columns) has room for 16
// on sm_90 and sm_100, 11 on sm_80 and 7 on sm_86, sm_89 and sm_120, so that fewer registers would gain nothing there.
//
//   columns of a pass        2     4     6     8     9   float64
//   registers on sm_90      96    96   128   125   167       129
//   warps                   20    19    16    16    12        12
//
// A lane holds 8 · columns sums, or weights in their place, and some 60 registers besides; nothing spills on sm_90
// (ptxas -v). Rows go in pairs, whose chains of multiply-adds do not depend on each other. On an H100 16 warps at 8
// columns and 150 classes kept half of the issue slots busy and waited for logits most (ncu): for those of NCHW three
// times a chunk then, once now.
template <typename Real, int K>
constexpr int resident_warps() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
  if (sizeof(Real) == sizeof(float) && K <= 8) return K <= 4 ? 20 : 16;
#endif
  return 12;
}

// Float64 always goes the direct way, which keeps two numbers of every pixel of a row.
template <typename Real, int K>
using MemoryOf = std::conditional_t<
    sizeof(Real) == sizeof(float), WarpMemory<Real, Progression<K>::kRows * K, Progression<K>::kPartRows * K>,
    WarpMemory<Real, 2 * K, 2 * K>>;

// A block is one warp: nothing in it waits for another.
template <typename Real, int K>
__global__ void __launch_bounds__(32, resident_warps<Real, K>())
    cross_entropy_kernel(const __grid_constant__ CrossEntropyProblem p) {
  __shared__ MemoryOf<Real, K> memory;
  const Lane lane{threadIdx.x};
  const Real class_sum = sum_class_weights<Real>(p, lane);
  if (lane.number == 0) {
    const int64_t of_first = tiles_of(p, p.head[0]);
    const int which = blockIdx.x < of_first ? 0 : 1;
    memory.head = p.head[which];
    memory.tile = place_tile(memory.head, blockIdx.x - which * of_first);
    memory.row.end = memory.head.rows.begin_of(memory.tile.first_row);
    memory.own = static_cast<Real>(1 - p.smoothing), memory.share = static_cast<Real>(p.smoothing / p.classes);
    memory.class_sum = class_sum;
    memory.measured = memory.tile.first_row - 1;
  }
  __syncwarp();
  for (int i = lane.cell(); i < kRowNodes; i += 32) {
    memory.column_begin[i] = memory.head.columns.begin_of(memory.tile.column * kOwnedNodes - 1 + i);
  }

  const auto add = [](double a, double b) { return a + b; };
  for (int cell = memory.tile.first_row; cell < memory.tile.end_row; ++cell) {
    __syncwarp();
    if (lane.number == 0) place_row(memory, p, cell);
    memory.loss[lane.number] = memory.divisor[lane.number] = 0;
    __syncwarp();
    score_row_by_best_path<K>(memory, p, lane);
    const double loss = combine_lanes(memory.loss[lane.number], 16, add);
    const double divisor = combine_lanes(memory.divisor[lane.number], 16, add);
    if (lane.number != 0) continue;
    const CrossEntropyHead& head = memory.head;
    const int64_t column = int64_t{memory.tile.image} * head.tile_columns + memory.tile.column;
    head.partial[column * (head.rows.nodes - head.first_row) + cell - head.first_row] = make_double2(loss, divisor);
  }
}

// ---- Launchers ------------------------------------------------------------------------------------------------------

template <typename Real, int K>
void launch(const CrossEntropyProblem& p, cudaStream_t stream) {
  int64_t tiles = 0;
  for (int i = 0; i < p.heads; ++i) tiles += tiles_of(p, p.head[i]);
  // What is not shared memory is cache, which this kernel has no use for. Only a preference: it cannot fail.
  cudaFuncSetAttribute(cross_entropy_kernel<Real, K>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  PSPNET_FAST_LAUNCH((cross_entropy_kernel<Real, K>), static_cast<unsigned>(tiles), 32, 0, stream, p);
}

void launch_by_columns(const CrossEntropyProblem& p, cudaStream_t stream) {
  if (p.head[0].logits.type == ElementType::f64) return launch<double, 4>(p, stream);
  switch (p.head[0].pass_columns) {
    case 2: return launch<float, 2>(p, stream);
    case 4: return launch<float, 4>(p, stream);
    case 6: return launch<float, 6>(p, stream);
    case 8: return launch<float, 8>(p, stream);
    default: return launch<float, 9>(p, stream);
  }
}

}  // namespace

void plan_cross_entropy(CrossEntropyHead& head, int64_t batch, int32_t heads, int32_t multiprocessors) {
  head.tile_columns = (head.columns.nodes + kOwnedNodes - 1) / kOwnedNodes;
  head.first_row = head.rows.begin_of(0) == 0 ? 0 : -1;
  const int32_t rows = head.rows.nodes - head.first_row;

  // The whole cell in one pass, or equal parts of it.
  const int widest = std::max(1, largest_cell(head.columns)), most = head.logits.type == ElementType::f64 ? 4 : 9;
  head.column_parts = (widest + most - 1) / most;
  const int wanted = (widest + head.column_parts - 1) / head.column_parts;
  head.pass_columns = most == 4 ? 4 : wanted > 8 ? 9 : (wanted + 1) / 2 * 2;

  // Two pixels a cell at least, and no axis made smaller.
  const double area = head.rows.scale * head.columns.scale;
  head.may_progress = area <= 0.5 && head.rows.scale <= 1 && head.columns.scale <= 1;

  // The time is that of the busiest of a multiprocessor's four schedulers: its warps, and half a one for latency that
  // few warps do not cover, times the rows of a tile, and a quarter of one for its edge.
  constexpr int32_t kMostRows = 64;
  const int64_t columns = batch * heads * head.tile_columns, schedulers = int64_t{4} * multiprocessors;
  double best = INFINITY;
  for (int32_t length = 1; length <= std::min(rows, kMostRows); ++length) {
    const int64_t tiles = columns * ((rows + length - 1) / length);
    const double cost = (static_cast<double>((tiles + schedulers - 1) / schedulers) + 0.5) * (length + 0.25);
    if (cost < best) best = cost, head.rows_of_tile = length;
  }
  head.tile_rows = (rows + head.rows_of_tile - 1) / head.rows_of_tile;
}

void launch_cross_entropy(const CrossEntropyProblem& problem, cudaStream_t stream) {
  if (problem.heads == 1 || problem.head[0].pass_columns == problem.head[1].pass_columns) {
    return launch_by_columns(problem, stream);
  }
  CrossEntropyProblem one = problem;
  one.heads = 1;
  launch_by_columns(one, stream);
  one.head[0] = problem.head[1];
  launch_by_columns(one, stream);
}

}  // namespace pspnet_fast::cuda
