// The index arithmetic of every kernel: bin edges, atoms and bilinear taps. Host and device, no dependencies.
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

// Bin i of k over an axis of n cells is [floor(i n / k), ceil((i + 1) n / k)). Neighbouring bins share a cell wherever k
// does not divide n, and bins repeat cells where k > n.
PSPNET_FAST_HD int64_t bin_begin(int64_t i, int64_t n, int64_t k) { return i * n / k; }
PSPNET_FAST_HD int64_t bin_end(int64_t i, int64_t n, int64_t k) { return ((i + 1) * n + k - 1) / k; }

// One axis cut at the bin edges of all levels. Between two neighbouring edges every cell lies in the same bins, so an
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

  const auto interval_of = [&](int64_t cell) {
    return static_cast<int32_t>(std::lower_bound(p.edge.begin(), p.edge.end(), cell) - p.edge.begin());
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

// Output cell `x` reads (1 - t) · in[lo] + t · in[hi].
struct Tap {
  int64_t lo;
  int64_t hi;
  double t;
};

// Positions are computed in double: at scales that are not dyadic a float32 index loses digits that the weights need.
PSPNET_FAST_HD double source_scale(int64_t in, int64_t out, bool align_corners) {
  if (align_corners) return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
  return static_cast<double>(in) / static_cast<double>(out);
}

PSPNET_FAST_HD Tap bilinear_tap(int64_t x, int64_t in, int64_t out, bool align_corners) {
  const double scale = source_scale(in, out, align_corners);
  double position = align_corners ? x * scale : (x + 0.5) * scale - 0.5;
  if (position < 0.0) position = 0.0;  // half-pixel centres: the border cell extends outwards
  int64_t lo = static_cast<int64_t>(position);
  if (lo > in - 1) lo = in - 1;
  double t = position - static_cast<double>(lo);
  if (lo == in - 1) t = 0.0;
  return {lo, lo + (lo < in - 1 ? 1 : 0), t};
}

}  // namespace pspnet_fast
