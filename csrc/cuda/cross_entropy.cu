// Losses and gradients of one or two heads' upsampled logits in one launch (see cross_entropy.h for the division of work).
#include <algorithm>

#include "cross_entropy_direct.cuh"
#include "cross_entropy_labels.cuh"
#include "cross_entropy_progression.cuh"
#include "cross_entropy_strip.cuh"
#include "launch.h"

namespace pspnet_fast::cuda {
namespace {

template <typename Real>
__device__ __forceinline__ Real sum_class_weights(const CrossEntropyProblem& p, Lane lane) {
  if (p.class_weight == nullptr || !p.smoothed) return static_cast<Real>(p.classes);
  double sum = 0;
  for (int c = static_cast<int>(lane.number); c < p.classes; c += 32) sum += static_cast<const Real*>(p.class_weight)[c];
  return static_cast<Real>(combine_lanes(sum, 16, [](double a, double b) { return a + b; }));
}

// Whether the progression holds in this row of cells. Chooses what is subtracted from the nodes' logits: their largest, in
// the unit of the path, if all are finite.
template <typename Memory>
__device__ __forceinline__ bool measure_nodes(Memory& memory, int classes, Lane lane) {
  // A lane looks at one of the first 16 nodes of each row in all classes, and for nodes 16 at its share of the classes.
  const int slot = lane.group() * kRowNodes + lane.index(), c_of_last = lane.chunk_class();
  const int last = lane.node() % 2 * kRowNodes + kCells;
  float high = -INFINITY, low = INFINITY, last_high = -INFINITY, last_low = INFINITY;
  float poison = 0;  // NaN as soon as anything is not finite
  for_chunks(memory, classes, lane, 1.0f, [&](int, int count) {
    for (int c = 0; c < count; ++c) {
      const float logit = memory.nodes[c][slot];
      high = fmaxf(high, logit), low = fminf(low, logit);
      poison += 0.0f * logit;
    }
    if (c_of_last < count) {
      const float logit = memory.nodes[c_of_last][last];
      last_high = fmaxf(last_high, logit), last_low = fminf(last_low, logit);
      poison += 0.0f * logit;
    }
  });
  last_high = combine_lanes(last_high, kChunk / 2, [](float a, float b) { return fmaxf(a, b); });
  last_low = combine_lanes(last_low, kChunk / 2, [](float a, float b) { return fminf(a, b); });
  const bool finite = __all_sync(kAllLanes, poison == 0);
  const float range = fmaxf(high - low, last_high - last_low) * kLog2E;
  const bool progresses = memory.head.may_progress && __all_sync(kAllLanes, range <= kMaxRange) && finite;
  if (!finite) return false;
  const float unit = progresses ? kLog2E : 1.0f;
  memory.shift[slot] = high * unit;
  if (lane.node() < 2 && c_of_last == 0) memory.shift[last] = last_high * unit;
  return progresses;
}

template <typename Memory>
__device__ __forceinline__ Patch<typename Memory::Real> place_patch(
    const Memory& memory, Lane lane, int row_part, int row_parts, int column_part) {
  using Real = typename Memory::Real;
  const UpsampledAxis& rows = memory.head.rows;
  const UpsampledAxis& columns = memory.head.columns;
  const int cell = memory.strip.tile * kOwned - 1 + lane.index(), begin = memory.column_begin[lane.index()];
  const int count = memory.column_begin[lane.index() + 1] - begin, parts = memory.head.column_parts;
  const CellRow& row = memory.row;
  const int height = row.end - row.begin, y = row_part * height / row_parts, x = column_part * count / parts;
  Patch<Real> patch;
  patch.y = row.begin + y, patch.rows = (row_part + 1) * height / row_parts - y;
  patch.x = begin + x, patch.columns = (column_part + 1) * count / parts - x;
  const bool empty = patch.rows == 0 || patch.columns == 0;
  if (empty) patch.rows = patch.columns = 0;
  patch.s = empty ? Real(0) : static_cast<Real>(rows.fraction(patch.y, row.cell));
  patch.t = empty ? Real(0) : static_cast<Real>(columns.fraction(patch.x, cell));
  patch.s_step = static_cast<Real>(rows.step(row.cell));
  patch.t_step = static_cast<Real>(columns.step(cell));
  return patch;
}

template <typename Real>
__device__ __forceinline__ Corners<Real> corners_at(const Real* node) {
  return {{node[0], node[1], node[kRowNodes], node[kRowNodes + 1]}};
}

template <typename Real>
__device__ __forceinline__ void add_scaled(Real (&sums)[4][32], Lane lane, Real scale, const Real* node) {
  const Corners<Real> corners = corners_at(node);
#pragma unroll
  for (int j = 0; j < 4; ++j) sums[j][lane.number] += scale * corners.value[j];
}

// One pass over a patch in every lane: sums, losses, and gradients to the rows of nodes.
template <class Path, typename Memory>
__device__ __forceinline__ void score_patch(
    Memory& memory, const CrossEntropyProblem& p, Lane lane, const Patch<typename Path::Real>& patch, int most_rows) {
  using Real = typename Path::Real;
  const bool gradient = memory.head.grad != nullptr, smoothed = p.smoothed, mine = counts(memory, lane);
  const Real scale = Path::kUnit == 1 ? Real(1) : Real(kLog2E);
  const Weights<Real> weights{p, (int64_t{memory.strip.image} * p.out_height + patch.y) * p.out_width + patch.x};
  Real* loss = mine ? static_cast<Real*>(memory.head.loss) : nullptr;
  const LaneLabels<Path> labels = read_labels<Path>(
      memory, p.labels, weights.first_pixel, p.out_width, p.classes, patch, lane,
      p.pixel_weight == nullptr && memory.head.loss == nullptr);
  for (int j = 0; j < 4 && smoothed; ++j) memory.smooth[j][lane.number] = 0;

  Path path(patch, most_rows);
  Real labelled = 0;
  for (int pass = 0; pass < Path::kForwardPasses; ++pass) {
    const bool last = pass == Path::kForwardPasses - 1;
    for_chunks(memory, p.classes, lane, scale, [&](int first, int count) {
      const Real* node = memory.nodes[0] + lane.index();
      for (int c = 0; c < count; ++c, node += kNodePitch) {
        path.add_class(pass, corners_at(node));
        if (last && smoothed) add_scaled(memory.smooth, lane, weights.of_class(first + c), node);
      }
      if (last && !gradient) labelled += score_labels<Path>(memory, labels, weights, patch, lane, first, false, loss);
    });
  }
  path.put(memory.pixels, lane.number);
  weigh_pixels<Path>(memory, patch, weights, lane, loss);
  path.get(memory.pixels, lane.number);
  if (gradient) {
    for_chunks(memory, p.classes, lane, scale, [&](int first, int count) {
      const Real* node = memory.nodes[0] + lane.index();
      Real* to = memory.corners[0] + lane.number;
      for (int c = 0; c < count; ++c, node += kNodePitch, to += kCornerPitch) {
        Corners<Real> corner = path.gradient(corners_at(node));
        if (smoothed) {
          const Real every = memory.share * weights.of_class(first + c);
          for (int j = 0; j < 4; ++j) corner.value[j] -= every * memory.smooth[j][lane.number];
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) to[j * 32] = corner.value[j];
      }
      labelled += score_labels<Path>(memory, labels, weights, patch, lane, first, true, nullptr);
      emit_nodes(memory, lane, first, count);
    });
  }
  if (mine) memory.loss[lane.number] -= static_cast<double>(labelled * Path::kUnit);
}

// All pixels of a row of cells, in as many patches as a path takes.
template <class Path, typename Memory>
__device__ __forceinline__ void score_row(Memory& memory, const CrossEntropyProblem& p, Lane lane) {
  const int height = memory.row.end - memory.row.begin;
  const int rounds = (height + 2 * Path::kRows - 1) / (2 * Path::kRows), row_parts = 2 * rounds;
  const int most_rows = (height + row_parts - 1) / row_parts;
  for (int round = 0; round < rounds; ++round) {
    for (int part = 0; part < memory.head.column_parts; ++part) {
      const auto patch = place_patch(memory, lane, 2 * round + lane.group(), row_parts, part);
      score_patch<Path>(memory, p, lane, patch, most_rows);
      __syncwarp();
      if (lane.number == 0) memory.below.add = memory.above.add = true;
    }
  }
}

// A row of cells without pixels, where a map is made smaller.
template <typename Memory>
__device__ __forceinline__ void emit_zeros(Memory& memory, int classes, Lane lane) {
  for (int c = 0; c < kChunk; ++c) {
    for (int j = 0; j < 4; ++j) memory.corners[c][j * 32 + lane.number] = 0;
  }
  for (int first = 0; first < classes; first += kChunk) emit_nodes(memory, lane, first, min(kChunk, classes - first));
}

// Goes on to the next row of cells, and places the rows of nodes below and above it. The one above is the strip's own while
// it has a row of cells more, else it goes to the edges. The one below has been written by the row of cells before, if
// that was the strip's.
template <typename Memory>
__device__ __forceinline__ void place_row(Memory& memory, const CrossEntropyProblem& p, int cell) {
  using Real = typename Memory::Real;
  const CrossEntropyHead& head = memory.head;
  const Strip& strip = memory.strip;
  const Strides& stride = head.grad_stride;
  memory.row = {cell, memory.row.end, head.rows.begin_of(cell + 1)};
  if (head.grad == nullptr) return;
  Real* image = static_cast<Real*>(head.grad) + strip.image * stride.b;
  memory.below = {cell < 0 ? nullptr : image + cell * stride.h, stride.c, stride.w, cell > strip.first_row};
  if (cell == head.rows.nodes - 1) {
    memory.above = {nullptr, stride.c, stride.w, false};
  } else if (cell + 1 < strip.end_row) {
    memory.above = {image + (cell + 1) * stride.h, stride.c, stride.w, false};
  } else {
    const int width = head.columns.nodes;
    const int64_t edge = int64_t{strip.number} * p.batch + strip.image;
    Real* at = static_cast<Real*>(head.edges) + edge * p.classes * width;
    memory.above = {at, stride.c == 1 ? 1 : width, stride.c == 1 ? p.classes : 1, false};
  }
}

PSPNET_FAST_HD int64_t strips_of(const CrossEntropyProblem& p, const CrossEntropyHead& head) {
  return int64_t{p.batch} * head.tiles * head.strips;
}

// Strips of the first head, then of the second; side by side, one above the other, image after image.
__device__ __forceinline__ Strip place_strip(const CrossEntropyHead& head, int64_t number) {
  Strip strip;
  strip.tile = static_cast<int>(number % head.tiles), number /= head.tiles;
  strip.number = static_cast<int>(number % head.strips), strip.image = static_cast<int>(number / head.strips);
  strip.first_row = head.first_row + strip.number * head.strip_rows;
  strip.end_row = min(strip.first_row + head.strip_rows, head.rows.nodes);
  return strip;
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
    if (measure_nodes(memory, p.classes, lane)) return score_row<Progression<K>>(memory, p, lane);
  }
  score_row<Direct<Real, K>>(memory, p, lane);
}

// Warps that registers must leave room for on a multiprocessor (see the launchers).
template <typename Real, int K>
constexpr int resident_warps() {
  if (sizeof(Real) == sizeof(double)) return 12;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
  if (K <= 8) return 20;
#endif
  return 16;
}

// A block is one warp: nothing in it waits for another. Registers and occupancy: see the launchers.
template <typename Real, int K>
__global__ void __launch_bounds__(32, resident_warps<Real, K>()) cross_entropy_kernel(const __grid_constant__ CrossEntropyProblem p) {
  using Memory = WarpMemory<Real, sizeof(Real) == sizeof(float) ? Progression<K>::kRows * K : 2 * K>;
  __shared__ Memory memory;
  const Lane lane{threadIdx.x};
  const Real class_sum = sum_class_weights<Real>(p, lane);
  if (lane.number == 0) {
    const int64_t of_first = strips_of(p, p.head[0]);
    const int which = blockIdx.x < of_first ? 0 : 1;
    memory.head = p.head[which];
    memory.strip = place_strip(memory.head, blockIdx.x - which * of_first);
    memory.row.end = memory.head.rows.begin_of(memory.strip.first_row);
    memory.own = static_cast<Real>(1 - p.smoothing), memory.share = static_cast<Real>(p.smoothing / p.classes);
    memory.class_sum = class_sum;
  }
  __syncwarp();
  if (lane.number < kRowNodes) {
    memory.column_begin[lane.number] = memory.head.columns.begin_of(memory.strip.tile * kOwned - 1 + static_cast<int>(lane.number));
  }

  const auto add = [](double a, double b) { return a + b; };
  for (int cell = memory.strip.first_row; cell < memory.strip.end_row; ++cell) {
    __syncwarp();
    if (lane.number == 0) place_row(memory, p, cell);
    memory.loss[lane.number] = memory.divisor[lane.number] = 0;
    __syncwarp();
    score_row_by_best_path<K>(memory, p, lane);
    const double loss = combine_lanes(memory.loss[lane.number], 16, add);
    const double divisor = combine_lanes(memory.divisor[lane.number], 16, add);
    if (lane.number != 0) continue;
    const CrossEntropyHead& head = memory.head;
    const int64_t column = int64_t{memory.strip.image} * head.tiles + memory.strip.tile;
    head.partial[column * (head.rows.nodes - head.first_row) + cell - head.first_row] = make_double2(loss, divisor);
  }
}

// ---- Launchers ------------------------------------------------------------------------------------------------------

// The columns of a pass: those of the whole cell, or of equal parts of it.
int columns_of_pass(const CrossEntropyHead& head) {
  const int wanted = (largest_cell(head.columns) + head.column_parts - 1) / head.column_parts;
  if (head.logits.type == LogitType::f64) return 4;
  for (int columns : {2, 4, 6, 8}) {
    if (wanted <= columns) return columns;
  }
  return 9;
}

template <typename Real, int K>
void launch(const CrossEntropyProblem& p, cudaStream_t stream) {
  int64_t strips = 0;
  for (int i = 0; i < p.heads; ++i) strips += strips_of(p, p.head[i]);
  PSPNET_FAST_LAUNCH((cross_entropy_kernel<Real, K>), static_cast<unsigned>(strips), 32, 0, stream, p);
}

void launch_by_columns(const CrossEntropyProblem& p, cudaStream_t stream) {
  if (p.head[0].logits.type == LogitType::f64) return launch<double, 4>(p, stream);
  switch (columns_of_pass(p.head[0])) {
    case 2: return launch<float, 2>(p, stream);
    case 4: return launch<float, 4>(p, stream);
    case 6: return launch<float, 6>(p, stream);
    case 8: return launch<float, 8>(p, stream);
    default: return launch<float, 9>(p, stream);
  }
}

}  // namespace

void plan_cross_entropy(CrossEntropyHead& head, int64_t batch, int32_t heads, int32_t multiprocessors) {
  head.tiles = (head.columns.nodes + kOwned - 1) / kOwned;
  head.first_row = head.rows.begin_of(0) == 0 ? 0 : -1;
  const int32_t rows = head.rows.nodes - head.first_row;
  const int widest = largest_cell(head.columns), pass = head.logits.type == LogitType::f64 ? 4 : 9;
  head.column_parts = std::max(1, (widest + pass - 1) / pass);
  // Two pixels a cell at least, and no axis made smaller.
  const double area = head.rows.scale * head.columns.scale;
  head.may_progress = area <= 0.5 && head.rows.scale <= 1 && head.columns.scale <= 1;

  // The time is that of the busiest of a multiprocessor's four schedulers: its warps, and half a one for latency that few
  // warps do not cover, times the rows of a strip, and a quarter of one for its edge.
  const int64_t columns = batch * heads * head.tiles, schedulers = int64_t{4} * multiprocessors;
  double best = INFINITY;
  for (int32_t length = 1; length <= rows; ++length) {
    const int64_t strips = columns * ((rows + length - 1) / length);
    const double cost = (static_cast<double>((strips + schedulers - 1) / schedulers) + 0.5) * (length + 0.25);
    if (cost < best) best = cost, head.strip_rows = length;
  }
  head.strips = (rows + head.strip_rows - 1) / head.strip_rows;
}

void launch_cross_entropy(const CrossEntropyProblem& problem, cudaStream_t stream) {
  if (problem.heads == 1 || columns_of_pass(problem.head[0]) == columns_of_pass(problem.head[1])) {
    return launch_by_columns(problem, stream);
  }
  CrossEntropyProblem one = problem;
  one.heads = 1;
  launch_by_columns(one, stream);
  one.head[0] = problem.head[1];
  launch_by_columns(one, stream);
}

}  // namespace pspnet_fast::cuda
