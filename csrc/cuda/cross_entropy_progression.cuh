// The fast path. Along an output row, between two columns of nodes, 2^logit is a geometric progression E · R^k: two
// exponentials serve all of a row's pixels (docs/how.md has the derivation).
//
// Logits are less the largest of their node and in units of log2 e. What is subtracted at a pixel, the interpolated
// maximum, cancels in the loss and bounds the pixel's true maximum from above: sums cannot overflow. They keep their
// digits if no logit is far below its node's largest: kMaxRange leaves room for weights, and for Horner's rule, which
// multiplies w, up to 2^range, before the small E.
//
// E and R are computed anew in each row rather than carried from the one before: R^7 multiplies the error of R by 7,
// and would that of a product over rows as well.
#pragma once

#include "cross_entropy_piece.cuh"

namespace pspnet_fast::cuda {

constexpr float kMaxRange = 100.0f;  // largest less smallest logit of a node, in units of log2 e

template <int K>
struct Progression {
  using Real = float;
  static constexpr int kRows = 8, kColumns = K, kForwardPasses = 1;
  static constexpr int kPartRows = 4;  // that go through shared memory together
  static constexpr float kUnit = kLn2, kScale = kLog2E;

  Piece<float> piece;
  float value[kRows][K];  // sums, then weights

  explicit __device__ __forceinline__ Progression(const Piece<float>& of) : piece(of), value{} {}

  struct Start {
    float logit, step, logit_step, step_step;  // at the first pixel; to the next column; of both, to the next row
  };
  __device__ __forceinline__ Start start(const Corners<float>& node) const {
    const float along = node.value[1] - node.value[0], up = node.value[2] - node.value[0];
    const float twist = (node.value[3] - node.value[2]) - along;
    const float slope = up + piece.t * twist;
    return {
        node.value[0] + piece.t * along + piece.s * slope, piece.t_step * (along + piece.s * twist),
        piece.s_step * slope, piece.t_step * piece.s_step * twist};
  }

  struct Powers {
    float first, ratio;  // of a row's pixels: E and R
  };
  static __device__ __forceinline__ Powers powers(const Start& at, int r) {
    return {
        fast_exp2(r == 0 ? at.logit : at.logit + r * at.logit_step),
        fast_exp2(r == 0 ? at.step : at.step + r * at.step_step)};
  }

  // Rows are taken in pairs: two chains of dependent multiply-adds at a time. A second one that is not there does no
  // harm: its weights are zero.
  __device__ __forceinline__ void add_class(int, const Corners<float>& node) {
    const Start at = start(node);
#pragma unroll
    for (int pair = 0; pair < kRows; pair += 2) {
      if (pair >= piece.rows) break;
#pragma unroll
      for (int r = pair; r < pair + 2; ++r) {
        Powers e = powers(at, r);
        const float square = e.ratio * e.ratio;  // two pixels a step: half as long a chain
#pragma unroll
        for (int k = 0; k < K; k += 2) {
          if (k > 0) e.first *= square;
          value[r][k] += e.first;
          if (k + 1 < K) value[r][k + 1] += e.first * e.ratio;
        }
      }
    }
  }

  // By way of shared memory sums become weights: there a loop can go over pixels.
  template <typename Pixels>
  __device__ __forceinline__ void put(Pixels& pixels, int part, Lane lane) const {
#pragma unroll
    for (int i = 0; i < kPartRows * K; ++i) pixels[i][lane.number] = value[part * kPartRows + i / K][i % K];
  }
  template <typename Pixels>
  __device__ __forceinline__ void get(const Pixels& pixels, int part, Lane lane) {
#pragma unroll
    for (int i = 0; i < kPartRows * K; ++i) value[part * kPartRows + i / K][i % K] = pixels[i][lane.number];
  }

  // The label of a run of pixels: its own terms of their sums, by the same products. A run's losses are the logarithm of
  // Π sum / term = Π (1 + others / term).
  struct Label {
    struct Logits {
      unsigned code = kIgnored;  // that they are of
      Start at;
    };
    Logits known;
    float even, ratio;  // the term of the last pixel of even number, and R
    float product = 1;

    __device__ __forceinline__ void read(const Progression& path, unsigned label, const Corners<float>& node) {
      known = {label, path.start(node)};
    }
    __device__ __forceinline__ void begin(int r, int k) {
      const Powers e = powers(known.at, r);
      even = e.first, ratio = e.ratio, product = 1;
      for (int i = 2; i <= k; i += 2) even *= ratio * ratio;
    }
    __device__ __forceinline__ void next(int k) {
      if (k % 2 == 0) even *= ratio * ratio;
    }
    __device__ __forceinline__ float logit(const Progression&, int r, int k) const {
      const Start& at = known.at;
      return at.logit + r * at.logit_step + k * (at.step + r * at.step_step);
    }
    template <typename Pixels>
    __device__ __forceinline__ float add(const Progression&, const Pixels&, int, Lane, int, int k, float sum) {
      const float term = k % 2 == 0 ? even : even * ratio;
      product += product * fmaxf(quotient(sum - term, term), 0.0f);
      if (!(product > 0x1p10f)) return 0;
      const float logarithm = fast_log2(product);
      product = 1;
      return logarithm;
    }
    __device__ __forceinline__ float finish() {
      const float logarithm = product == 1 ? 0.0f : log2f(product);
      product = 1;
      return logarithm;
    }
  };

  // The gradients of the corners' logits of a class, but for the labels' own.
  __device__ __forceinline__ Corners<float> gradient(const Corners<float>& node) const {
    const Start at = start(node);
    float sum = 0, sum_k = 0, sum_r = 0, sum_kr = 0;  // of the probabilities times 1, column, row, both
#pragma unroll
    for (int pair = kRows - 2; pair >= 0; pair -= 2) {
      if (pair >= piece.rows) continue;
#pragma unroll
      for (int r = pair + 1; r >= pair; --r) {
        const Powers e = powers(at, r);
        float polynomial = value[r][K - 1], derivative = 0;
#pragma unroll
        for (int k = K - 2; k >= 0; --k) {
          derivative = k == K - 2 ? polynomial : derivative * e.ratio + polynomial;
          polynomial = polynomial * e.ratio + value[r][k];
        }
        sum += e.first * polynomial;
        sum_k += e.first * (derivative * e.ratio);
        if (r > 0) sum_r += sum, sum_kr += sum_k;  // row r is added r times
      }
    }
    const float right = piece.t * sum + piece.t_step * sum_k, right_r = piece.t * sum_r + piece.t_step * sum_kr;
    const float bottom = piece.s * sum + piece.s_step * sum_r, both = piece.s * right + piece.s_step * right_r;
    return {{(sum - right) - (bottom - both), right - both, bottom - both, both}};
  }
};

// Finds the largest logit of every node of the rows from `first_row` on, and whether the progression may take them.
template <typename Memory>
__device__ __forceinline__ void measure_nodes(Memory& memory, int classes, Lane lane, int first_row) {
#pragma unroll 1
  for (int row = first_row; row < 2; ++row) {
    // A lane looks at one of the first 32 nodes in all classes, and for the last node at its share of the classes.
    const int slot = row * kRowNodes + lane.cell(), last = row * kRowNodes + kCells;
    float high = -INFINITY, low = INFINITY, last_high = -INFINITY, last_low = INFINITY;
    float poison = 0;  // NaN as soon as anything is not finite
    for_chunks<1>(memory, classes, lane, row, 1.0f, [&](int, int count) {
      for (int c = 0; c < count; ++c) {
        const float logit = memory.nodes[c][slot];
        high = fmaxf(high, logit), low = fminf(low, logit);
        poison += 0.0f * logit;
      }
      if (lane.chunk_class() < count) {
        const float logit = memory.nodes[lane.chunk_class()][last];
        last_high = fmaxf(last_high, logit), last_low = fminf(last_low, logit);
        poison += 0.0f * logit;
      }
    });
    last_high = combine_lanes(last_high, kChunk / 2, [](float a, float b) { return fmaxf(a, b); });
    last_low = combine_lanes(last_low, kChunk / 2, [](float a, float b) { return fminf(a, b); });
    const bool finite = __all_sync(kAllLanes, poison == 0);
    const bool narrow = __all_sync(kAllLanes, fmaxf(high - low, last_high - last_low) * kLog2E <= kMaxRange);
    memory.largest[slot] = high;
    if (lane.number == 0) memory.largest[last] = last_high, memory.finite[row] = finite, memory.narrow[row] = narrow;
  }
  __syncwarp();
}

// Measures the nodes of a row of cells; the top ones are known from the row before. Returns whether the progression
// holds, and chooses what is subtracted from the logits: the largest of their node, in the unit of the path, if all are
// finite.
template <typename Memory>
__device__ __forceinline__ bool choose_path(Memory& memory, int classes, Lane lane) {
  measure_nodes(memory, classes, lane, memory.measured == memory.row.cell ? 1 : 0);
  const bool finite = memory.finite[0] && memory.finite[1];
  const bool progresses = memory.head.may_progress && finite && memory.narrow[0] && memory.narrow[1];
  for (int slot = lane.cell(); slot < kSlots; slot += 32) {
    if (finite) memory.shift[slot] = memory.largest[slot] * (progresses ? kLog2E : 1.0f);
  }
  __syncwarp();
  for (int node = lane.cell(); node < kRowNodes; node += 32) memory.largest[node] = memory.largest[kRowNodes + node];
  if (lane.number == 0) {
    memory.finite[0] = memory.finite[1], memory.narrow[0] = memory.narrow[1];
    memory.measured = memory.row.cell + 1;
  }
  return progresses;
}

}  // namespace pspnet_fast::cuda
