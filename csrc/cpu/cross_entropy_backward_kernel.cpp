// The gradient of the cross-entropy of upsampled logits. Compiled once per instruction set (see isa.h).
#include "cross_entropy_kernel.h"

#include <cstdlib>
#include <new>

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "cross_entropy_rows.h"

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

void cross_entropy_backward(const CrossEntropyProblem& problem, int64_t parity, int64_t begin, int64_t end) {
  problem.type == LogitType::f64 ? backward<double>(problem, parity, begin, end)
                                 : backward<float>(problem, parity, begin, end);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
