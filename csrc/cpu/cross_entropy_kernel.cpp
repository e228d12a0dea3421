// Loss and gradient of the cross-entropy of upsampled logits, a task of several cell rows at a time. Compiled once per
// instruction set (see isa.h).
#include "upsampled_logits_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "upsampled_nodes.h"

#include "cross_entropy_tile.h"

#include "cross_entropy_progression.h"

constexpr int64_t kTileRows = 16;  // taller cells are several tiles, whose memory stays in the cache

int64_t tile_memory(const CrossEntropyProblem& p) {
  return larger(
      direct_memory<float>(p.classes, p.columns.most), progression_memory(p.classes, smaller(kTileRows, p.rows.most)));
}

#include "cross_entropy_workspace.h"

// Progressions pay from four pixels a cell on: they take four exponentials, the direct way one a pixel and direction.
bool progressions_pay(const CrossEntropyProblem& p) { return p.columns.most >= 2 && p.rows.most >= 2; }

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

// Σ grad_weight · (how far the label lies behind the log-sum-exp) over the pixels of cell row r; fills the corners of
// its cells.
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
      tile.rows = smaller(kTileRows, p.rows.count[r] - j), tile.columns = columns;
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

// Joins the corners of neighbouring cells to the gradient of the rows of nodes above and below, less what the labels
// take. Returns what smoothing takes from the loss: ε / C times the sum over the classes, and over the pixels, of the
// class's weight times its logit less the label's.
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
      const V top = get(corner) + get(corner + ws.padded - 1);
      const V bottom = get(corner + 2 * ws.padded) + get(corner + 3 * ws.padded - 1);
      put(ws.carry[head][above] + i, get(ws.carry[head][above] + i) + (top - share[0]));
      put(ws.carry[head][below] + i, bottom - share[1]);
    }
  }
  double sum = 0;
  for (int i = 0; i < kLanes<Real>; ++i) sum += static_cast<double>(taken[i]);
  return sum;
}

// ---- What leaves a task: rows of the gradient, and losses of pixels ------------------------------------------------

// Write or add [C, padded] to [C, w] of these strides; what lies behind the map belongs to its last node. (In front of
// it stands nothing: its cells' pixels have no share of their left nodes.)
template <typename Real>
void write_nodes(
    const CrossEntropyProblem& p, int64_t padded, Real* from, Real* to, int64_t stride_c, int64_t stride_w, bool add) {
  const int64_t width = p.columns.nodes, before = -p.columns.first_node;
  for (int64_t c = 0; c < p.classes; ++c) {
    Real* row = from + c * padded;
    for (int64_t q = before + width; q <= p.columns.cells; ++q) row[before + width - 1] += row[q];
  }
  constexpr int64_t n = kLanes<Real>;
  if (stride_w != 1 && !add && p.classes >= n && width >= n) {
    for_overlapping_blocks(p.classes, n, [&](int64_t c0) {
      for_overlapping_blocks(width, n, [&](int64_t w0) {
        Lanes<Real> block[n];
        for (int64_t i = 0; i < n; ++i) block[i] = get(from + (c0 + i) * padded + before + w0);
        transpose<Real>(block);
        for (int64_t i = 0; i < n; ++i) put(to + (w0 + i) * stride_w + c0, block[i]);
      });
    });
    return;
  }
  for (int64_t c = 0; c < p.classes; ++c) {
    const Real* row = from + c * padded + before;
    Real* out = to + c * stride_c;
    if (stride_w == 1) {
      for (int64_t w = 0; w < width; ++w) out[w] = add ? out[w] + row[w] : row[w];
    } else {
      for (int64_t w = 0; w < width; ++w) out[w * stride_w] = add ? out[w * stride_w] + row[w] : row[w];
    }
  }
}

// The row of nodes above cell row r has all that this task gives to it. The first one it shares with the task above,
// which writes it: its part waits aside. Beyond the map two rows fall on one row of nodes: the second adds.
template <typename Real>
void emit_gradient(Workspace<Real>& ws, int64_t head, int64_t task, int64_t b, int64_t r) {
  const CrossEntropyProblem& p = ws.p;
  if (in_front(p.rows, r)) return;
  const int64_t begin = task_begin(p, task % p.tasks_per_image), h = node_at(p.rows, r);
  const bool shared = begin > 0 && h == node_at(p.rows, begin);
  const bool add = r > begin && !in_front(p.rows, r - 1) && h == node_at(p.rows, r - 1);
  if (shared) {
    Real* to = static_cast<Real*>(p.head[head].boundary) + task * p.classes * p.columns.nodes;
    write_nodes(p, ws.padded, ws.carry[head][r & 1], to, p.columns.nodes, 1, add);
  } else {
    Real* to = static_cast<Real*>(p.head[head].grad) + b * p.stride_b + h * p.stride_h;
    write_nodes(p, ws.padded, ws.carry[head][r & 1], to, p.stride_c, p.stride_w, add);
  }
}

// Losses of the pixels of cell row r, from how far their labels lie behind the log-sum-exps.
template <typename Real>
void emit_losses(Workspace<Real>& ws, int64_t head, int64_t b, int64_t r) {
  const CrossEntropyProblem& p = ws.p;
  const Real* above = ws.nodes[head][r & 1];
  const Real* below = p.rows.nodes == p.out_height ? above : ws.nodes[head][(r & 1) ^ 1];
  for (int64_t j = 0; j < p.rows.count[r]; ++j) {
    const int64_t line = (b * p.out_height + p.rows.begin[r] + j) * p.out_width;
    const Real s = static_cast<Real>(fraction_in(p.rows, r, j));
    for (int64_t q = 0; q < p.columns.cells; ++q) {
      for (int64_t k = 0; k < p.columns.count[q]; ++k) {
        const int64_t pixel = line + p.columns.begin[q] + k, label = read_label(p.label_type, p.target, pixel);
        Real& loss = static_cast<Real*>(p.head[head].loss)[pixel];
        loss = 0;
        if (label == p.ignore_index || label < 0 || label >= p.classes) continue;
        const Real t = ws.fraction[k * ws.padded + q];
        const Real behind = ws.loss[(j * p.columns.most + k) * ws.padded + q];
        const auto logit = [&](int64_t c) {
          const Real *a = above + c * ws.padded + q, *b = below + c * ws.padded + q;
          return (1 - s) * ((1 - t) * a[0] + t * a[ws.right]) + s * ((1 - t) * b[0] + t * b[ws.right]);
        };
        loss = ws.own * ws.class_weight(label) * behind;
        if (ws.smooth > 0) {
          const Real own = logit(label);
          Real spread = 0;
          for (int64_t c = 0; c < p.classes; ++c) {
            spread += ws.class_weight(c) * (c == label || __builtin_isinf(behind) ? behind : behind + (own - logit(c)));
          }
          loss += ws.smooth * spread;
        }
        if (p.pixel_weight) loss *= static_cast<const Real*>(p.pixel_weight)[pixel];
      }
    }
  }
}

// ---- A task --------------------------------------------------------------------------------------------------------

// Every node's largest logit, and how far its smallest lies below (NaN where a logit is not finite).
template <typename Real>
void find_peaks(int64_t classes, int64_t padded, const Real* nodes, Real* peak, Real* range) {
  for (int64_t q = 0; q < padded; q += kLanes<Real>) {
    Lanes<Real> most = get(nodes + q), least = most, all_of_them = most;
    for (int64_t c = 1; c < classes; ++c) {
      const Lanes<Real> logit = get(nodes + c * padded + q);
      most = logit > most ? logit : most;
      least = logit < least ? logit : least;
      all_of_them += logit;
    }
    put(peak + q, most);
    put(range + q, most - least + Real(0) * all_of_them);
  }
}

template <typename Real>
void stage_nodes(Workspace<Real>& ws, int64_t head, int64_t b, int64_t r) {
  const int64_t side = r & 1;
  copy_nodes(ws.p, ws.p.head[head].logits, b, node_at(ws.p.rows, r), ws.padded, ws.nodes[head][side]);
  find_peaks(ws.p.classes, ws.padded, ws.nodes[head][side], ws.peak[head][side], ws.range[head][side]);
}

template <typename Label, typename Real>
void sum_task(const CrossEntropyProblem& p, int64_t task, Real* scratch) {
  Arena<Real> arena{scratch};
  Workspace<Real> ws(p, arena);
  LabelReader<Label, Real> reader{ws};
  const int64_t b = task / p.tasks_per_image, of_image = task % p.tasks_per_image;
  const int64_t begin = task_begin(p, of_image), end = task_begin(p, of_image + 1);
  double sum[2] = {0, 0};
  for (int64_t head = 0; head < p.heads; ++head) {
    stage_nodes(ws, head, b, begin);
    for (int64_t i = 0; i < ws.map; ++i) ws.carry[head][begin & 1][i] = 0;
  }
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
  for (int64_t head = 0; head < p.heads; ++head) p.head[head].sum[task] = sum[head];
}

}  // namespace

int64_t cross_entropy_scratch(const CrossEntropyProblem& p) { return bytes_of<Workspace>(p); }

void upsample_cross_entropy(const CrossEntropyProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch_labels(p.label_type, [&]<typename Label>() {
    for (int64_t task = begin; task < end; ++task) {
      p.type == ElementType::f64 ? sum_task<Label>(p, task, static_cast<double*>(scratch))
                                 : sum_task<Label>(p, task, static_cast<float*>(scratch));
    }
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
