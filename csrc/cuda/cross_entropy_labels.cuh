// What the labels add to losses and gradients. Reading a pixel's label logit from global memory would cost more than all
// other classes together: instead labels wait in shared memory until their chunk of classes is there.
//
// Neighbouring pixels of a row with the same label are one run: bilinear weights are linear along it.
#pragma once

#include <type_traits>

#include "cross_entropy_progression.cuh"
#include "cross_entropy_strip.cuh"

namespace pspnet_fast::cuda {

constexpr unsigned kIgnored = 0xffff;
constexpr unsigned kMerged = 0xfffe;  // as the pixel before it in the row

// Class weights w and pixel weights q. A pixel weighs q · w_y · (1 - ε) on its own class, and q · ε / C · w_c on every class.
template <typename Real>
struct Weights {
  const CrossEntropyProblem& problem;
  int64_t first_pixel;  // of the patch

  __device__ __forceinline__ Real of_class(int c) const {
    return problem.class_weight == nullptr ? Real(1) : __ldg(static_cast<const Real*>(problem.class_weight) + c);
  }
  __device__ __forceinline__ Real of_pixel(int r, int k) const {
    return problem.pixel_weight == nullptr ? Real(1) : __ldg(static_cast<const Real*>(problem.pixel_weight) + pixel(r, k));
  }
  __device__ __forceinline__ int64_t pixel(int r, int k) const { return first_pixel + int64_t{r} * problem.out_width + k; }
};

template <class Path>
struct LaneLabels {
  static constexpr int kPixels = Path::kRows * Path::kColumns;
  using Mask = std::conditional_t<(kPixels > 32), unsigned long long, unsigned>;

  Mask merged;       // bit r · columns + k
  unsigned present;  // bit (class / kChunk) % 32: some lane of the warp has such a label
};

__device__ __forceinline__ int lowest_bit(unsigned mask) { return __ffs(static_cast<int>(mask)) - 1; }
__device__ __forceinline__ int lowest_bit(unsigned long long mask) { return __ffsll(static_cast<long long>(mask)) - 1; }

// A row of labels as codes: the class, or kIgnored.
template <int K, typename Label>
__device__ __forceinline__ void read_row(const Label* row, const LabelMap& map, int classes, int count, unsigned (&codes)[K]) {
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

// The labels of the patch's pixels, of which the first is `first_pixel` of the map, to shared memory.
template <class Path, typename Memory>
__device__ __forceinline__ LaneLabels<Path> read_labels(
    Memory& memory, const LabelMap& map, int64_t first_pixel, int width, int classes,
    const Patch<typename Path::Real>& patch, Lane lane, bool may_merge) {
  constexpr int K = Path::kColumns;
  LaneLabels<Path> labels{};
#pragma unroll 1
  for (int r = 0; r < Path::kRows; ++r) {
    const int64_t row = first_pixel + int64_t{r} * width;
    const int count = r < patch.rows ? patch.columns : 0;
    unsigned codes[K];
    if (map.type == LabelType::i64) {
      read_row(static_cast<const int64_t*>(map.data) + row, map, classes, count, codes);
    } else if (map.type == LabelType::i32) {
      read_row(static_cast<const int32_t*>(map.data) + row, map, classes, count, codes);
    } else {
      read_row(static_cast<const uint8_t*>(map.data) + row, map, classes, count, codes);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const bool merge = may_merge && k > 0 && codes[k] == codes[k - 1];
      if (merge) labels.merged |= typename LaneLabels<Path>::Mask(1) << (r * K + k);
      if (codes[k] != kIgnored) labels.present |= 1u << (codes[k] / kChunk % 32);
      memory.codes[r * K + k][lane.number] = static_cast<uint16_t>(merge ? kMerged : codes[k]);
    }
  }
  labels.present = combine_lanes(labels.present, 16, [](unsigned a, unsigned b) { return a | b; });
  return labels;
}

// The labels in the chunk of classes from `first`: returns the sum of what their logits weigh times the logits, and takes
// the weights from the corners' gradients, if `gradient`. With `loss`, a map, each pixel's part goes there
// instead (no pixels are merged then).
template <class Path, typename Memory>
__device__ __forceinline__ typename Path::Real score_labels(
    Memory& memory, const LaneLabels<Path>& labels, const Weights<typename Path::Real>& weights,
    const Patch<typename Path::Real>& patch, Lane lane, int first, bool gradient, typename Path::Real* loss) {
  using Real = typename Path::Real;
  using Mask = typename LaneLabels<Path>::Mask;
  constexpr int K = Path::kColumns;
  Real total = 0;
  if ((labels.present >> (first / kChunk % 32) & 1) == 0) return total;

  Mask here = 0;
#pragma unroll
  for (int i = 0; i < LaneLabels<Path>::kPixels; ++i) {
    if (memory.codes[i][lane.number] - static_cast<unsigned>(first) < unsigned{kChunk}) here |= Mask(1) << i;
  }
  while (here != 0) {
    const int i = lowest_bit(here), r = i / K, k = i % K;
    here &= here - 1;
    const int c = memory.codes[i][lane.number] - first;
    const Real count = static_cast<Real>(1 + lowest_bit(static_cast<Mask>(~(labels.merged >> i >> 1))));
    const Real own = weights.of_pixel(r, k) * memory.own * weights.of_class(first + c);
    const Real s = patch.s + r * patch.s_step;
    const Real t = patch.t + (k + (count - 1) / 2) * patch.t_step;  // of the run's middle
    const Real right = own * count * t, left = own * count * (1 - t);
    const Corners<Real> weight{{(1 - s) * left, (1 - s) * right, s * left, s * right}};

    Real logit = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      logit += weight.value[j] * memory.nodes[c][j / 2 * kRowNodes + lane.index() + j % 2];
      if (gradient) memory.corners[c][j * 32 + lane.number] -= weight.value[j];
    }
    if (loss != nullptr) {
      loss[weights.pixel(r, k)] = -logit;
    } else {
      total += logit;
    }
  }
  return total;
}

// Turns sums into weights, the loss's derivatives by them, and adds up the losses but for the labels' logits. With `loss`,
// a map, each pixel's part is added to what score_labels has left there. If labels are smoothed, memory.smooth holds
// Σ_c w_c · logit of the corners, and gets Σ q of the pixels times the corners' bilinear weights.
template <class Path, typename Memory>
__device__ __forceinline__ void weigh_pixels(
    Memory& memory, const Patch<typename Path::Real>& patch, const Weights<typename Path::Real>& weights, Lane lane,
    typename Path::Real* loss) {
  using Real = typename Path::Real;
  Real total = 0, divisor = 0;
  Corners<Real> mass{};
  Real pixel = 0, class_weight = 0, weight = 0;
  bool scored = false;
#pragma unroll 2
  for (int i = 0; i < LaneLabels<Path>::kPixels; ++i) {
    const int r = i / Path::kColumns, k = i % Path::kColumns;
    const unsigned code = memory.codes[i][lane.number];
    if (code != kMerged) {
      scored = code != kIgnored;
      pixel = scored ? weights.of_pixel(r, k) : Real(0);
      class_weight = scored ? weights.of_class(code) : Real(0);
      weight = pixel * (memory.own * class_weight + memory.share * memory.class_sum);
    }
    const Real sum = memory.pixels[i][lane.number];
    Real part = scored ? weight * Path::log_sum(memory.pixels, i, lane.number, sum) : Real(0);
    memory.pixels[i][lane.number] = scored ? quotient(weight, sum) : Real(0);
    divisor += pixel * class_weight;

    if (memory.share > 0 && scored) {
      const Real s = patch.s + r * patch.s_step, t = patch.t + k * patch.t_step;
      const Corners<Real> at{{(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t}};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        mass.value[j] += pixel * at.value[j];
        part -= memory.share * pixel * at.value[j] * memory.smooth[j][lane.number];
      }
    }
    if (loss == nullptr) {
      total += part;
    } else if (r < patch.rows && k < patch.columns) {
      Real* to = loss + weights.pixel(r, k);
      *to = scored ? (part + *to) * Path::kUnit : Real(0);
    }
  }
  if (memory.share > 0) {
#pragma unroll
    for (int j = 0; j < 4; ++j) memory.smooth[j][lane.number] = mass.value[j];
  }
  if (!counts(memory, lane)) return;
  memory.loss[lane.number] += static_cast<double>(total * Path::kUnit);
  memory.divisor[lane.number] += static_cast<double>(divisor);
}

}  // namespace pspnet_fast::cuda
