// Probabilities of upsampled logits added into a map. Compiled once per instruction set (see isa.h).
//
// Exponentials are taken for a row of the upsampled map at a time, with neighbouring cells as lanes, and kept: a row of
// the total reads one or two such rows, each position of it one or two of their columns.
#include "upsampled_logits_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "cross_entropy_nodes.h"

constexpr int kMaxUnroll = 4;      // columns of a cell whose sums stay in registers
constexpr int64_t kBlock = 64;     // columns of a total that is not contiguous along them
constexpr int32_t kNone = INT32_MIN;

template <typename Real>
struct SoftmaxRows {
  const SoftmaxAddProblem& p;
  int64_t padded, map;
  int64_t nowhere, slots;  // slot k · padded + q is the k-th column of cell q; slot `nowhere` holds 0
  int64_t next;                // from a column's left node to its right one: 0 at equal sizes, else 1 (see bilinear_taps)
  int64_t image = -1;
  int32_t staged[2] = {kNone, kNone};  // the cell rows whose top nodes are in `nodes`
  int32_t held[2] = {kNone, kNone};    // the upsampled rows in `exponentials`
  Real* nodes[2];         // [C, padded] top and bottom rows of nodes
  Real* row;              // [C, padded] nodes interpolated to one upsampled row
  Real* first;            // [padded] fraction of each cell's first column
  Real* exponentials[2];  // [C, slots] of an upsampled row
  Real* inverse[2];       // [slots] one by their sum
  int32_t* slot[2];       // [total_width] where the two columns that a column of the total reads are
  Real* column_weight[2];
  Real* factor[4];  // [total_width] of each tap: its weight by the sum of its exponentials
  int64_t bytes;

  SoftmaxRows(const SoftmaxAddProblem& problem, void* memory) : p(problem) {
    padded = padded_cells<Real>(p.columns), map = p.classes * padded;
    nowhere = p.columns.most * padded, slots = nowhere + kLanes<Real>;
    next = p.columns.nodes == p.out_width ? 0 : 1;
    Arena<Real> arena{static_cast<Real*>(memory)};
    for (Real*& side : nodes) side = arena.take(map);
    row = arena.take(map), first = arena.take(padded);
    for (Real*& kept : exponentials) kept = arena.take(p.classes * slots);
    for (Real*& kept : inverse) kept = arena.take(slots);
    for (int32_t*& table : slot) table = reinterpret_cast<int32_t*>(arena.take(p.total_width));
    for (Real*& table : column_weight) table = arena.take(p.total_width);
    for (Real*& table : factor) table = arena.take(p.total_width);
    bytes = arena.bytes();
    if (memory == nullptr) return;
    for (int64_t q = 0; q < padded; ++q) {
      first[q] = q < p.columns.cells ? static_cast<Real>(fraction_in(p.columns, q, 0)) : Real(0);
    }
    for (int place = 0; place < 2; ++place) {
      inverse[place][nowhere] = 0;
      for (int64_t c = 0; c < p.classes; ++c) exponentials[place][c * slots + nowhere] = 0;
      for (int64_t x = 0; x < p.total_width; ++x) read_column(x, place);
    }
  }

  void read_column(int64_t x, int tap) {
    const AxisTable& table = p.column_table;
    const int64_t column = table.index ? table.index[2 * x + tap] : x;
    const int64_t u = p.flip ? p.out_width - 1 - column : column, q = p.cell_of_column[u];
    const Real weight = table.index ? static_cast<const Real*>(table.weight)[2 * x + tap] : Real(1);
    slot[tap][x] = static_cast<int32_t>(weight == 0 ? nowhere : (u - p.columns.begin[q]) * padded + q);
    column_weight[tap][x] = weight;
  }

  void stage(int64_t r) {
    if (staged[r & 1] == r) return;
    copy_nodes(p, p.logits, image, node_at(p.rows, r), padded, nodes[r & 1]);
    staged[r & 1] = static_cast<int32_t>(r);
  }

  // The place of row u of the upsampled map, which is computed unless it is there.
  int hold(int64_t u, int keep) {
    for (int i = 0; i < 2; ++i) {
      if (held[i] == u) return i;
    }
    const int i = keep == 0 ? 1 : 0;
    const int64_t r = p.cell_of_row[u];
    stage(r), stage(r + 1);
    const Real *top = nodes[r & 1], *bottom = p.rows.nodes == p.out_height ? top : nodes[(r & 1) ^ 1];
    const Real s = static_cast<Real>(fraction_in(p.rows, r, u - p.rows.begin[r]));
    for (int64_t j = 0; j < map; j += kLanes<Real>) put(row + j, (1 - s) * get(top + j) + s * get(bottom + j));
    for (int64_t q = 0; q < p.columns.cells; q += kLanes<Real>) {
      int64_t k = 0;
      for (; k + kMaxUnroll <= p.columns.most; k += kMaxUnroll) exponentiate<kMaxUnroll>(i, q, k);
      for (; k < p.columns.most; ++k) exponentiate<1>(i, q, k);
    }
    held[i] = static_cast<int32_t>(u);
    return i;
  }

  template <int UNROLL>
  void exponentiate(int place, int64_t q, int64_t column) {
    using V = Lanes<Real>;
    V t[UNROLL], u[UNROLL], most[UNROLL], sum[UNROLL];
    for (int k = 0; k < UNROLL; ++k) {
      t[k] = get(first + q) + static_cast<Real>(column + k) * static_cast<Real>(p.columns.step);
      t[k] = t[k] < Real(1) ? t[k] : all(Real(1));
      u[k] = Real(1) - t[k];
      most[k] = u[k] * get(row + q) + t[k] * get(row + q + next);
      sum[k] = V{};
    }
    for (int64_t c = 1; c < p.classes; ++c) {
      const V left = get(row + c * padded + q), right = get(row + c * padded + q + next);
      for (int k = 0; k < UNROLL; ++k) {
        const V logit = u[k] * left + t[k] * right;
        most[k] = logit > most[k] ? logit : most[k];
      }
    }
    Real* to = exponentials[place] + column * padded + q;
    for (int64_t c = 0; c < p.classes; ++c, to += slots) {
      const V left = get(row + c * padded + q), right = get(row + c * padded + q + next);
      for (int k = 0; k < UNROLL; ++k) {
        const V e = exp_nonpositive(u[k] * left + t[k] * right - most[k]);
        sum[k] += e;
        put(to + k * padded, e);
      }
    }
    for (int k = 0; k < UNROLL; ++k) put(inverse[place] + (column + k) * padded + q, Real(1) / sum[k]);
  }

  void add(int64_t y) {
    int taps = 0, keep = -1;
    const Real* from[4];
    const int32_t* at[4];
    for (int i = 0; i < (p.row_table.index ? 2 : 1); ++i) {
      const int64_t u = p.row_table.index ? p.row_table.index[2 * y + i] : y;
      const Real weight = p.row_table.index ? static_cast<const Real*>(p.row_table.weight)[2 * y + i] : Real(1);
      if (weight == 0) continue;
      keep = hold(u, keep);
      for (int j = 0; j < (p.column_table.index ? 2 : 1); ++j, ++taps) {
        from[taps] = exponentials[keep], at[taps] = slot[j];
        const Real w = static_cast<Real>(p.weight) * weight;
        for (int64_t x = 0; x < p.total_width; ++x) {
          factor[taps][x] = w * column_weight[j][x] * inverse[keep][slot[j][x]];
        }
      }
    }
    Real* to = static_cast<Real*>(p.total) + image * p.total_stride_b + y * p.total_stride_h;
    switch (taps) {
      case 1: return add_taps<1>(to, from, at);
      case 2: return add_taps<2>(to, from, at);
      case 4: return add_taps<4>(to, from, at);
    }
  }

  template <int TAPS>
  void add_taps(Real* to, const Real* const* from, const int32_t* const* at) {
    const bool contiguous = p.total_stride_w == 1;
    const int64_t block = contiguous ? p.total_width : kBlock;
    for (int64_t x = 0; x < p.total_width; x += block) {
      const int64_t count = p.total_width - x < block ? p.total_width - x : block;
      for (int64_t c = 0; c < p.classes; ++c) {
        Real* line = to + c * p.total_stride_c + x * p.total_stride_w;
        contiguous ? add_line<TAPS, true>(line, c, x, count, from, at) : add_line<TAPS, false>(line, c, x, count, from, at);
      }
    }
  }

  template <int TAPS, bool CONTIGUOUS>
  void add_line(Real* to, int64_t c, int64_t x, int64_t count, const Real* const* from, const int32_t* const* at) {
    const Real* __restrict__ source[TAPS];
    const Real* __restrict__ weight[TAPS];
    const int32_t* __restrict__ index[TAPS];
    for (int i = 0; i < TAPS; ++i) source[i] = from[i] + c * slots, weight[i] = factor[i] + x, index[i] = at[i] + x;
    const int64_t stride = CONTIGUOUS ? 1 : p.total_stride_w;
    for (int64_t j = 0; j < count; ++j) {
      Real sum = 0;
      for (int i = 0; i < TAPS; ++i) sum += weight[i][j] * source[i][index[i][j]];
      to[j * stride] += sum;
    }
  }
};

template <typename Real>
void add_rows(const SoftmaxAddProblem& p, int64_t b, int64_t begin, int64_t end, void* scratch) {
  SoftmaxRows<Real> rows(p, scratch);
  rows.image = b;
  for (int64_t y = begin; y < end; ++y) rows.add(y);
}

}  // namespace

int64_t softmax_add_scratch(const SoftmaxAddProblem& p) {
  return p.type == ElementType::f64 ? SoftmaxRows<double>(p, nullptr).bytes : SoftmaxRows<float>(p, nullptr).bytes;
}

void upsample_softmax_add_rows(const SoftmaxAddProblem& p, int64_t b, int64_t begin, int64_t end, void* scratch) {
  p.type == ElementType::f64 ? add_rows<double>(p, b, begin, end, scratch) : add_rows<float>(p, b, begin, end, scratch);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
