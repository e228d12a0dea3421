// csrc/geometry.h against brute force: bin edges, atoms, and the cells of upsampling. Exits non-zero at the first difference.
#include "geometry.h"

#include <cstdio>
#include <cstdlib>

using namespace pspnet_fast;

namespace {

int checks = 0;

void require(bool holds, const char* what, int64_t n, int64_t k, int64_t i) {
  ++checks;
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s (n = %lld, k = %lld, i = %lld)\n", what, (long long)n, (long long)k, (long long)i);
  std::exit(1);
}

// The definition, in floating point: floor(i n / k) and ceil((i + 1) n / k).
void test_bin_edges() {
  for (int64_t n = 1; n <= 130; ++n) {
    for (int64_t k = 1; k <= 12; ++k) {
      for (int64_t i = 0; i < k; ++i) {
        // Exact: i n < 2^11, and a quotient that is not an integer is at least 1/12 away from one.
        const double step = static_cast<double>(n) / static_cast<double>(k);
        require(bin_begin(i, n, k) == static_cast<int64_t>(std::floor(i * step + 1e-9)), "bin begin", n, k, i);
        require(bin_end(i, n, k) == static_cast<int64_t>(std::ceil((i + 1) * step - 1e-9)), "bin end", n, k, i);
      }
      require(bin_begin(0, n, k) == 0 && bin_end(k - 1, n, k) == n, "bins cover the axis", n, k, 0);
    }
  }
}

void test_partition(const std::vector<int64_t>& bins) {
  for (int64_t n = 1; n <= 130; ++n) {
    const Partition p = partition_axis(n, bins);
    require(p.edge.front() == 0 && p.edge.back() == n, "the intervals cover the axis", n, 0, 0);
    for (int32_t r = 0; r < p.intervals(); ++r) {
      require(p.edge[r] < p.edge[r + 1], "intervals are not empty", n, 0, r);
    }

    // A bin is the union of its intervals, to the cell.
    size_t entry = 0;
    for (int64_t k : bins) {
      for (int64_t i = 0; i < k; ++i, ++entry) {
        require(p.edge[p.first[entry]] == bin_begin(i, n, k), "first interval of a bin", n, k, i);
        require(p.edge[p.last[entry]] == bin_end(i, n, k), "last interval of a bin", n, k, i);
      }
    }

    // No cut is idle: the cells on both sides of every inner edge differ in some bin.
    for (int32_t r = 1; r < p.intervals(); ++r) {
      const int64_t left = p.edge[r] - 1, right = p.edge[r];
      bool differ = false;
      for (int64_t k : bins) {
        for (int64_t i = 0; i < k; ++i) {
          const int64_t begin = bin_begin(i, n, k), end = bin_end(i, n, k);
          differ |= (begin <= left && left < end) != (begin <= right && right < end);
        }
      }
      require(differ, "an interval could be larger", n, 0, r);
    }
  }
}

// Calls check(nodes, out, align_corners) for axes of many sizes.
template <typename Check>
void for_each_axis(Check check) {
  for (int32_t nodes = 1; nodes <= 20; ++nodes) {
    for (int32_t out = 1; out <= 70; ++out) {
      for (const bool align_corners : {true, false}) check(nodes, out, align_corners);
    }
  }
}

// Where output x lies between the nodes, by the definition.
double position_of(int64_t x, int64_t nodes, int64_t out, bool align_corners) {
  const long double position = align_corners ? (out > 1 ? (long double)(x) * (nodes - 1) / (out - 1) : 0.0L)
                                             : (x + 0.5L) * nodes / out - 0.5L;
  return static_cast<double>(std::clamp<long double>(position, 0.0L, nodes - 1));
}

// Every output lies in one cell, at the place between the cell's two nodes that interpolation gives it.
void test_cells(int64_t nodes, int64_t out, bool align_corners) {
  const Cells cells = cut_cells(nodes, out, align_corners);
  const auto node = [&](int64_t q) { return std::clamp<int64_t>(cells.first_node + q, 0, nodes - 1); };
  require(node(0) == 0 && node(cells.size()) == nodes - 1, "every node has a cell", nodes, out, 0);
  int64_t x = 0;
  for (int64_t q = 0; q < cells.size(); ++q) {
    require(cells.count[q] <= cells.most(), "no cell is larger than the largest", nodes, out, q);
    for (int64_t k = 0; k < cells.count[q]; ++k, ++x) {
      require(cells.begin[q] + k == x, "cells follow each other", nodes, out, x);
      const double t = cells.start[q] + k * cells.step, place = (1.0 - t) * node(q) + t * node(q + 1);
      require(t > -1e-12 && t < 1.0 + 1e-12, "fractions lie in [0, 1]", nodes, out, x);
      require(std::fabs(place - position_of(x, nodes, out, align_corners)) < 1e-12, "place in a cell", nodes, out, x);
    }
  }
  require(x == out, "cells hold every output", nodes, out, x);
}

// Nodes, shares and the ranges of outputs that have one.
void test_axis(int32_t nodes, int32_t out, bool align_corners) {
  const BilinearAxis axis = bilinear_axis(nodes, out, align_corners);
  for (int32_t x = 0; x < out; ++x) {
    const int32_t node = axis.node(x), next = axis.next(node);
    const double share = axis.share<double>(x, node), place = (1 - share) * node + share * next;
    require(node >= 0 && next < nodes && share >= 0 && share < 1, "nodes and shares", nodes, out, x);
    require(std::fabs(place - position_of(x, nodes, out, align_corners)) < 1e-12, "place on an axis", nodes, out, x);
    double sum = 0;
    for (int32_t i = 0; i < nodes; ++i) {
      const bool has = axis.first_reader(i) <= x && x < axis.begin_of(i + 1);
      const double expected = (i == node ? 1 - share : 0) + (i == next ? share : 0);
      require(has == (i == node || i == next), "who reads a node", nodes, out, x);
      if (has) sum += axis.weight<double>(x, i);
      require(has ? std::fabs(axis.weight<double>(x, i) - expected) < 1e-12 : expected == 0, "weights", nodes, out, x);
      require((axis.begin_of(i) <= x) == (node >= i), "the first output of a node", nodes, out, x);
    }
    require(std::fabs(sum - 1) < 1e-12, "weights sum to one", nodes, out, x);
  }
}

// The two taps are the pair that the place between nodes says, to the last bit where it is a node; padding reads nothing.
void test_taps(int64_t nodes, int64_t out, bool align_corners) {
  for (int64_t x = -3; x < out + 3; ++x) {
    const Taps taps = bilinear_taps(x, nodes, out, align_corners);
    const double sum = taps.first_weight + taps.second_weight;
    require(0 <= taps.first && taps.first <= taps.second && taps.second < nodes, "taps are nodes", nodes, out, x);
    require(sum == (x < 0 || x >= out ? 0.0 : 1.0), "weights add up, to nothing in the padding", nodes, out, x);
    if (sum == 0.0) continue;
    const double place = taps.first_weight * taps.first + taps.second_weight * taps.second;
    require(taps.second_weight >= 0.0 && taps.second_weight < 1.0, "the second is the further one", nodes, out, x);
    require(std::fabs(place - position_of(x, nodes, out, align_corners)) < 1e-12, "place between taps", nodes, out, x);
    const int64_t parts = align_corners ? std::max<int64_t>(out - 1, 1) : 2 * out;  // of the way between two nodes
    const int64_t at = align_corners ? x * (nodes - 1) : std::max<int64_t>((2 * x + 1) * nodes - out, 0);
    const bool hit = at % parts == 0 && at / parts < nodes;
    require(!hit || (taps.first == at / parts && taps.second_weight == 0.0), "taps at a node", nodes, out, x);
  }
}

}  // namespace

int main() {
  test_bin_edges();
  for (const std::vector<int64_t>& bins : std::vector<std::vector<int64_t>>{
           {1, 2, 3, 6}, {6, 3, 2, 1}, {1, 2, 4, 8}, {5, 7}, {140}}) {
    test_partition(bins);
  }
  for_each_axis(test_cells);
  for_each_axis(test_taps);
  for_each_axis(test_axis);
  std::printf("%d checks passed\n", checks);
  return 0;
}
