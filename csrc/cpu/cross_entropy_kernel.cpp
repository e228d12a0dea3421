// Loss and gradient of the cross-entropy of upsampled logits, a chunk of cell rows at a time. Compiled once per
// instruction set (see isa.h).
#include "cross_entropy_kernel.h"

#include "intrinsics.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "cross_entropy_nodes.h"
#include "cross_entropy_workspace.h"
#include "cross_entropy_tile.h"
#include "cross_entropy_direct.h"
#include "cross_entropy_progression.h"
#include "cross_entropy_emit.h"

constexpr int64_t kTileRows = 16;  // taller cells are several tiles, whose memory stays in the cache

int64_t tile_rows(const CrossEntropyProblem& p) { return p.rows.most < kTileRows ? p.rows.most : kTileRows; }

// Progressions pay from four pixels a cell on: they take four exponentials, the direct way one a pixel and direction.
bool progressions_pay(const CrossEntropyProblem& p) { return p.columns.most >= 2 && p.rows.most >= 2; }

int64_t tile_memory(const CrossEntropyProblem& p) {
  const int64_t direct = direct_memory<float>(p.classes, p.columns.most);
  const int64_t progression = progression_memory(p.classes, tile_rows(p));
  return direct > progression ? direct : progression;
}

inline bool near_enough(const float* above, const float* below) {
  bool near = true;
  for (int64_t i = 0; i <= kLanes<float>; ++i) near &= (above[i] < kMaxRange) & (below[i] < kMaxRange);
  return near;
}

void sum_tile(
    const CrossEntropyProblem& p, const Tile<float>& tile, const float* above, const float* below, LossSum& total) {
  progressions_pay(p) && near_enough(above, below) ? sum_by_progression(tile, total) : sum_directly(tile, total);
}
void sum_tile(const CrossEntropyProblem&, const Tile<double>& tile, const double*, const double*, LossSum& total) {
  sum_directly(tile, total);
}

// Σ mass · (log-sum-exp less the peaks) over the pixels of cell row r; fills the corners of its cells.
template <typename Real>
double sum_cells(Workspace<Real>& ws, int64_t head, int64_t r) {
  const CrossEntropyProblem& p = ws.p;
  const int64_t above = r & 1, below = above ^ 1, columns = p.columns.most;
  LossSum total;
  for (int64_t i = 0; p.rows.count[r] == 0 && i < 4 * ws.map; ++i) ws.corner[i] = 0;
  for (int64_t q = 0; q < p.columns.cells; q += kLanes<Real>) {
    for (int64_t j = 0; j < p.rows.count[r]; j += kTileRows) {
      Tile<Real> tile;
      tile.classes = p.classes, tile.padded = ws.padded;
      tile.top = ws.nodes[head][above] + q, tile.bottom = ws.nodes[head][below] + q;
      tile.top_peak = ws.peak[head][above] + q, tile.bottom_peak = ws.peak[head][below] + q;
      tile.first = ws.first + q, tile.column_step = static_cast<Real>(p.columns.step);
      tile.row_start = static_cast<Real>(p.rows.start[r] + static_cast<double>(j) * p.rows.step);
      tile.row_step = static_cast<Real>(p.rows.step);
      tile.rows = p.rows.count[r] - j < kTileRows ? p.rows.count[r] - j : kTileRows, tile.columns = columns;
      tile.mass = ws.mass + j * columns * ws.padded + q, tile.exists = ws.exists + q;
      tile.masses_are_one = ws.uniform;
      tile.memory = ws.tile;
      tile.gradient = p.head[head].grad != nullptr, tile.add = j > 0, tile.corner = ws.corner + q;
      tile.lse = ws.lse ? ws.lse + j * columns * ws.padded + q : nullptr;
      sum_tile(p, tile, ws.range[head][above] + q, ws.range[head][below] + q, total);
    }
  }
  return total.total();
}

// Joins the corners of neighbouring cells to the gradient of the rows of nodes above and below, less what the labels
// take; returns what the labels take from the loss: their shares times the logits, less the peaks.
template <typename Real>
double join_cells(Workspace<Real>& ws, int64_t head, int64_t r) {
  using V = Lanes<Real>;
  const CrossEntropyProblem& p = ws.p;
  const int64_t above = r & 1, below = above ^ 1;
  const bool gradient = p.head[head].grad != nullptr;
  const Real smooth = static_cast<Real>(p.smoothing / static_cast<double>(p.classes));
  V taken{};
  for (int64_t c = 0; c < p.classes; ++c) {
    const bool labelled = ws.present[c] || smooth > 0;
    if (!gradient && !labelled) continue;
    const Real of_class = smooth * ws.class_weight(c);
    for (int64_t q = 0, i = c * ws.padded; q < ws.padded; q += kLanes<Real>, i += kLanes<Real>) {
      V share[2] = {};
      if (labelled) {
        for (int side = 0; side < 2; ++side) {
          if (ws.present[c]) share[side] = get(ws.label_share[side] + i);
          if (smooth > 0) share[side] += of_class * get(ws.smooth_share[side] + q);
          // A logit of minus infinity concerns those pixels only whose label it is.
          const int64_t row = side == 0 ? above : below;
          const V loss = share[side] * (get(ws.nodes[head][row] + i) - get(ws.peak[head][row] + q));
          taken += share[side] != Real(0) ? loss : V{};
        }
      }
      if (!gradient) continue;
      const Real* corner = ws.corner + 4 * c * ws.padded + q;  // the right corner of a node lies one lane before it
      const V top = get(corner) + get(corner + ws.padded - 1), bottom = get(corner + 2 * ws.padded) + get(corner + 3 * ws.padded - 1);
      put(ws.carry[head][above] + i, get(ws.carry[head][above] + i) + (top - share[0]));
      put(ws.carry[head][below] + i, bottom - share[1]);
    }
  }
  double sum = 0;
  for (int i = 0; i < kLanes<Real>; ++i) sum += static_cast<double>(taken[i]);
  return sum;
}

template <typename Real>
void stage_nodes(Workspace<Real>& ws, int64_t head, int64_t b, int64_t r) {
  const int64_t side = r & 1;
  copy_nodes(ws.p, ws.p.head[head].logits, b, node_at(ws.p.rows, r), ws.padded, ws.nodes[head][side]);
  find_peaks(ws.p.classes, ws.padded, ws.nodes[head][side], ws.peak[head][side], ws.range[head][side]);
}

template <typename Real>
void sum_chunk(const CrossEntropyProblem& p, int64_t task, void* memory) {
  Workspace<Real> ws(p, memory, tile_memory(p));
  const int64_t b = task / p.chunks, begin = chunk_begin(p, task % p.chunks), end = chunk_begin(p, task % p.chunks + 1);
  double sum[2] = {0, 0};
  for (int64_t head = 0; head < p.heads; ++head) {
    stage_nodes(ws, head, b, begin);
    for (int64_t i = 0; i < ws.map; ++i) ws.carry[head][begin & 1][i] = 0;
  }
  with_label_reader(ws, [&](auto reader) {
    for (int64_t r = begin; r < end; ++r) {
      reader.read_row(b, r);
      for (int64_t head = 0; head < p.heads; ++head) {
        stage_nodes(ws, head, b, r + 1);
        sum[head] += sum_cells(ws, head, r);
        sum[head] -= join_cells(ws, head, r);
        if (p.head[head].loss) emit_losses(ws, head, b, r);
        if (p.head[head].grad == nullptr) continue;
        emit_gradient(ws, head, task, b, r);
        if (r + 1 == end) emit_gradient(ws, head, task, b, end);
      }
    }
    p.divisor[task] = reader.divisor;
    p.bad_label[task] = reader.bad_label;
  });
  for (int64_t head = 0; head < p.heads; ++head) p.head[head].sum[task] = sum[head];
}

}  // namespace

int64_t cross_entropy_scratch(const CrossEntropyProblem& p) {
  return p.type == LogitType::f64 ? Workspace<double>(p, nullptr, tile_memory(p)).bytes()
                                  : Workspace<float>(p, nullptr, tile_memory(p)).bytes();
}

void cross_entropy_chunk(const CrossEntropyProblem& p, int64_t task, void* scratch) {
  p.type == LogitType::f64 ? sum_chunk<double>(p, task, scratch) : sum_chunk<float>(p, task, scratch);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
