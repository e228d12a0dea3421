// Arg-max over classes of upsampled logits. A thread scores a column of pixels of one row of cells; neighbouring
// threads write neighbouring labels.
#include <algorithm>

#include "cross_entropy_math.cuh"
#include "elements.cuh"
#include "launch.h"
#include "upsample_argmax.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostRows = 9;  // pixels of a thread: a cell's, where a map becomes eight times as high

// The blocks of one image: parts of its rows of cells, and of a row of pixels.
struct ArgmaxGrid {
  int32_t row_parts;      // of a row of cells
  int32_t column_blocks;
};

template <typename Real>
struct Column {
  int64_t offset[4];  // top left, top right, bottom left and bottom right node, relative to the image
  Real t;             // share of the right nodes
};

template <typename Real>
struct Rows {
  int begin, count;  // pixels
  Real s, step;      // share of the bottom nodes, and how much more it is in the next row
};

// A logit wins if it is larger than those of all classes before, or the first NaN. Nothing here is NaN or infinite but
// for a mistake upstream: the loop only finds out whether something is. best_of_any then looks again.
//
// Down the rows a logit is linear, and rounding keeps the order: no row's is larger than those of both ends. A class
// that is behind the lowest of the winners at both ends wins nowhere.
template <int ROWS, typename T, typename Real>
__device__ __forceinline__ bool best_of_finite(
    const T* image, int64_t stride_c, int classes, const Column<Real>& column, const Rows<Real>& rows,
    int (&label)[ROWS]) {
  struct Nodes {
    T at[4];
  };
  Real best[ROWS], lowest = -INFINITY, poison = 0;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) best[r] = r < rows.count ? -INFINITY : INFINITY, label[r] = 0;
  const auto load = [&](int) {
    Nodes nodes;
#pragma unroll
    for (int j = 0; j < 4; ++j) nodes.at[j] = __ldg(image + column.offset[j]);
    image += stride_c;
    return nodes;
  };
  in_batches<2>(classes, load, [&](int c, const Nodes& nodes) {
    const Real tl = nodes.at[0], tr = nodes.at[1], bl = nodes.at[2], br = nodes.at[3];
    const Real top = tl + column.t * (tr - tl), rise = bl + column.t * (br - bl) - top;
    poison += Real(0) * rise;
    const Real first = top + rows.s * rise, step = rows.step * rise;
    const auto logit = [&](int r) { return fma(static_cast<Real>(r), step, first); };
    if (!(max(first, logit(rows.count - 1)) > lowest)) return;
    lowest = INFINITY;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const bool wins = logit(r) > best[r];
      best[r] = wins ? logit(r) : best[r];
      label[r] = wins ? c : label[r];
      lowest = min(lowest, best[r]);
    }
  });
  return poison == 0;
}

template <typename T, typename Real>
__device__ __forceinline__ int best_of_any(
    const T* image, int64_t stride_c, int classes, const Column<Real>& column, Real s) {
  int label = 0;
  Real best = -INFINITY;
  for (int c = 0; c < classes; ++c, image += stride_c) {
    const Real left = (1 - s) * load_as<Real>(image + column.offset[0]) + s * load_as<Real>(image + column.offset[2]);
    const Real right = (1 - s) * load_as<Real>(image + column.offset[1]) + s * load_as<Real>(image + column.offset[3]);
    const Real logit = (1 - column.t) * left + column.t * right;
    if (logit > best || (logit != logit && best == best)) best = logit, label = c;
  }
  return label;
}

__device__ __forceinline__ void store_label(void* labels, LabelType type, int64_t pixel, int label) {
  switch (type) {
    case LabelType::i64: static_cast<int64_t*>(labels)[pixel] = label; break;
    case LabelType::i32: static_cast<int32_t*>(labels)[pixel] = label; break;
    case LabelType::u8: static_cast<uint8_t*>(labels)[pixel] = static_cast<uint8_t>(label); break;
  }
}

__device__ __forceinline__ bool is_target(const LabelMap& target, int64_t pixel, int label) {
  int64_t wanted = 0;
  switch (target.type) {
    case LabelType::i64: wanted = static_cast<const int64_t*>(target.data)[pixel]; break;
    case LabelType::i32: wanted = static_cast<const int32_t*>(target.data)[pixel]; break;
    case LabelType::u8: wanted = static_cast<const uint8_t*>(target.data)[pixel]; break;
  }
  return wanted == label && wanted != target.ignore_index;
}

// ROWS are what a thread scores whether or not it has as many pixels.
template <typename T, typename Real, int ROWS>
__global__ void __launch_bounds__(kThreads)
    upsample_argmax_kernel(const __grid_constant__ ArgmaxProblem p, const __grid_constant__ ArgmaxGrid grid) {
  int64_t block = blockIdx.x;
  const int x = static_cast<int>(block % grid.column_blocks) * kThreads + threadIdx.x;
  block /= grid.column_blocks;
  const int part = static_cast<int>(block % grid.row_parts);
  block /= grid.row_parts;
  const int cell = static_cast<int>(block % (p.rows.nodes + 1)) - 1;
  const int64_t image = block / (p.rows.nodes + 1);

  const int cell_begin = p.rows.begin_of(cell), cell_rows = p.rows.begin_of(cell + 1) - cell_begin;
  Rows<Real> rows;
  rows.begin = cell_begin + part * cell_rows / grid.row_parts;
  rows.count = cell_begin + (part + 1) * cell_rows / grid.row_parts - rows.begin;
  if (x >= p.columns.out) rows.count = 0;
  unsigned correct = 0;
  if (rows.count > 0) {
    rows.s = static_cast<Real>(p.rows.fraction(rows.begin, cell)), rows.step = static_cast<Real>(p.rows.step(cell));
    const int column_cell = p.columns.cell_of(x);
    Column<Real> column;
    column.t = static_cast<Real>(p.columns.fraction(x, column_cell));
    // At equal sizes a pixel is read twice from its own node, as PyTorch has it (see bilinear_taps).
    const int up = p.rows.nodes == p.rows.out ? 0 : 1, right = p.columns.nodes == p.columns.out ? 0 : 1;
    for (int j = 0; j < 4; ++j) {
      const int64_t h = p.rows.node(cell + j / 2 * up), w = p.columns.node(column_cell + j % 2 * right);
      column.offset[j] = h * p.logits.stride_h + w * p.logits.stride_w;
    }
    const T* logits = static_cast<const T*>(p.logits.data) + image * p.logits.stride_b;
    const auto write = [&](int r, int best) {
      const int64_t pixel = (image * p.rows.out + rows.begin + r) * p.columns.out + x;
      if (p.labels != nullptr) store_label(p.labels, p.label_type, pixel, best);
      if (p.correct != nullptr) correct += is_target(p.target, pixel, best);
    };
    int label[ROWS];
    if (best_of_finite(logits, p.logits.stride_c, p.classes, column, rows, label)) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (r < rows.count) write(r, label[r]);
      }
    } else {
#pragma unroll 1
      for (int r = 0; r < rows.count; ++r) {
        write(r, best_of_any(logits, p.logits.stride_c, p.classes, column, rows.s + r * rows.step));
      }
    }
  }
  if (p.correct == nullptr) return;
  correct = combine_lanes(correct, 16, [](unsigned a, unsigned b) { return a + b; });
  if (threadIdx.x % 32 == 0 && correct > 0) atomicAdd(p.correct, static_cast<unsigned long long>(correct));
}

template <typename T, typename Real, int ROWS>
void launch(const ArgmaxProblem& p, const ArgmaxGrid& grid, cudaStream_t stream) {
  const int64_t blocks = int64_t{p.batch} * (p.rows.nodes + 1) * grid.row_parts * grid.column_blocks;
  PSPNET_FAST_LAUNCH(
      (upsample_argmax_kernel<T, Real, ROWS>), static_cast<unsigned>(blocks), kThreads, 0, stream, p, grid);
}

template <typename T, typename Real>
void launch_by_rows(const ArgmaxProblem& p, cudaStream_t stream) {
  const int cell = std::max(1, largest_cell(p.rows)), parts = (cell + kMostRows - 1) / kMostRows;
  const ArgmaxGrid grid{parts, (p.columns.out + kThreads - 1) / kThreads};
  const int rows = (cell + parts - 1) / parts;
  if (rows <= 5) return launch<T, Real, 5>(p, grid, stream);
  if (rows <= 8) return launch<T, Real, 8>(p, grid, stream);
  launch<T, Real, kMostRows>(p, grid, stream);
}

}  // namespace

void launch_upsample_argmax(const ArgmaxProblem& problem, cudaStream_t stream) {
  switch (problem.logits.type) {
    case ElementType::f32: return launch_by_rows<float, float>(problem, stream);
    case ElementType::f64: return launch_by_rows<double, double>(problem, stream);
    case ElementType::f16: return launch_by_rows<__half, float>(problem, stream);
    case ElementType::bf16: return launch_by_rows<__nv_bfloat16, float>(problem, stream);
  }
}

}  // namespace pspnet_fast::cuda
