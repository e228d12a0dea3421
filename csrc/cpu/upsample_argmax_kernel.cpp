// Arg-max of upsampled logits, and how often it is the label. Compiled once per instruction set (see isa.h).
#include "upsampled_logits_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "cross_entropy_nodes.h"

constexpr int kMaxUnroll = 8;  // columns whose running maxima stay in registers

template <typename Real>
struct ArgmaxRows {
  const ArgmaxProblem& p;
  int64_t padded, map;
  int64_t next;    // from a column's left node to its right one: 0 at equal sizes, else 1 (see bilinear_taps)
  Real* nodes[2];  // [C, padded] rows of nodes above and below
  Real* row;       // [C, padded] nodes interpolated to one output row
  Real* first;     // [padded] fraction of each cell's first column
  Real* best;      // [most columns, padded] of one output row: arg-max, as a number
  int64_t bytes;

  ArgmaxRows(const ArgmaxProblem& problem, void* memory) : p(problem) {
    padded = padded_cells<Real>(p.columns), map = p.classes * padded;
    next = p.columns.nodes == p.out_width ? 0 : 1;
    Arena<Real> arena{static_cast<Real*>(memory)};
    for (Real*& side : nodes) side = arena.take(map);
    row = arena.take(map), first = arena.take(padded);
    best = arena.take(p.columns.most * padded);
    bytes = arena.bytes();
    if (memory == nullptr) return;
    for (int64_t q = 0; q < padded; ++q) {
      first[q] = q < p.columns.cells ? static_cast<Real>(fraction_in(p.columns, q, 0)) : Real(0);
    }
  }

  void stage(int64_t b, int64_t r) { copy_nodes(p, p.logits, b, node_at(p.rows, r), padded, nodes[r & 1]); }

  void interpolate(int64_t r, Real s) {
    const Real *above = nodes[r & 1], *below = p.rows.nodes == p.out_height ? above : nodes[(r & 1) ^ 1];
    for (int64_t i = 0; i < map; i += kLanes<Real>) put(row + i, (1 - s) * get(above + i) + s * get(below + i));
  }

  template <int UNROLL>
  void find(int64_t q, int64_t column) {
    using V = Lanes<Real>;
    V t[UNROLL], u[UNROLL], most[UNROLL], index[UNROLL];
    for (int k = 0; k < UNROLL; ++k) {
      t[k] = get(first + q) + static_cast<Real>(column + k) * static_cast<Real>(p.columns.step);
      t[k] = t[k] < Real(1) ? t[k] : all(Real(1));
      u[k] = Real(1) - t[k];
      index[k] = V{};
      most[k] = u[k] * get(row + q) + t[k] * get(row + q + next);
    }
    for (int64_t c = 1; c < p.classes; ++c) {
      const V left = get(row + c * padded + q), right = get(row + c * padded + q + next);
      for (int k = 0; k < UNROLL; ++k) {
        const V logit = u[k] * left + t[k] * right;
        // As torch.argmax: the first of equals, and the first NaN before everything.
        const auto wins = (logit > most[k]) | ((logit != logit) & (most[k] == most[k]));
        index[k] = wins ? all(static_cast<Real>(c)) : index[k];
        most[k] = wins ? logit : most[k];
      }
    }
    for (int k = 0; k < UNROLL; ++k) put(best + (column + k) * padded + q, index[k]);
  }

  void find_row() {
    // Equal shares of the columns: 9 of them as 5 + 4, not 8 + 1.
    const int64_t parts = (p.columns.most + kMaxUnroll - 1) / kMaxUnroll;
    for (int64_t q = 0; q < p.columns.cells; q += kLanes<Real>) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t from = p.columns.most * part / parts, columns = p.columns.most * (part + 1) / parts - from;
        switch (columns) {
          case 1: find<1>(q, from); break;
          case 2: find<2>(q, from); break;
          case 3: find<3>(q, from); break;
          case 4: find<4>(q, from); break;
          case 5: find<5>(q, from); break;
          case 6: find<6>(q, from); break;
          case 7: find<7>(q, from); break;
          default: find<8>(q, from); break;
        }
      }
    }
  }

  int64_t emit(int64_t line) {
    int64_t correct = 0;
    for (int64_t q = 0; q < p.columns.cells; ++q) {
      for (int64_t k = 0; k < p.columns.count[q]; ++k) {
        const int64_t pixel = line + p.columns.begin[q] + k, found = static_cast<int64_t>(best[k * padded + q]);
        if (p.out) write_label(p.out_type, p.out, pixel, found);
        if (p.target == nullptr) continue;
        const int64_t label = read_label(p.label_type, p.target, pixel);
        correct += label == found && label != p.ignore_index;
      }
    }
    return correct;
  }
};

template <typename Real>
void argmax_rows(const ArgmaxProblem& p, int64_t begin, int64_t end, void* scratch) {
  ArgmaxRows<Real> rows(p, scratch);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.rows.cells, r = i % p.rows.cells;
    if (i == begin || r == 0) rows.stage(b, r);
    rows.stage(b, r + 1);
    int64_t correct = 0;
    for (int64_t j = 0; j < p.rows.count[r]; ++j) {
      rows.interpolate(r, static_cast<Real>(fraction_in(p.rows, r, j)));
      rows.find_row();
      correct += rows.emit((b * p.out_height + p.rows.begin[r] + j) * p.out_width);
    }
    if (p.correct) p.correct[i] = correct;
  }
}

}  // namespace

int64_t argmax_scratch(const ArgmaxProblem& p) {
  return p.type == ElementType::f64 ? ArgmaxRows<double>(p, nullptr).bytes : ArgmaxRows<float>(p, nullptr).bytes;
}

void upsample_argmax_rows(const ArgmaxProblem& p, int64_t begin, int64_t end, void* scratch) {
  p.type == ElementType::f64 ? argmax_rows<double>(p, begin, end, scratch) : argmax_rows<float>(p, begin, end, scratch);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
