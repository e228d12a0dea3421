// Arg-max of upsampled logits, and how often it is the label. Compiled once per instruction set (see isa.h).
#include "upsampled_logits_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "upsampled_nodes.h"

constexpr int kMaxUnroll = 8;  // columns whose running maxima stay in registers

template <typename Real>
struct ArgmaxRow : UpsampledRow<Real, ArgmaxProblem> {
  using Base = UpsampledRow<Real, ArgmaxProblem>;
  using Base::next, Base::p, Base::padded, Base::row;
  Real* best;  // [most columns, padded] of one output row: arg-max, as a number

  ArgmaxRow(const ArgmaxProblem& problem, Arena<Real>& arena)
      : Base(problem, arena), best(arena.take(p.columns.most * padded)) {}

  template <int UNROLL>
  void find(int64_t q, int64_t column) {
    using V = Lanes<Real>;
    V t[UNROLL], u[UNROLL], most[UNROLL], index[UNROLL];
    for (int k = 0; k < UNROLL; ++k) {
      t[k] = this->share(q, column + k);
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
    for (int64_t q = 0; q < p.columns.cells; q += kLanes<Real>) {
      for_equal_parts<kMaxUnroll>(p.columns.most, [&]<int UNROLL>(int64_t from) { find<UNROLL>(q, from); });
    }
  }

  // Writes the labels of a line; returns how many are the target.
  int64_t emit(int64_t line) {
    int64_t correct = 0;
    for (int64_t q = 0; q < p.columns.cells; ++q) {
      for (int64_t k = 0; k < p.columns.count[q]; ++k) {
        const int64_t pixel = line + p.columns.begin[q] + k, found = static_cast<int64_t>(best[k * padded + q]);
        if (p.out) {
          dispatch_labels(p.out_type, [&]<typename Label>() {
            static_cast<Label*>(p.out)[pixel] = static_cast<Label>(found);
          });
        }
        if (p.target == nullptr) continue;
        const int64_t label = read_label(p.label_type, p.target, pixel);
        correct += label == found && label != p.ignore_index;
      }
    }
    return correct;
  }
};

template <typename Real>
void find_rows(const ArgmaxProblem& p, void* scratch, int64_t begin, int64_t end) {
  Arena<Real> arena{static_cast<Real*>(scratch)};
  ArgmaxRow<Real> row(p, arena);
  const int64_t first = begin * kArgmaxBlock, last = smaller(p.batch * p.rows.cells, end * kArgmaxBlock);
  for (int64_t i = first; i < last; ++i) {
    const int64_t b = i / p.rows.cells, r = i % p.rows.cells;
    if (i == first || r == 0) row.stage(b, r);
    row.stage(b, r + 1);
    int64_t correct = 0;
    for (int64_t j = 0; j < p.rows.count[r]; ++j) {
      row.interpolate(r, j);
      row.find_row();
      correct += row.emit((b * p.out_height + p.rows.begin[r] + j) * p.out_width);
    }
    if (p.correct) p.correct[i] = correct;
  }
}

}  // namespace

int64_t argmax_scratch(const ArgmaxProblem& p) { return bytes_of<ArgmaxRow>(p); }

void upsample_argmax(const ArgmaxProblem& p, void* scratch, int64_t begin, int64_t end) {
  p.type == ElementType::f64 ? find_rows<double>(p, scratch, begin, end) : find_rows<float>(p, scratch, begin, end);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
