// What the labels add to losses and gradients. Reading a pixel's label logit from global memory would cost more than
// all other classes together: instead labels wait in shared memory until their chunk of classes is there.
//
// Neighbouring pixels of a row with the same label are one run: bilinear weights are linear along it.
#pragma once

#include "cross_entropy_piece.cuh"

namespace pspnet_fast::cuda {

// Class weights w and pixel weights q. A pixel weighs q · w_y · (1 - ε) on its own class, and q · ε / C · w_c on every
// class.
template <typename Real>
struct Weights {
  const CrossEntropyProblem& problem;
  int64_t first_pixel;  // of the piece

  __device__ __forceinline__ Real of_class(int c) const {
    if (problem.class_weight == nullptr) return 1;
    return __ldg(static_cast<const Real*>(problem.class_weight) + c);
  }
  __device__ __forceinline__ Real of_pixel(int r, int k) const {
    if (problem.pixel_weight == nullptr) return 1;
    return __ldg(static_cast<const Real*>(problem.pixel_weight) + pixel(r, k));
  }
  __device__ __forceinline__ int64_t pixel(int r, int k) const {
    return first_pixel + int64_t{r} * problem.out_width + k;
  }
};

template <typename Real>
__device__ __forceinline__ Real sum_class_weights(const CrossEntropyProblem& p, Lane lane) {
  if (p.class_weight == nullptr || !p.smoothed) return static_cast<Real>(p.classes);
  double sum = 0;
  for (int c = lane.cell(); c < p.classes; c += 32) sum += static_cast<const Real*>(p.class_weight)[c];
  return static_cast<Real>(combine_lanes(sum, 16, [](double a, double b) { return a + b; }));
}

__device__ __forceinline__ int lowest_bit(unsigned mask) { return __ffs(static_cast<int>(mask)) - 1; }
__device__ __forceinline__ int lowest_bit(unsigned long long mask) { return __ffsll(static_cast<long long>(mask)) - 1; }

// A row of labels as codes: the class, or kIgnored.
template <int K, typename Label>
__device__ __forceinline__ void read_row(
    const Label* row, const LabelMap& map, int classes, int count, unsigned (&codes)[K]) {
  Label labels[K];
#pragma unroll
  for (int k = 0; k < K; ++k) labels[k] = k < count ? row[k] : Label(0);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t label = labels[k];
    const bool valid = k < count && label != map.ignore_index, in_range = label >= 0 && label < classes;
    if (valid && !in_range) *static_cast<volatile int64_t*>(map.bad_label) = label;  // any of them will do
    codes[k] = valid && in_range ? static_cast<unsigned>(label) : kIgnored;
  }
}

// The labels of the piece's pixels, of which the first is `first_pixel` of the map, to shared memory. Returns which
// chunks of classes they are of, for the whole warp: bit (class / kChunk) % 32.
template <class Path, typename Memory>
__device__ __forceinline__ unsigned read_labels(
    Memory& memory, const LabelMap& map, int64_t first_pixel, int width, int classes,
    const Piece<typename Path::Real>& piece, Lane lane, bool may_merge) {
  using Mask = typename Memory::Mask;
  constexpr int K = Path::kColumns;
  Mask merged = 0;
  unsigned present = 0;
#pragma unroll 1
  for (int r = 0; r < Path::kRows; ++r) {
    const int64_t row = first_pixel + int64_t{r} * width;
    const int count = r < piece.rows ? piece.columns : 0, row_of_part = r % Path::kPartRows;
    unsigned codes[K];
    if (map.type == LabelType::i64) {
      read_row(static_cast<const int64_t*>(map.data) + row, map, classes, count, codes);
    } else if (map.type == LabelType::i32) {
      read_row(static_cast<const int32_t*>(map.data) + row, map, classes, count, codes);
    } else {
      read_row(static_cast<const uint8_t*>(map.data) + row, map, classes, count, codes);
    }
    if (row_of_part == 0) merged = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const bool merge = may_merge && k > 0 && codes[k] == codes[k - 1];
      if (merge) merged |= Mask(1) << (row_of_part * K + k);
      if (codes[k] != kIgnored) present |= 1u << (codes[k] / kChunk % 32);
      memory.codes[r * K + k][lane.number] = static_cast<uint16_t>(merge ? kMerged : codes[k]);
    }
    memory.merged[r / Path::kPartRows][lane.number] = merged;
  }
  return combine_lanes(present, 16, [](unsigned a, unsigned b) { return a | b; });
}

// Takes the weights of the labels in the chunk of classes from `first` from the corners' gradients.
template <class Path, typename Memory>
__device__ __forceinline__ void take_labels(
    Memory& memory, unsigned present, const Weights<typename Path::Real>& weights,
    const Piece<typename Path::Real>& piece, Lane lane, int first) {
  using Real = typename Path::Real;
  using Mask = typename Memory::Mask;
  constexpr int K = Path::kColumns, kPixels = Path::kPartRows * K;
  if ((present >> (first / kChunk % 32) & 1) == 0) return;

#pragma unroll 1
  for (int part = 0; part < Path::kRows / Path::kPartRows; ++part) {
    const auto* codes = memory.codes + part * kPixels;
    Mask here = 0;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (codes[i][lane.number] - static_cast<unsigned>(first) < unsigned{kChunk}) here |= Mask(1) << i;
    }
    while (here != 0) {
      const int i = lowest_bit(here), r = part * Path::kPartRows + i / K, k = i % K;
      here &= here - 1;
      const int c = codes[i][lane.number] - first;
      const Mask behind = memory.merged[part][lane.number] >> i >> 1;
      const Real count = static_cast<Real>(1 + lowest_bit(static_cast<Mask>(~behind)));
      const Real own = weights.of_pixel(r, k) * memory.own * weights.of_class(first + c);
      const Real s = piece.s + r * piece.s_step;
      const Real t = piece.t + (k + (count - 1) / 2) * piece.t_step;  // of the run's middle
      const Real right = own * count * t, left = own * count * (1 - t);
      const Corners<Real> weight{{(1 - s) * left, (1 - s) * right, s * left, s * right}};
#pragma unroll
      for (int j = 0; j < 4; ++j) memory.corners[c][j * 32 + lane.number] -= weight.value[j];
    }
  }
}

// Sums over a lane's pixels.
template <typename Real>
struct PixelSums {
  Real loss, divisor;  // the loss in units of the path; Σ q · w_y
  Corners<Real> grad_weight;  // Σ q, times the bilinear weights of the corners; if labels are smoothed
};

// A label's logits at the corners of the lane's cell, as they were staged.
template <typename Memory>
__device__ __forceinline__ Corners<typename Memory::Real> corners_of_label(
    const Memory& memory, Lane lane, int label, typename Memory::Real scale) {
  using Real = typename Memory::Real;
  const LogitMap& logits = memory.head.logits;
  const int64_t at = memory.tile.image * logits.stride_b + label * logits.stride_c;
  Corners<Real> corners;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int slot = j / 2 * kRowNodes + lane.cell() + j % 2;
    corners.value[j] = fma(load_logit<Real>(logits, at + memory.offset[slot]), scale, -memory.shift[slot]);
  }
  return corners;
}

// Turns a part's sums into weights, the loss's derivatives by them, and adds up the losses. A pixel's is its label's
// distance behind the log-sum-exp: taken as a difference of logarithms it would lose its digits where the label is nearly
// certain. `label` is what the path knows of the last pixel's, `other` of the label before it: a border through a cell
// alternates between two, and to read one's logits anew the whole warp waits for global memory. With `loss`, a map, each
// pixel's goes there. If labels are smoothed, memory.smooth holds Σ_c w_c · logit of the corners.
template <class Path, typename Memory>
__device__ __forceinline__ void weigh_pixels(
    Memory& memory, int part, const Path& path, const Weights<typename Path::Real>& weights, Lane lane,
    typename Path::Label& label, typename Path::Label::Logits& other, typename Path::Real* loss,
    PixelSums<typename Path::Real>& sums) {
  using Real = typename Path::Real;
  constexpr int K = Path::kColumns, kPixels = Path::kPartRows * K;
  const Piece<Real>& piece = path.piece;
  Real pixel = 0, class_weight = 0, weight = 0;
  bool scored = false;
#pragma unroll 2
  for (int i = 0; i < kPixels; ++i) {
    const int r = part * Path::kPartRows + i / K, k = i % K;
    const unsigned code = memory.codes[part * kPixels + i][lane.number];
    if (code != kMerged) {
      sums.loss += weight * label.finish();
      scored = code != kIgnored;
      pixel = scored ? weights.of_pixel(r, k) : Real(0);
      class_weight = scored ? weights.of_class(code) : Real(0);
      weight = pixel * (memory.own * class_weight + memory.share * memory.class_sum);
      if (scored) {
        if (code != label.known.code) {
          const auto last = label.known;
          label.known = other, other = last;
        }
        if (code != label.known.code) label.read(path, code, corners_of_label(memory, lane, code, Path::kScale));
        label.begin(r, k);
      }
    } else {
      label.next(k);
    }
    const Real sum = memory.pixels[i][lane.number];
    memory.pixels[i][lane.number] = scored ? quotient(weight, sum) : Real(0);
    sums.divisor += pixel * class_weight;
    Real of_pixel = scored ? weight * label.add(path, memory.pixels, i, lane, r, k, sum) : Real(0);

    if (weights.problem.smoothed && scored) {
      const Real s = piece.s + r * piece.s_step, t = piece.t + k * piece.t_step;
      const Corners<Real> at{{(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t}};
      Corners<Real> smooth;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums.grad_weight.value[j] += pixel * at.value[j];
        smooth.value[j] = memory.smooth[j][lane.number];
      }
      const Ends<Real> row = ends_of_row(smooth, s, piece);
      // Σ_c w_c · (the label's logit - c's)
      const Real behind = memory.class_sum * label.logit(path, r, k) - mix(t, row.left, row.right);
      // Of a label whose logit is minus infinity the loss is infinite already.
      if (of_pixel < INFINITY || of_pixel != of_pixel) of_pixel += memory.share * pixel * behind;
    }
    if (loss == nullptr) {
      sums.loss += of_pixel;
    } else if (r < piece.rows && k < piece.columns) {
      loss[weights.pixel(r, k)] = (of_pixel + weight * label.finish()) * Path::kUnit;
    }
  }
  sums.loss += weight * label.finish();
}

}  // namespace pspnet_fast::cuda
