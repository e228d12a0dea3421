// The gradient of a pyramid's levels from that of the channels_last concatenation, read once.
//
// The nodes of a level cut the map into cells: cell (p, q) holds the pixels that lie between its own node and the next
// ones, and gives to those four. Cells are cut further into pieces of about 16 x 16 pixels, so that there is enough to do
// where a level has few nodes. Lanes lie along channels.
// 1. A thread sums VEC channels of a piece, weighted for each of the four nodes.
// 2. A node adds up the pieces of its four cells, in a fixed order.
#include <algorithm>

#include "elements.cuh"
#include "launch.h"
#include "pyramid_concat.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kPieceThreads = 64;
constexpr int kPieceBlocks = 8;  // of a multiprocessor at least: 128 registers
constexpr int kNodeThreads = 128;
constexpr int kPieceSide = 16;

struct Range {
  int begin, end;
};
__device__ __forceinline__ Range part_of_cell(const BilinearAxis& axis, int cell, int part, int parts) {
  const int begin = axis.begin_of(cell), size = axis.begin_of(cell + 1) - begin;
  return {begin + part * size / parts, begin + (part + 1) * size / parts};
}

// The pieces of a level: rows of cells, their parts, columns of cells, their parts. sums: [4, VEC] for (top, bottom) x
// (left, right).
template <typename T, int VEC>
__device__ __forceinline__ void sum_piece(
    const ConcatLevel& level, int p, Range rows, int q, Range columns, const T* image, int width, int64_t pixel_stride,
    Acc<T> (&sums)[4][VEC]) {
  for (int h = rows.begin; h < rows.end; ++h) {
    const T* row = image + static_cast<int64_t>(h) * width * pixel_stride;
    Acc<T> left[VEC] = {}, right[VEC] = {};
#pragma unroll 4
    for (int w = columns.begin; w < columns.end; ++w) {
      const auto pack = *reinterpret_cast<const Pack<T, VEC>*>(row + w * pixel_stride);
      const Acc<T> t = level.columns.weight_of_next<Acc<T>>(w, q);
#pragma unroll
      for (int j = 0; j < VEC; ++j) left[j] += (1 - t) * load(pack.v[j]), right[j] += t * load(pack.v[j]);
    }
    const Acc<T> s = level.rows.weight_of_next<Acc<T>>(h, p);
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      sums[0][j] += (1 - s) * left[j], sums[1][j] += (1 - s) * right[j];
      sums[2][j] += s * left[j], sums[3][j] += s * right[j];
    }
  }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(kPieceThreads, kPieceBlocks) pyramid_concat_bwd_pieces_kernel(
    const __grid_constant__ ConcatShape shape, const __grid_constant__ ConcatPieces pieces,
    const __grid_constant__ ConcatGrad grad, Acc<T>* sums) {
  const int64_t runs = (shape.level_channels + kPieceThreads * VEC - 1) / (kPieceThreads * VEC);
  const int64_t channel = (blockIdx.x % runs * kPieceThreads + threadIdx.x) * VEC;
  const int64_t image = blockIdx.x / runs / pieces.total;
  if (channel >= shape.level_channels) return;
  const int piece = static_cast<int>(blockIdx.x / runs % pieces.total);
  int l = 0;
  while (l + 1 < shape.count && piece >= pieces.first[l + 1]) ++l;
  const ConcatLevel& level = shape.level[l];
  const int row_parts = pieces.row_parts[l], column_parts = pieces.column_parts[l];
  const int across = level.bins() * column_parts, row = (piece - pieces.first[l]) / across;
  const int column = piece - pieces.first[l] - row * across, p = row / row_parts, q = column / column_parts;

  Acc<T> own[4][VEC] = {};
  const T* data = static_cast<const T*>(grad.data) + image * grad.image_stride + l * shape.level_channels + channel;
  sum_piece<T, VEC>(
      level, p, part_of_cell(level.rows, p, row % row_parts, row_parts), q,
      part_of_cell(level.columns, q, column % column_parts, column_parts), data, shape.width, grad.pixel_stride, own);
  Acc<T>* output = sums + (image * pieces.total + piece) * 4 * shape.level_channels + channel;
#pragma unroll
  for (int side = 0; side < 4; ++side) store_sums(output + side * shape.level_channels, own[side]);
}

template <typename T>
__global__ void __launch_bounds__(kNodeThreads) pyramid_concat_bwd_nodes_kernel(
    const __grid_constant__ ConcatShape shape, const __grid_constant__ ConcatPieces pieces, const Acc<T>* sums,
    T* grad_levels) {
  const int64_t runs = (shape.level_channels + kNodeThreads - 1) / kNodeThreads;
  const int64_t channel = blockIdx.x % runs * kNodeThreads + threadIdx.x;
  const int64_t image = blockIdx.x / runs / shape.packed_bins;
  if (channel >= shape.level_channels) return;
  const int packed = static_cast<int>(blockIdx.x / runs % shape.packed_bins);
  int l = 0;
  while (l + 1 < shape.count && packed >= shape.level[l + 1].first_bin) ++l;
  const ConcatLevel& level = shape.level[l];
  const int k = level.bins(), i = (packed - level.first_bin) / k, j = packed - level.first_bin - i * k;
  const int row_parts = pieces.row_parts[l], column_parts = pieces.column_parts[l];

  // At equal sizes nothing reads the next node.
  const int first_row = level.rows.same_size() ? i : max(i - 1, 0);
  const int first_column = level.columns.same_size() ? j : max(j - 1, 0);
  const Acc<T>* of_image = sums + image * pieces.total * 4 * shape.level_channels + channel;
  Acc<T> sum = 0;
  for (int row = first_row * row_parts; row < (i + 1) * row_parts; ++row) {
    for (int column = first_column * column_parts; column < (j + 1) * column_parts; ++column) {
      const int64_t piece = pieces.first[l] + row * k * column_parts + column;
      const int side = (row < i * row_parts ? 2 : 0) + (column < j * column_parts ? 1 : 0);
      sum += of_image[(piece * 4 + side) * shape.level_channels];
    }
  }
  grad_levels[(image * shape.level_channels + channel) * shape.packed_bins + packed] = round_to<T>(sum);
}

int parts_of(const BilinearAxis& axis) {
  int most = 1;
  for (int cell = 0; cell < axis.nodes; ++cell) most = std::max(most, axis.begin_of(cell + 1) - axis.begin_of(cell));
  return (most + kPieceSide - 1) / kPieceSide;
}

template <typename T, int VEC>
void backward(
    const ConcatShape& shape, const ConcatPieces& pieces, const ConcatGrad& grad, Acc<T>* sums, T* grad_levels,
    cudaStream_t stream) {
  const int64_t runs = (shape.level_channels + kPieceThreads * VEC - 1) / (kPieceThreads * VEC);
  const auto blocks = static_cast<unsigned>(shape.batch * pieces.total * runs);
  PSPNET_FAST_LAUNCH(
      (pyramid_concat_bwd_pieces_kernel<T, VEC>), blocks, kPieceThreads, 0, stream, shape, pieces, grad, sums);
  const int64_t node_runs = (shape.level_channels + kNodeThreads - 1) / kNodeThreads;
  const auto node_blocks = static_cast<unsigned>(shape.batch * shape.packed_bins * node_runs);
  PSPNET_FAST_LAUNCH(
      (pyramid_concat_bwd_nodes_kernel<T>), node_blocks, kNodeThreads, 0, stream, shape, pieces, sums, grad_levels);
}

}  // namespace

ConcatPieces cut_pieces(const ConcatShape& shape) {
  ConcatPieces pieces{};
  for (int l = 0; l < shape.count; ++l) {
    const ConcatLevel& level = shape.level[l];
    pieces.first[l] = pieces.total;
    pieces.row_parts[l] = parts_of(level.rows), pieces.column_parts[l] = parts_of(level.columns);
    pieces.total += level.bins() * pieces.row_parts[l] * level.bins() * pieces.column_parts[l];
  }
  return pieces;
}

void launch_pyramid_concat_nhwc_bwd(
    ElementType type, const ConcatShape& shape, const ConcatPieces& pieces, const ConcatGrad& grad, void* sums,
    void* grad_levels, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const bool aligned = shape.level_channels % kVec == 0 && grad.pixel_stride % kVec == 0 &&
                         grad.image_stride % kVec == 0 && is_aligned(grad.data, 16);
    const auto run = aligned ? backward<T, kVec> : backward<T, 1>;
    run(shape, pieces, grad, static_cast<Acc<T>*>(sums), static_cast<T*>(grad_levels), stream);
  });
}

}  // namespace pspnet_fast::cuda
