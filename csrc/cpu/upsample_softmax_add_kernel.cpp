// Probabilities of upsampled logits added into a map. Compiled once per instruction set (see isa.h).
//
// Exponentials are taken for a row of the upsampled map at a time, with neighbouring cells as lanes, and kept: a row of
// the total reads one or two such rows, each position of it one or two of their columns.
#include "upsampled_logits_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "upsampled_nodes.h"

constexpr int kMaxUnroll = 4;      // columns of a cell whose sums stay in registers
constexpr int64_t kBlock = 64;     // columns of a total that is not contiguous along them
constexpr int32_t kNone = INT32_MIN;

template <typename Real>
struct SoftmaxRows : UpsampledRow<Real, SoftmaxAddProblem> {
  using Base = UpsampledRow<Real, SoftmaxAddProblem>;
  using Base::next, Base::p, Base::padded, Base::row;
  int64_t nowhere, slots;  // slot k · padded + q is the k-th column of cell q; slot `nowhere` holds 0
  int64_t image = -1;
  int32_t staged[2] = {kNone, kNone};  // the cell rows whose top nodes are in `nodes`
  int32_t held[2] = {kNone, kNone};    // the upsampled rows in `exponentials`
  Real* exponentials[2];               // [C, slots] of an upsampled row
  Real* inverse[2];                    // [slots] one by their sum
  int32_t* slot[2];                    // [total_width] where the two columns that a column of the total reads are
  Real* column_weight[2];
  Real* factor[4];  // [total_width] of each tap: its weight by the sum of its exponentials

  SoftmaxRows(const SoftmaxAddProblem& problem, Arena<Real>& arena) : Base(problem, arena) {
    nowhere = p.columns.most * padded, slots = nowhere + kLanes<Real>;
    for (Real*& kept : exponentials) kept = arena.take(p.classes * slots);
    for (Real*& kept : inverse) kept = arena.take(slots);
    for (int32_t*& table : slot) table = reinterpret_cast<int32_t*>(arena.take(p.total_width));
    for (Real*& table : column_weight) table = arena.take(p.total_width);
    for (Real*& table : factor) table = arena.take(p.total_width);
    if (row == nullptr) return;
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

  void stage_once(int64_t r) {
    if (staged[r & 1] == r) return;
    this->stage(image, r);
    staged[r & 1] = static_cast<int32_t>(r);
  }

  // The place of row u of the upsampled map, which is computed unless it is there.
  int hold(int64_t u, int keep) {
    for (int i = 0; i < 2; ++i) {
      if (held[i] == u) return i;
    }
    const int i = keep == 0 ? 1 : 0;
    const int64_t r = p.cell_of_row[u];
    stage_once(r), stage_once(r + 1);
    this->interpolate(r, u - p.rows.begin[r]);
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
    const Real *left = row + q, *right = left + next;
    const int64_t classes = p.classes, pitch = padded;
    V t[UNROLL], u[UNROLL], most[UNROLL], sum[UNROLL];
    for (int k = 0; k < UNROLL; ++k) {
      t[k] = this->share(q, column + k);
      u[k] = Real(1) - t[k];
      most[k] = u[k] * get(left) + t[k] * get(right);
      sum[k] = V{};
    }
    for (int64_t c = 1; c < classes; ++c) {
      for (int k = 0; k < UNROLL; ++k) {
        const V logit = u[k] * get(left + c * pitch) + t[k] * get(right + c * pitch);
        most[k] = logit > most[k] ? logit : most[k];
      }
    }
    Real* to = exponentials[place] + column * pitch + q;
    for (int64_t c = 0; c < classes; ++c, to += slots) {
      const V a = get(left + c * pitch), b = get(right + c * pitch);
      for (int k = 0; k < UNROLL; ++k) {
        const V e = exp_nonpositive(u[k] * a + t[k] * b - most[k]);
        sum[k] += e;
        put(to + k * pitch, e);
      }
    }
    for (int k = 0; k < UNROLL; ++k) put(inverse[place] + (column + k) * pitch + q, Real(1) / sum[k]);
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
      const int64_t count = smaller(block, p.total_width - x);
      for (int64_t c = 0; c < p.classes; ++c) {
        Real* line = to + c * p.total_stride_c + x * p.total_stride_w;
        contiguous ? add_line<TAPS, true>(line, c, x, count, from, at)
                   : add_line<TAPS, false>(line, c, x, count, from, at);
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
void add_rows(const SoftmaxAddProblem& p, void* scratch, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(p.total_height, kSoftmaxBlock);
  for (int64_t i = begin; i < end; ++i) {
    Arena<Real> arena{static_cast<Real*>(scratch)};
    SoftmaxRows<Real> rows(p, arena);
    rows.image = i / blocks;
    const int64_t first = i % blocks * kSoftmaxBlock, last = smaller(p.total_height, first + kSoftmaxBlock);
    for (int64_t y = first; y < last; ++y) rows.add(y);
  }
}

}  // namespace

int64_t softmax_add_scratch(const SoftmaxAddProblem& p) { return bytes_of<SoftmaxRows>(p); }

void upsample_softmax_add(const SoftmaxAddProblem& p, void* scratch, int64_t begin, int64_t end) {
  p.type == ElementType::f64 ? add_rows<double>(p, scratch, begin, end) : add_rows<float>(p, scratch, begin, end);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
