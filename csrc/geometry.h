// The index arithmetic of every kernel: bin edges, atoms and cells. Host and device, no dependencies.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__CUDACC__)
#define PSPNET_FAST_HD __host__ __device__ __forceinline__
#else
#define PSPNET_FAST_HD inline
#endif

namespace pspnet_fast {

// ---- Adaptive pooling -----------------------------------------------------------------------------------------------

// Bin i of k over an axis of n pixels is [floor(i n / k), ceil((i + 1) n / k)). Neighbouring bins share a pixel wherever k
// does not divide n, and bins repeat pixels where k > n.
PSPNET_FAST_HD int64_t bin_begin(int64_t i, int64_t n, int64_t k) { return i * n / k; }
PSPNET_FAST_HD int64_t bin_end(int64_t i, int64_t n, int64_t k) { return ((i + 1) * n + k - 1) / k; }

// One axis cut at the bin edges of all levels. Between two neighbouring edges every pixel lies in the same bins, so an
// interval (and on two axes their product, an atom) is the largest piece that need be summed only once.
struct Partition {
  std::vector<int32_t> edge;   // [intervals + 1], ascending from 0 to n
  std::vector<int32_t> first;  // [Σk] of bin i of a level: its first interval
  std::vector<int32_t> last;   // [Σk] one past its last interval

  int32_t intervals() const { return static_cast<int32_t>(edge.size()) - 1; }
};

template <typename Bins>
inline Partition partition_axis(int64_t n, const Bins& bins) {
  Partition p;
  for (int64_t k : bins) {
    for (int64_t i = 0; i < k; ++i) {
      p.edge.push_back(static_cast<int32_t>(bin_begin(i, n, k)));
      p.edge.push_back(static_cast<int32_t>(bin_end(i, n, k)));
    }
  }
  std::sort(p.edge.begin(), p.edge.end());
  p.edge.erase(std::unique(p.edge.begin(), p.edge.end()), p.edge.end());

  const auto interval_of = [&](int64_t pixel) {
    return static_cast<int32_t>(std::lower_bound(p.edge.begin(), p.edge.end(), pixel) - p.edge.begin());
  };
  for (int64_t k : bins) {
    for (int64_t i = 0; i < k; ++i) {
      p.first.push_back(interval_of(bin_begin(i, n, k)));
      p.last.push_back(interval_of(bin_end(i, n, k)));
    }
  }
  return p;
}

// ---- Bilinear interpolation -----------------------------------------------------------------------------------------

// Positions are computed in double: at scales that are not dyadic a float32 index loses digits that the weights need.
PSPNET_FAST_HD double source_scale(int64_t in, int64_t out, bool align_corners) {
  if (align_corners) return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
  return static_cast<double>(in) / static_cast<double>(out);
}

// The two inputs that an output position is interpolated from. A position outside of the `out` outputs lies in a
// convolution's zero padding: both weights are 0.
//
// Which input has weight 0 matters where it is infinite or NaN, as 0 times that is NaN. So this is PyTorch's choice: an
// output in front of the first input is read from the first two, one behind the last input twice from that, and at equal
// sizes every output twice from its own input.
struct Taps {
  int32_t first, second;
  double first_weight, second_weight;

  PSPNET_FAST_HD bool in_padding() const { return first_weight == 0 && second_weight == 0; }
};

// An output that lies at an input reads that with weight 1, whether or not a compiler fuses multiply-adds, which nvcc
// does: dividend and divisor are integers, which double holds exactly, so that only their quotient is rounded.
PSPNET_FAST_HD Taps bilinear_taps(int64_t position, int64_t in, int64_t out, bool align_corners) {
  if (position < 0 || position >= out) return {0, 0, 0.0, 0.0};
  const double x = static_cast<double>(position), nodes = static_cast<double>(in), outputs = static_cast<double>(out);
  const double dividend = align_corners ? x * (nodes - 1) : (2 * x + 1) * nodes - outputs;
  const double divisor = align_corners ? (out > 1 ? outputs - 1 : 1.0) : 2 * outputs;
  const double source = dividend < 0.0 ? 0.0 : dividend / divisor;
  const int32_t last = static_cast<int32_t>(in - 1), first = source < last ? static_cast<int32_t>(source) : last;
  const double fraction = source - first < 1.0 ? source - first : 1.0;
  return {first, first < last && in != out ? first + 1 : first, 1.0 - fraction, fraction};
}

// One axis of `nodes` inputs cut into cells: cell q lies between nodes first_node + q and first_node + q + 1, clamped to
// the axis, and holds outputs begin[q], …, begin[q] + count[q] - 1 at fractions start[q], start[q] + step, … of its length.
// Half-pixel centres place the border outputs outside of the outer nodes: those are cells -1 and nodes - 1. Every node
// is the first one of a cell, so that all of them have a gradient, be it zero.
struct Cells {
  int64_t first_node;
  std::vector<int32_t> begin, count;
  std::vector<double> start;
  double step;

  int64_t size() const { return static_cast<int64_t>(begin.size()); }
  int64_t most() const { return *std::max_element(count.begin(), count.end()); }
};

inline Cells cut_cells(int64_t nodes, int64_t out, bool align_corners) {
  Cells cells;
  cells.step = source_scale(nodes, out, align_corners);
  cells.first_node = align_corners ? 0 : -1;
  const int64_t size = nodes - cells.first_node;
  cells.begin.assign(size, static_cast<int32_t>(out));
  cells.count.assign(size, 0);
  cells.start.assign(size, 0.0);
  for (int64_t x = 0; x < out; ++x) {
    const double position = align_corners ? x * cells.step : (x + 0.5) * cells.step - 0.5;
    const int64_t node = std::clamp<int64_t>(static_cast<int64_t>(std::floor(position)), cells.first_node, nodes - 1);
    const int64_t q = node - cells.first_node;
    if (cells.count[q]++ == 0) {
      cells.begin[q] = static_cast<int32_t>(x);
      cells.start[q] = position - static_cast<double>(node);
    }
  }
  return cells;
}

// One axis of `nodes` inputs upsampled to `out`: output x lies numerator(x) / denominator nodes behind the first. Integers
// lose no digit, and host and device agree on them. They stay below 2^31 where 2 (nodes + 1) (out + 1) does.
struct BilinearAxis {
  int32_t nodes, out, step, offset, denominator;

  PSPNET_FAST_HD int32_t numerator(int32_t x) const {
    const int32_t at = x * step + offset;
    return at < 0 ? 0 : at;
  }

  // The two nodes that output x is interpolated from, as in bilinear_taps, and the share of the second.
  PSPNET_FAST_HD int32_t node(int32_t x) const {
    const int32_t at = numerator(x) / denominator;
    return at < nodes ? at : nodes - 1;
  }
  PSPNET_FAST_HD bool same_size() const { return nodes == out; }
  PSPNET_FAST_HD int32_t next(int32_t node) const { return node + 1 < nodes && !same_size() ? node + 1 : node; }
  template <typename Real>
  PSPNET_FAST_HD Real share(int32_t x, int32_t node) const {
    return static_cast<Real>(numerator(x) - node * denominator) * (Real(1) / static_cast<Real>(denominator));
  }

  // What reads a node: outputs from first_reader(node) to begin_of(node + 1), the last not included.
  PSPNET_FAST_HD int32_t first_reader(int32_t node) const { return begin_of(same_size() ? node : node - 1); }

  // The first output at `node` or behind it.
  PSPNET_FAST_HD int32_t begin_of(int32_t node) const {
    if (node <= 0) return 0;
    if (node >= nodes) return out;
    const int32_t distance = node * denominator - offset;
    const int32_t x = distance <= 0 ? 0 : (distance + step - 1) / step;
    return x < out ? x : out;
  }

  // What output x weighs in the gradient of a node that it reads, and in that of the node behind. What lies behind the
  // last node reads that twice, with weights that add up to 1.
  template <typename Real>
  PSPNET_FAST_HD Real weight(int32_t x, int32_t node) const {
    const Real after = weight_of_next<Real>(x, node);
    return 1 - (after < 0 ? -after : after);
  }
  template <typename Real>
  PSPNET_FAST_HD Real weight_of_next(int32_t x, int32_t node) const {
    const int32_t at = numerator(x), last = (nodes - 1) * denominator;
    return static_cast<Real>((at < last ? at : last) - node * denominator) * (Real(1) / static_cast<Real>(denominator));
  }
};

inline BilinearAxis bilinear_axis(int64_t nodes, int64_t out, bool align_corners) {
  const auto n = static_cast<int32_t>(nodes), o = static_cast<int32_t>(out);
  if (align_corners) return {n, o, n - 1, 0, std::max(o - 1, 1)};
  return {n, o, 2 * n, n - o, 2 * o};
}

// One axis cut into cells. Cell q holds the outputs between nodes q and q + 1; with half-pixel centres cells -1 and
// nodes - 1 hold those outside of the outer nodes. Host and device must agree on who is in which cell, so that the one
// multiply-add in it is written out: left to the compilers, one would fuse it and the other would not.
struct UpsampledAxis {
  int32_t nodes, out;
  bool align_corners;
  double scale;    // inputs per output
  double inverse;  // and outputs per input, or 0

  PSPNET_FAST_HD double position(int32_t x) const { return align_corners ? x * scale : fma(x + 0.5, scale, -0.5); }

  PSPNET_FAST_HD int32_t cell_of(int32_t x) const {
    const double at = position(x);
    if (at < 0) return -1;
    return at < nodes - 1 ? static_cast<int32_t>(at) : nodes - 1;
  }

  // The first output in `cell` or behind it.
  PSPNET_FAST_HD int32_t begin_of(int32_t cell) const {
    if (cell <= -1) return 0;
    if (cell >= nodes) return out;
    if (inverse == 0) return cell == 0 ? 0 : out;
    const double guess = ceil(align_corners ? cell * inverse : (cell + 0.5) * inverse - 0.5);
    int32_t x = guess < out ? static_cast<int32_t>(guess < 0 ? 0 : guess) : out;
    while (x > 0 && cell_of(x - 1) >= cell) --x;
    while (x < out && cell_of(x) < cell) ++x;
    return x;
  }

  // The bottom node's share in output x of `cell`, and how much more it has in the next output.
  PSPNET_FAST_HD double fraction(int32_t x, int32_t cell) const { return cell < 0 ? 1.0 : position(x) - cell; }
  PSPNET_FAST_HD double step(int32_t cell) const { return cell < 0 ? 0.0 : scale; }

  // The top node of `cell`; the bottom one is the top one of the next. PyTorch has it so: outputs in front of node 0
  // lie at it, and those behind the last node between that and itself. It shows where a logit is infinite: an infinity
  // that weighs nothing is NaN.
  PSPNET_FAST_HD int32_t node(int32_t cell) const {
    if (cell < 0) return nodes > 1 ? 1 : 0;
    return cell < nodes ? cell : nodes - 1;
  }
};

inline UpsampledAxis upsampled_axis(int64_t nodes, int64_t out, bool align_corners) {
  const double scale = source_scale(nodes, out, align_corners);
  return {static_cast<int32_t>(nodes), static_cast<int32_t>(out), align_corners, scale, scale > 0 ? 1 / scale : 0};
}

// The largest number of outputs in one cell.
inline int32_t largest_cell(const UpsampledAxis& axis) {
  int32_t most = 0;
  for (int32_t cell = -1, begin = 0; cell < axis.nodes; ++cell) {
    const int32_t end = axis.begin_of(cell + 1);
    most = end - begin > most ? end - begin : most;
    begin = end;
  }
  return most;
}

}  // namespace pspnet_fast
