// The part of its cell that a lane scores in one pass, and the four nodes round it.
#pragma once

#include "cross_entropy_tile.cuh"

namespace pspnet_fast::cuda {

// A pixel's label is a code: its class, or one of these.
constexpr unsigned kIgnored = 0xffff;
constexpr unsigned kMerged = 0xfffe;  // as the pixel before it in the row

template <typename Real>
struct Piece {
  int y, rows, x, columns;    // rows are the same for all lanes
  Real s, s_step, t, t_step;  // shares of the bottom and right node in the first pixel, and from one pixel to the next
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
__device__ __forceinline__ Piece<typename Memory::Real> place_piece(
    const Memory& memory, Lane lane, int row_part, int row_parts, int column_part) {
  using Real = typename Memory::Real;
  const UpsampledAxis& rows = memory.head.rows;
  const UpsampledAxis& columns = memory.head.columns;
  const CellRow& row = memory.row;
  const int cell = memory.tile.column * kOwnedNodes - 1 + lane.cell(), begin = memory.column_begin[lane.cell()];
  const Part height = part_of(row.end - row.begin, row_part, row_parts);
  const Part width = part_of(memory.column_begin[lane.cell() + 1] - begin, column_part, memory.head.column_parts);
  Piece<Real> piece;
  piece.y = row.begin + height.begin, piece.rows = height.count;
  piece.x = begin + width.begin, piece.columns = width.count;
  piece.s = static_cast<Real>(rows.fraction(piece.y, row.cell));
  piece.t = piece.columns > 0 ? static_cast<Real>(columns.fraction(piece.x, cell)) : Real(0);
  piece.s_step = static_cast<Real>(rows.step(row.cell));
  piece.t_step = static_cast<Real>(columns.step(cell));
  piece.one_row = rows.nodes == rows.out, piece.one_column = columns.nodes == columns.out;
  return piece;
}

// 0 top left, 1 top right, 2 bottom left, 3 bottom right.
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
__device__ __forceinline__ Ends<Real> ends_of_row(const Corners<Real>& node, Real s, const Piece<Real>& piece) {
  const Real left = mix(s, node.value[0], piece.one_row ? node.value[0] : node.value[2]);
  const Real right = mix(s, node.value[1], piece.one_row ? node.value[1] : node.value[3]);
  return {left, piece.one_column ? left : right};
}

template <typename Real>
__device__ __forceinline__ void add_scaled(Real (&sums)[4][32], Lane lane, Real scale, const Real* node) {
  const Corners<Real> corners = corners_at(node);
#pragma unroll
  for (int j = 0; j < 4; ++j) sums[j][lane.number] += scale * corners.value[j];
}

}  // namespace pspnet_fast::cuda
