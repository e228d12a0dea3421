// Cross-entropy of upsampled logits: log-sum-exp, arg-max and loss. Compiled once per instruction set (see isa.h).
#include "cross_entropy_kernel.h"

#include <cstdlib>
#include <new>

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "cross_entropy_rows.h"

constexpr int kMaxUnroll = 8;  // steps whose running sums stay in registers

// Log-sum-exp, and the arg-max if wanted, of UNROLL steps of the lanes at cell q.
template <int UNROLL, bool ARGMAX, typename Real>
void reduce_steps(Workspace<Real>& ws, int64_t q, int64_t first, bool want_lse) {
  using V = Lanes<Real>;
  V t[UNROLL], u[UNROLL], most[UNROLL], sum[UNROLL], index[UNROLL];
  for (int k = 0; k < UNROLL; ++k) {
    t[k] = get(ws.t + (first + k) * ws.padded + q);
    u[k] = get(ws.u + (first + k) * ws.padded + q);
    sum[k] = index[k] = V{};
    most[k] = u[k] * get(ws.row + q) + t[k] * get(ws.row + q + 1);
  }
  for (int64_t c = 1; c < ws.p.classes; ++c) {
    const V left = get(ws.row + c * ws.padded + q), right = get(ws.row + c * ws.padded + q + 1);
    for (int k = 0; k < UNROLL; ++k) {
      const V logit = u[k] * left + t[k] * right;
      if (ARGMAX) {
        // As torch.argmax: the first of equals, and the first NaN before everything.
        const auto wins = (logit > most[k]) | ((logit != logit) & (most[k] == most[k]));
        index[k] = wins ? all(static_cast<Real>(c)) : index[k];
        most[k] = wins ? logit : most[k];
      } else {
        most[k] = logit > most[k] ? logit : most[k];
      }
    }
  }
  if (ARGMAX) {
    for (int k = 0; k < UNROLL; ++k) put(ws.best + (first + k) * ws.padded + q, index[k]);
  }
  if (!want_lse) return;
  for (int64_t c = 0; c < ws.p.classes; ++c) {
    const V left = get(ws.row + c * ws.padded + q), right = get(ws.row + c * ws.padded + q + 1);
    for (int k = 0; k < UNROLL; ++k) sum[k] += exp_nonpositive(u[k] * left + t[k] * right - most[k]);
  }
  for (int k = 0; k < UNROLL; ++k) put(ws.lse + (first + k) * ws.padded + q, most[k] + log_positive(sum[k]));
}

template <bool ARGMAX, typename Real>
void reduce_row(Workspace<Real>& ws, bool want_lse) {
  // Equal shares of the steps: 9 of them as 5 + 4, not 8 + 1.
  const int64_t parts = (ws.p.steps + kMaxUnroll - 1) / kMaxUnroll;
  for (int64_t q = 0; q < ws.p.width; q += kLanes<Real>) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = ws.p.steps * part / parts, last = ws.p.steps * (part + 1) / parts;
      switch (last - first) {
        case 1: reduce_steps<1, ARGMAX>(ws, q, first, want_lse); break;
        case 2: reduce_steps<2, ARGMAX>(ws, q, first, want_lse); break;
        case 3: reduce_steps<3, ARGMAX>(ws, q, first, want_lse); break;
        case 4: reduce_steps<4, ARGMAX>(ws, q, first, want_lse); break;
        case 5: reduce_steps<5, ARGMAX>(ws, q, first, want_lse); break;
        case 6: reduce_steps<6, ARGMAX>(ws, q, first, want_lse); break;
        case 7: reduce_steps<7, ARGMAX>(ws, q, first, want_lse); break;
        default: reduce_steps<8, ARGMAX>(ws, q, first, want_lse); break;
      }
    }
  }
}

// Losses of one output row from its log-sum-exps; adds to the sums of the cell row.
template <typename Real>
void score_row(
    Workspace<Real>& ws, const Weights<Real>& weights, int64_t b, int64_t y, double& loss_sum, double& divisor,
    int64_t& bad_label) {
  const CrossEntropyProblem& p = ws.p;
  const int64_t base = pixel_at(p, b, y);
  for (int64_t x = 0; x < p.out_width; ++x) {
    const int64_t label = read_label(p.label_type, p.target, base + x);
    Real loss = 0;
    if (label != p.ignore_index) {
      if (label < 0 || label >= p.classes) {
        if (bad_label == kNoLabel) bad_label = label;
        continue;
      }
      const int64_t slot = ws.slot(x), cell = p.cell_of[x];
      const Real t = ws.t[slot], u = ws.u[slot];
      const auto behind = [&](int64_t c) {  // how far class c lies behind the log-sum-exp
        const Real* node = ws.row + c * ws.padded + cell;
        return ws.lse[slot] - (u * node[0] + t * node[1]);
      };
      const Real own = weights.own * weights.of_class(label);
      loss = own * behind(label);
      if (weights.smooth > 0) {
        Real spread = 0;
        for (int64_t c = 0; c < p.classes; ++c) spread += weights.of_class(c) * behind(c);
        loss += weights.smooth * spread;
      }
      const Real pixel = weights.of_pixel(base + x);
      loss *= pixel;
      loss_sum += static_cast<double>(loss);
      divisor += static_cast<double>(weights.of_class(label) * pixel);
    }
    if (p.loss) static_cast<Real*>(p.loss)[base + x] = loss;
  }
}

template <typename Real>
void forward(const CrossEntropyProblem& p, int64_t begin, int64_t end) {
  Workspace<Real> ws(p, /*backward=*/false);
  const Weights<Real> weights(p);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.height, r = i % p.height;
    double loss_sum = 0, divisor = 0;
    int64_t bad_label = kNoLabel;
    if (p.row_begin[r] < p.row_begin[r + 1]) stage_cell_row(ws, b, r);
    for (int64_t y = p.row_begin[r]; y < p.row_begin[r + 1]; ++y) {
      interpolate_row(ws, p.row_t[y]);
      if (p.labels_out) {
        reduce_row<true>(ws, p.target != nullptr);
      } else {
        reduce_row<false>(ws, true);
      }
      const int64_t base = pixel_at(p, b, y);
      for (int64_t x = 0; p.lse && x < p.out_width; ++x) static_cast<Real*>(p.lse)[base + x] = ws.lse[ws.slot(x)];
      for (int64_t x = 0; p.labels_out && x < p.out_width; ++x) {
        write_label(p.labels_out_type, p.labels_out, base + x, static_cast<int64_t>(ws.best[ws.slot(x)]));
      }
      if (p.target) score_row(ws, weights, b, y, loss_sum, divisor, bad_label);
    }
    if (p.row_loss) p.row_loss[i] = loss_sum, p.row_divisor[i] = divisor, p.row_bad_label[i] = bad_label;
  }
}

}  // namespace

void cross_entropy_forward(const CrossEntropyProblem& problem, int64_t begin, int64_t end) {
  problem.type == LogitType::f64 ? forward<double>(problem, begin, end) : forward<float>(problem, begin, end);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
