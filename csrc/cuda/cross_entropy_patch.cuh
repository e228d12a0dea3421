// The part of its cell that a lane scores in one pass, and the four nodes round it.
#pragma once

#include "cross_entropy_strip.cuh"

namespace pspnet_fast::cuda {

// A pixel's label is a code: its class, or one of these.
constexpr unsigned kIgnored = 0xffff;
constexpr unsigned kMerged = 0xfffe;  // as the pixel before it in the row

template <typename Real>
struct Patch {
  int y, rows, x, columns;    // rows are the same for all lanes
  Real s, s_step, t, t_step;  // shares of the upper and right node in the first pixel, and from one pixel to the next
  bool one_row, one_column;   // the size stays: pixels are nodes
};

// Part `part` of `parts` that differ by one pixel at most.
struct Part {
  int begin, count;
};
__device__ __forceinline__ Part part_of(int pixels, int part, int parts) {
  const int each = pixels / parts, rest = pixels - each * parts;
  return {part * each + min(part, rest), each + (part < rest ? 1 : 0)};
}

template <typename Memory>
__device__ __forceinline__ Patch<typename Memory::Real> place_patch(
    const Memory& memory, Lane lane, int row_part, int row_parts, int column_part) {
  using Real = typename Memory::Real;
  const UpsampledAxis& rows = memory.head.rows;
  const UpsampledAxis& columns = memory.head.columns;
  const CellRow& row = memory.row;
  const int cell = memory.strip.tile * kOwnedNodes - 1 + lane.cell(), begin = memory.column_begin[lane.cell()];
  const Part height = part_of(row.end - row.begin, row_part, row_parts);
  const Part width = part_of(memory.column_begin[lane.cell() + 1] - begin, column_part, memory.head.column_parts);
  Patch<Real> patch;
  patch.y = row.begin + height.begin, patch.rows = height.count;
  patch.x = begin + width.begin, patch.columns = width.count;
  patch.s = static_cast<Real>(rows.fraction(patch.y, row.cell));
  patch.t = patch.columns > 0 ? static_cast<Real>(columns.fraction(patch.x, cell)) : Real(0);
  patch.s_step = static_cast<Real>(rows.step(row.cell));
  patch.t_step = static_cast<Real>(columns.step(cell));
  patch.one_row = rows.nodes == rows.out, patch.one_column = columns.nodes == columns.out;
  return patch;
}

// 0 lower left, 1 lower right, 2 upper left, 3 upper right ("lower" being the smaller index).
template <typename Real>
struct Corners {
  Real value[4];
};

template <typename Real>
__device__ __forceinline__ Corners<Real> corners_at(const Real* node) {
  return {{node[0], node[1], node[kRowNodes], node[kRowNodes + 1]}};
}

// A row of pixels at both columns of nodes. At equal sizes PyTorch reads no second node.
template <typename Real>
struct Ends {
  Real left, right;
};
template <typename Real>
__device__ __forceinline__ Ends<Real> ends_of_row(const Corners<Real>& node, Real s, const Patch<Real>& patch) {
  const Real left = mix(s, node.value[0], patch.one_row ? node.value[0] : node.value[2]);
  const Real right = mix(s, node.value[1], patch.one_row ? node.value[1] : node.value[3]);
  return {left, patch.one_column ? left : right};
}

template <typename Real>
__device__ __forceinline__ void add_scaled(Real (&sums)[4][32], Lane lane, Real scale, const Real* node) {
  const Corners<Real> corners = corners_at(node);
#pragma unroll
  for (int j = 0; j < 4; ++j) sums[j][lane.number] += scale * corners.value[j];
}

}  // namespace pspnet_fast::cuda
