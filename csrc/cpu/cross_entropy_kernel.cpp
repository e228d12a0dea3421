// Loss and gradient of the cross-entropy of upsampled logits, a task of several cell rows at a time. Compiled once per
// instruction set (see isa.h).
#include "upsampled_logits_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "cross_entropy_nodes.h"
#include "cross_entropy_tile.h"
#include "cross_entropy_workspace.h"
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

// The largest range of a tile's nodes; NaN where a logit is not finite.
inline float largest_range(const float* above, const float* below) {
  float most = 0, poison = 0;
  for (int64_t i = 0; i <= kLanes<float>; ++i) {
    most = above[i] > most ? above[i] : most, most = below[i] > most ? below[i] : most;
    poison += 0 * (above[i] + below[i]);
  }
  return most + poison;
}

// `peak` and `range` are those of the nodes above and below.
void sum_tile(const Tile<float>& tile, const float* const (&peak)[2], const float* const (&range)[2], LossSum& total) {
  const float most = progressions_pay(tile.p) ? largest_range(range[0], range[1]) : kMaxRange;
  if (!(most < kMaxRange)) return sum_directly(tile, total);
  const Shift shift = choose_shift(tile, peak[0], peak[1], range[0], range[1]);
  most < kNarrowRange ? sum_by_progression<true>(tile, shift, total) : sum_by_progression<false>(tile, shift, total);
}
void sum_tile(const Tile<double>& tile, const double* const (&)[2], const double* const (&)[2], LossSum& total) {
  sum_directly(tile, total);
}

// Σ grad_weight · (how far the label lies behind the log-sum-exp) over the pixels of cell row r; fills the corners of its
// cells.
template <typename Real>
double sum_cells(Workspace<Real>& ws, int64_t head, int64_t b, int64_t r) {
  const CrossEntropyProblem& p = ws.p;
  const int64_t above = r & 1, columns = p.columns.most;
  const int64_t below = p.rows.nodes == p.out_height ? above : above ^ 1;  // PyTorch reads no other node at equal sizes
  LossSum total;
  for (int64_t i = 0; p.rows.count[r] == 0 && i < 4 * ws.map; ++i) ws.corner[i] = 0;
  for (int64_t q = 0; q < p.columns.cells; q += kLanes<Real>) {
    for (int64_t j = 0; j < p.rows.count[r]; j += kTileRows) {
      Tile<Real> tile(p);
      tile.padded = ws.padded, tile.memory = ws.tile;
      tile.top = ws.nodes[head][above] + q, tile.bottom = ws.nodes[head][below] + q, tile.right = ws.right;
      tile.first = ws.first + q, tile.step = ws.step + q;
      tile.cell_row = r, tile.line = j;
      tile.row_start = static_cast<Real>(fraction_in(p.rows, r, j));
      tile.row_step = static_cast<Real>(step_in(p.rows, r));
      tile.rows = p.rows.count[r] - j < kTileRows ? p.rows.count[r] - j : kTileRows, tile.columns = columns;
      tile.grad_weight = ws.grad_weight + j * columns * ws.padded + q;
      tile.fraction = ws.fraction + q, tile.exists = ws.exists + q;
      tile.unit_grad_weights = ws.uniform;
      tile.gradient = p.head[head].grad != nullptr, tile.add = j > 0, tile.corner = ws.corner + q;
      tile.loss = ws.loss ? ws.loss + j * columns * ws.padded + q : nullptr;
      tile.label = ws.label + q, tile.cell = q, tile.pixel = (b * p.out_height + p.rows.begin[r] + j) * p.out_width;
      sum_tile(
          tile, {ws.peak[head][above] + q, ws.peak[head][below] + q},
          {ws.range[head][above] + q, ws.range[head][below] + q}, total);
    }
  }
  return total.total();
}

// Joins the corners of neighbouring cells to the gradient of the rows of nodes above and below, less what the labels take.
// Returns what smoothing takes from the loss: ε / C times the sum over the classes, and over the pixels, of the class's
// weight times its logit less the label's.
template <typename Real>
double join_cells(Workspace<Real>& ws, int64_t head, int64_t r) {
  using V = Lanes<Real>;
  const CrossEntropyProblem& p = ws.p;
  const int64_t above = r & 1, below = above ^ 1;
  const bool gradient = p.head[head].grad != nullptr, smooth = ws.smooth > 0;
  V taken{};
  for (int64_t c = 0; c < p.classes && (gradient || smooth); ++c) {
    const Real of_label = ws.own * ws.class_weight(c), of_all = ws.smooth * ws.class_weight(c);
    for (int64_t q = 0, i = c * ws.padded; q < ws.padded; q += kLanes<Real>, i += kLanes<Real>) {
      V share[2] = {};
      for (int side = 0; side < 2; ++side) {
        const V label = ws.present[c] ? get(ws.label_share[side] + i) : V{};
        share[side] = of_label * label;
        if (!smooth) continue;
        const V even = of_all * get(ws.smooth_share[side] + q);
        share[side] += even;
        // A logit of minus infinity concerns only the pixels that have a share of it.
        const V factor = even - ws.smooth * ws.class_sum * label;
        const int64_t row = side == 0 ? above : below;
        const V term = factor * (get(ws.nodes[head][row] + i) - get(ws.peak[head][row] + q));
        taken += factor != Real(0) ? term : V{};
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
void sum_task(const CrossEntropyProblem& p, int64_t task, void* memory) {
  Workspace<Real> ws(p, memory, tile_memory(p));
  const int64_t b = task / p.tasks_per_image, of_image = task % p.tasks_per_image;
  const int64_t begin = task_begin(p, of_image), end = task_begin(p, of_image + 1);
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
        const double loss = sum_cells(ws, head, b, r), smooth = join_cells(ws, head, r);
        sum[head] += __builtin_isinf(loss) ? loss : loss - smooth;  // of a label whose logit is minus infinity
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
  return p.type == ElementType::f64 ? Workspace<double>(p, nullptr, tile_memory(p)).bytes()
                                  : Workspace<float>(p, nullptr, tile_memory(p)).bytes();
}

void cross_entropy_task(const CrossEntropyProblem& p, int64_t task, void* scratch) {
  p.type == ElementType::f64 ? sum_task<double>(p, task, scratch) : sum_task<float>(p, task, scratch);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
