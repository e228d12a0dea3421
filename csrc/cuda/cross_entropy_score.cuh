// How a path (cross_entropy_progression.cuh, cross_entropy_direct.cuh) scores a row of cells.
#pragma once

#include "cross_entropy_labels.cuh"

namespace pspnet_fast::cuda {

// One pass over a piece in every lane: sums, losses, and gradients to the rows of nodes.
template <class Path, typename Memory>
__device__ __forceinline__ void score_piece(
    Memory& memory, const CrossEntropyProblem& p, Lane lane, const Piece<typename Path::Real>& piece) {
  using Real = typename Path::Real;
  const bool gradient = memory.head.grad != nullptr, smoothed = p.smoothed, mine = counts(memory, lane);
  const Real scale = Path::kScale;
  const Weights<Real> weights{p, (int64_t{memory.tile.image} * p.out_height + piece.y) * p.out_width + piece.x};
  Real* loss = mine ? static_cast<Real*>(memory.head.loss) : nullptr;
  const unsigned present = read_labels<Path>(
      memory, p.labels, weights.first_pixel, p.out_width, p.classes, piece, lane,
      p.pixel_weight == nullptr && memory.head.loss == nullptr);
  for (int j = 0; j < 4 && smoothed; ++j) memory.smooth[j][lane.number] = 0;

  Path path(piece);
  for (int pass = 0; pass < Path::kForwardPasses; ++pass) {
    const bool last = pass == Path::kForwardPasses - 1;
    for_chunks<2>(memory, p.classes, lane, 0, scale, [&](int first, int count) {
      const Real* node = memory.nodes[0] + lane.cell();
      for (int c = 0; c < count; ++c, node += kNodePitch) {
        path.add_class(pass, corners_at(node));
        if (last && smoothed) add_scaled(memory.smooth, lane, weights.of_class(first + c), node);
      }
    });
  }
  PixelSums<Real> sums{};
  typename Path::Label label{};
  typename Path::Label::Logits other{};
#pragma unroll
  for (int part = 0; part < Path::kRows / Path::kPartRows; ++part) {
    path.put(memory.pixels, part, lane);
    weigh_pixels<Path>(memory, part, path, weights, lane, label, other, loss, sums);
    path.get(memory.pixels, part, lane);
  }
  for (int j = 0; j < 4 && smoothed; ++j) memory.smooth[j][lane.number] = sums.grad_weight.value[j];
  if (mine) memory.loss[lane.number] += static_cast<double>(sums.loss * Path::kUnit);
  if (mine) memory.divisor[lane.number] += static_cast<double>(sums.divisor);

  if (gradient) {
    for_chunks<2>(memory, p.classes, lane, 0, scale, [&](int first, int count) {
      const Real* node = memory.nodes[0] + lane.cell();
      Real* to = memory.corners[0] + lane.number;
      for (int c = 0; c < count; ++c, node += kNodePitch, to += kCornerPitch) {
        Corners<Real> corner = path.gradient(corners_at(node));
        if (smoothed) {
          const Real every = memory.share * weights.of_class(first + c);
          for (int j = 0; j < 4; ++j) corner.value[j] -= every * memory.smooth[j][lane.number];
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) to[j * 32] = corner.value[j];
      }
      take_labels<Path>(memory, present, weights, piece, lane, first);
      emit_nodes(memory, lane, first, count);
    });
  }
}

// All pixels of a row of cells, in as many pieces as a path takes.
template <class Path, typename Memory>
__device__ __forceinline__ void score_row(Memory& memory, const CrossEntropyProblem& p, Lane lane) {
  const int height = memory.row.end - memory.row.begin, parts = (height + Path::kRows - 1) / Path::kRows;
  for (int part = 0; part < parts; ++part) {
    for (int column_part = 0; column_part < memory.head.column_parts; ++column_part) {
      score_piece<Path>(memory, p, lane, place_piece(memory, lane, part, parts, column_part));
      __syncwarp();
      if (lane.number == 0) memory.top.add = memory.bottom.add = true;
    }
  }
}

}  // namespace pspnet_fast::cuda
