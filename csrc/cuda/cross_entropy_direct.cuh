// The path that is always right: every pixel's own maximum, an exponential for every pixel and class. For float64, for
// logits too far apart for the progression, NaN and infinities, and for maps that are made smaller or hardly larger.
//
// Logits are interpolated as PyTorch does, so that infinities end alike. The largest of a node is subtracted here too if all
// are finite: in logits of 1e4 little would be left of the differences that matter.
#pragma once

#include "cross_entropy_piece.cuh"

namespace pspnet_fast::cuda {

template <typename R, int K>
struct Direct {
  using Real = R;
  static constexpr int kRows = 1, kColumns = K, kForwardPasses = 2;
  static constexpr int kPartRows = 1;
  static constexpr Real kUnit = 1, kScale = 1;  // of logits in units of the path, and the other way round

  Piece<Real> piece;
  Real largest[K];
  Real value[K];  // sums, then weights

  explicit __device__ __forceinline__ Direct(const Piece<Real>& of) : piece(of), value{} {
#pragma unroll
    for (int k = 0; k < K; ++k) largest[k] = -INFINITY;
  }

  // Calls visit(k, logit, t) for the pixels.
  template <typename Visit>
  __device__ __forceinline__ void for_pixels(const Corners<Real>& node, Visit visit) const {
    const Ends<Real> row = ends_of_row(node, piece.s, piece);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= piece.columns) break;
      const Real t = piece.t + k * piece.t_step;
      visit(k, mix(t, row.left, row.right), t);
    }
  }

  __device__ __forceinline__ void add_class(int pass, const Corners<Real>& node) {
    for_pixels(node, [&](int k, Real logit, Real) {
      if (pass == 0) {
        largest[k] = max(largest[k], logit);  // not NaN: that comes back in the exponential
      } else {
        value[k] += exp_nonpositive(logit - largest[k]);
      }
    });
  }

  template <typename Pixels>
  __device__ __forceinline__ void put(Pixels& pixels, int, Lane lane) const {
#pragma unroll
    for (int k = 0; k < K; ++k) pixels[k][lane.number] = value[k], pixels[K + k][lane.number] = largest[k];
  }
  template <typename Pixels>
  __device__ __forceinline__ void get(const Pixels& pixels, int, Lane lane) {
#pragma unroll
    for (int k = 0; k < K; ++k) value[k] = pixels[k][lane.number];
  }
  // The label of a pixel.
  struct Label {
    struct Logits {
      unsigned code = kIgnored;  // that they are of
      Ends<Real> row;
    };
    Logits known;

    __device__ __forceinline__ void read(const Direct& path, unsigned label, const Corners<Real>& node) {
      known = {label, ends_of_row(node, path.piece.s, path.piece)};
    }
    __device__ __forceinline__ void begin(int, int) {}
    __device__ __forceinline__ void next(int) {}
    __device__ __forceinline__ Real logit(const Direct& path, int, int k) const {
      return mix(path.piece.t + k * path.piece.t_step, known.row.left, known.row.right);
    }
    template <typename Pixels>
    __device__ __forceinline__ Real add(
        const Direct& path, const Pixels& pixels, int i, Lane lane, int r, int k, Real sum) const {
      return (pixels[K + i][lane.number] - logit(path, r, k)) + log(sum);
    }
    __device__ __forceinline__ Real finish() const { return 0; }
  };

  __device__ __forceinline__ Corners<Real> gradient(const Corners<Real>& node) const {
    Real left_sum = 0, right_sum = 0;
    for_pixels(node, [&](int k, Real logit, Real t) {
      const Real share = exp_nonpositive(logit - largest[k]) * value[k];
      left_sum += (1 - t) * share;
      right_sum += t * share;
    });
    if (piece.one_column) right_sum = 0;
    const Real bottom_left = piece.one_row ? 0 : piece.s * left_sum;
    const Real bottom_right = piece.one_row ? 0 : piece.s * right_sum;
    return {{left_sum - bottom_left, right_sum - bottom_right, bottom_left, bottom_right}};
  }
};

}  // namespace pspnet_fast::cuda
