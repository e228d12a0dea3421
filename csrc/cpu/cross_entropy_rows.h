// What forward and backward of the cross-entropy share: a thread's buffers, staging of nodes, and pixel weights.
// Included by kernel files inside their namespace (see isa.h).

#include "half.h"
#include "lanes.h"

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
    if (memory == nullptr) throw std::bad_alloc();
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
