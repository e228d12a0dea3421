// Cross-entropy of upsampled logits, forward and backward. Compiled once per instruction set (see isa.h).
#include "cross_entropy_kernel.h"

#include <cstdlib>

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "half.h"
#include "lanes.h"

constexpr int kMaxUnroll = 8;  // steps whose running sums stay in registers

inline int64_t read_label(LabelType type, const void* labels, int64_t i) {
  switch (type) {
    case LabelType::i64: return static_cast<const int64_t*>(labels)[i];
    case LabelType::i32: return static_cast<const int32_t*>(labels)[i];
    default: return static_cast<const uint8_t*>(labels)[i];
  }
}
inline void write_label(LabelType type, void* labels, int64_t i, int64_t value) {
  switch (type) {
    case LabelType::i64: static_cast<int64_t*>(labels)[i] = value; break;
    case LabelType::i32: static_cast<int32_t*>(labels)[i] = static_cast<int32_t>(value); break;
    default: static_cast<uint8_t*>(labels)[i] = static_cast<uint8_t>(value);
  }
}

// One thread's buffers for one problem. Rows are padded to whole lanes plus one: a lane's right node is its neighbour.
template <typename Real>
struct Workspace {
  const CrossEntropyProblem& p;
  int64_t lanes, padded;
  Real *top, *bottom;  // [C, padded] two staged rows of nodes
  Real* row;           // [C, padded] nodes interpolated to one output row
  Real *t, *u;         // [steps, padded] fraction right of the node, and 1 - t
  Real *lse, *share;   // [steps, padded] of one output row: log-sum-exp; coefficient of the probabilities
  Real* best;          // [steps, padded] of one output row: arg-max, as a number
  Real* corner;        // [4, C, padded] gradient of the cells' corners: top left, top right, bottom left, bottom right
  Real* memory;

  Workspace(const CrossEntropyProblem& problem, bool backward) : p(problem) {
    lanes = kLanes<Real>;
    padded = (p.width + lanes - 1) / lanes * lanes + lanes;
    const int64_t map = p.classes * padded, steps = p.steps * padded;
    const int64_t count = 3 * map + 5 * steps + (backward ? 4 * map : 0);
    memory = static_cast<Real*>(std::aligned_alloc(64, (count * sizeof(Real) + 63) / 64 * 64));
    Real* next = memory;
    const auto take = [&](int64_t n) { return (next += n) - n; };
    top = take(map), bottom = take(map), row = take(map);
    t = take(steps), u = take(steps), lse = take(steps), share = take(steps), best = take(steps);
    corner = backward ? take(4 * map) : nullptr;

    // Lanes without a pixel at a step: no share of a probability that is 0, as an infinite sum makes it.
    for (int64_t i = 0; i < steps; ++i) t[i] = 0, u[i] = 1, lse[i] = __builtin_huge_val(), share[i] = 0;
    for (int64_t x = 0; x < p.out_width; ++x) {
      t[slot(x)] = static_cast<Real>(p.column_t[x]);
      u[slot(x)] = static_cast<Real>(1.0 - p.column_t[x]);
    }
  }
  ~Workspace() { std::free(memory); }
  Workspace(const Workspace&) = delete;

  int64_t slot(int64_t x) const { return p.step_of[x] * padded + p.cell_of[x]; }
};

// Copy one row of nodes to [C, padded]; the last node is repeated into the padding.
template <typename T, typename Real>
void stage_as(const CrossEntropyProblem& p, int64_t b, int64_t h, int64_t padded, Real* to) {
  const T* from = static_cast<const T*>(p.logits) + b * p.stride_b + h * p.stride_h;
  constexpr int64_t kTile = 16;  // square tiles: one of the two sides is strided, whatever the layout
  for (int64_t c0 = 0; c0 < p.classes; c0 += kTile) {
    const int64_t c1 = c0 + kTile < p.classes ? c0 + kTile : p.classes;
    for (int64_t w0 = 0; w0 < p.width; w0 += kTile) {
      const int64_t w1 = w0 + kTile < p.width ? w0 + kTile : p.width;
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t w = w0; w < w1; ++w) to[c * padded + w] = load(from[c * p.stride_c + w * p.stride_w]);
      }
    }
  }
  for (int64_t c = 0; c < p.classes; ++c) {
    for (int64_t w = p.width; w < padded; ++w) to[c * padded + w] = to[c * padded + p.width - 1];
  }
}

// Stage a row of nodes, each node's largest class at 0. Interpolation takes the same amount from every
// class of a pixel, so softmax does not notice, but sums stay near 0, where large logits do not cost them their digits.
template <typename Real>
void stage(const CrossEntropyProblem& p, int64_t b, int64_t h, int64_t padded, Real* to) {
  switch (p.type) {
    case LogitType::f32: stage_as<float>(p, b, h, padded, to); break;
    case LogitType::f64: stage_as<double>(p, b, h, padded, to); break;
    case LogitType::f16: stage_as<_Float16>(p, b, h, padded, to); break;
    case LogitType::bf16: stage_as<BFloat16>(p, b, h, padded, to); break;
  }
  for (int64_t q = 0; q < padded; q += kLanes<Real>) {
    Lanes<Real> most = get(to + q);
    for (int64_t c = 1; c < p.classes; ++c) {
      const Lanes<Real> logit = get(to + c * padded + q);
      most = logit > most ? logit : most;
    }
    for (int64_t c = 0; c < p.classes; ++c) {
      put(to + c * padded + q, get(to + c * padded + q) - most);
    }
  }
}

// Both rows of nodes of a cell row; below the last one lies itself.
template <typename Real>
void stage_cell_row(Workspace<Real>& ws, int64_t b, int64_t r) {
  stage(ws.p, b, r, ws.padded, ws.top);
  stage(ws.p, b, r + 1 < ws.p.height ? r + 1 : r, ws.padded, ws.bottom);
}

template <typename Real>
void interpolate_row(Workspace<Real>& ws, double fraction) {
  // (1 - s) · a + s · b, not a + s · (b - a): what an infinite logit gives must be what PyTorch gives.
  const Lanes<Real> s = all(static_cast<Real>(fraction)), rest = all(static_cast<Real>(1.0 - fraction));
  for (int64_t i = 0; i < ws.p.classes * ws.padded; i += kLanes<Real>) {
    put(ws.row + i, rest * get(ws.top + i) + s * get(ws.bottom + i));
  }
}

// ---- Forward --------------------------------------------------------------------------------------------------------

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

// Where pixel (b, y, x) stands in [B, H, W].
inline int64_t pixel_at(const CrossEntropyProblem& p, int64_t b, int64_t y) {
  return (b * p.out_height + y) * p.out_width;
}

// What a labelled pixel weighs: the factor of its own class, and that of every class under label smoothing.
template <typename Real>
struct Weights {
  const Real *per_class, *per_pixel;
  Real own, smooth, class_sum;

  explicit Weights(const CrossEntropyProblem& p)
      : per_class(static_cast<const Real*>(p.class_weight)), per_pixel(static_cast<const Real*>(p.pixel_weight)) {
    own = static_cast<Real>(1.0 - p.smoothing);
    smooth = static_cast<Real>(p.smoothing / static_cast<double>(p.classes));
    class_sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) class_sum += of_class(c);
  }
  Real of_class(int64_t c) const { return per_class ? per_class[c] : Real(1); }
  Real of_pixel(int64_t i) const { return per_pixel ? per_pixel[i] : Real(1); }
};

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

// ---- Backward -------------------------------------------------------------------------------------------------------

// The gradient of one output row of softmax, spread to the corners of its cells:
// each pixel gives share · probability · (1 - s or s) · (1 - t or t).
template <typename Real>
void spread_probabilities(Workspace<Real>& ws, double fraction) {
  using V = Lanes<Real>;
  const CrossEntropyProblem& p = ws.p;
  const V s = all(static_cast<Real>(fraction)), rest = all(static_cast<Real>(1.0 - fraction));
  const int64_t map = p.classes * ws.padded;
  for (int64_t q = 0; q < p.width; q += kLanes<Real>) {
    for (int64_t c = 0; c < p.classes; ++c) {
      const V left = get(ws.row + c * ws.padded + q), right = get(ws.row + c * ws.padded + q + 1);
      V to_left{}, to_right{};
      for (int64_t k = 0; k < p.steps; ++k) {
        const int64_t slot = k * ws.padded + q;
        const V t = get(ws.t + slot), u = get(ws.u + slot);
        const V gradient = exp_nonpositive(u * left + t * right - get(ws.lse + slot)) * get(ws.share + slot);
        to_left += gradient * u;
        to_right += gradient * t;
      }
      Real* corner = ws.corner + c * ws.padded + q;
      put(corner, get(corner) + rest * to_left);
      put(corner + map, get(corner + map) + rest * to_right);
      put(corner + 2 * map, get(corner + 2 * map) + s * to_left);
      put(corner + 3 * map, get(corner + 3 * map) + s * to_right);
    }
  }
}

// Per-pixel coefficients of one output row; the label's own term goes to the corners at once, as does the constant that
// smoothing takes from every class.
template <typename Real>
void prepare_row(Workspace<Real>& ws, const Weights<Real>& weights, int64_t b, int64_t y) {
  const CrossEntropyProblem& p = ws.p;
  const int64_t base = pixel_at(p, b, y), map = p.classes * ws.padded;
  const Real* upstream = static_cast<const Real*>(p.upstream);
  const Real s = static_cast<Real>(p.row_t[y]), rest = static_cast<Real>(1.0 - p.row_t[y]);
  for (int64_t x = 0; x < p.out_width; ++x) {
    const int64_t label = read_label(p.label_type, p.target, base + x), slot = ws.slot(x), cell = p.cell_of[x];
    ws.lse[slot] = static_cast<const Real*>(p.lse)[base + x];
    ws.share[slot] = 0;
    if (label == p.ignore_index || label < 0 || label >= p.classes) continue;

    const Real scale = upstream[p.upstream_per_pixel ? base + x : 0] * weights.of_pixel(base + x);
    const Real own = scale * weights.own * weights.of_class(label);
    ws.share[slot] = own + scale * weights.smooth * weights.class_sum;
    const Real t = ws.t[slot], u = ws.u[slot];
    const auto subtract = [&](int64_t c, Real amount) {
      Real* corner = ws.corner + c * ws.padded + cell;
      corner[0] -= amount * rest * u;
      corner[map] -= amount * rest * t;
      corner[2 * map] -= amount * s * u;
      corner[3 * map] -= amount * s * t;
    };
    subtract(label, own);
    if (weights.smooth > 0) {
      for (int64_t c = 0; c < p.classes; ++c) subtract(c, scale * weights.smooth * weights.of_class(c));
    }
  }
}

// Join the corners of neighbouring cells in one row of nodes, and write or add it to the gradient.
template <typename Real>
void emit_nodes(const Workspace<Real>& ws, const Real* corners, int64_t b, int64_t h, bool add) {
  const CrossEntropyProblem& p = ws.p;
  const Real *left = corners, *right = corners + p.classes * ws.padded;
  Real* to = static_cast<Real*>(p.grad) + b * p.stride_b + h * p.stride_h;
  constexpr int64_t kTile = 16;
  for (int64_t c0 = 0; c0 < p.classes; c0 += kTile) {
    const int64_t c1 = c0 + kTile < p.classes ? c0 + kTile : p.classes;
    for (int64_t w0 = 0; w0 < p.width; w0 += kTile) {
      const int64_t w1 = w0 + kTile < p.width ? w0 + kTile : p.width;
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t w = w0; w < w1; ++w) {
          const int64_t i = c * ws.padded + w;
          const Real sum = w > 0 ? left[i] + right[i - 1] : left[i];
          Real& out = to[c * p.stride_c + w * p.stride_w];
          out = add ? out + sum : sum;
        }
      }
    }
  }
}

template <typename Real>
void backward(const CrossEntropyProblem& p, int64_t parity, int64_t begin, int64_t end) {
  Workspace<Real> ws(p, /*backward=*/true);
  const Weights<Real> weights(p);
  const int64_t per_image = rows_of_parity(p.height, parity), map = p.classes * ws.padded;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / per_image, r = i % per_image * 2 + parity;
    for (int64_t j = 0; j < 4 * map; ++j) ws.corner[j] = 0;
    if (p.row_begin[r] < p.row_begin[r + 1]) stage_cell_row(ws, b, r);
    for (int64_t y = p.row_begin[r]; y < p.row_begin[r + 1]; ++y) {
      interpolate_row(ws, p.row_t[y]);
      prepare_row(ws, weights, b, y);
      spread_probabilities(ws, p.row_t[y]);
    }
    const bool add = parity == 1;
    emit_nodes(ws, ws.corner, b, r, add);
    if (r + 1 < p.height) emit_nodes(ws, ws.corner + 2 * map, b, r + 1, add);
  }
}

}  // namespace

void cross_entropy_forward(const CrossEntropyProblem& problem, int64_t begin, int64_t end) {
  problem.type == LogitType::f64 ? forward<double>(problem, begin, end) : forward<float>(problem, begin, end);
}

void cross_entropy_backward(const CrossEntropyProblem& problem, int64_t parity, int64_t begin, int64_t end) {
  problem.type == LogitType::f64 ? backward<double>(problem, parity, begin, end)
                                 : backward<float>(problem, parity, begin, end);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
