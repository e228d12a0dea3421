// Upsampling and concatenation of channels_last maps, written once by one launch.
//
// A thread owns a pack of the result's channels and goes along a part of a row; a warp writes 512 neighbouring bytes of
// a pixel. Where the channels are x's it copies. Where they are a level's it keeps the two nodes beside it, interpolated
// over rows, in registers: they are loaded where a cell begins, and an element costs two multiplications.
#include "elements.cuh"
#include "launch.h"
#include "pyramid_concat.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 32;  // of a row, for one thread
constexpr int kCopies = 4;    // packs of x under way

struct Tile {
  int64_t image;
  int row, begin, count;  // columns
  int64_t channel;        // of the result
};

template <int VEC>
__device__ __forceinline__ Tile tile_of(const ConcatShape& shape) {
  const int64_t runs = (shape.all_channels() + kThreads * VEC - 1) / (kThreads * VEC);
  const int parts = (shape.width + kColumns - 1) / kColumns;
  const int64_t row_part = blockIdx.x / runs, row = row_part / parts;
  const int begin = static_cast<int>(row_part % parts) * kColumns;
  return {
      row / shape.height,
      static_cast<int>(row % shape.height),
      begin,
      min(kColumns, shape.width - begin),
      (blockIdx.x % runs * kThreads + threadIdx.x) * VEC,
  };
}

template <typename T, int VEC>
__device__ __forceinline__ void copy_tile(const T* from, int64_t from_stride, T* to, int64_t to_stride, int count) {
  for (int w = 0; w < count; w += kCopies) {
    Pack<T, VEC> pack[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (w + i < count) pack[i] = *reinterpret_cast<const Pack<T, VEC>*>(from + (w + i) * from_stride);
    }
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (w + i < count) *reinterpret_cast<Pack<T, VEC>*>(to + (w + i) * to_stride) = pack[i];
    }
  }
}

// A column of nodes at row h: (1 - s) top + s bottom.
template <typename T, int VEC, typename Real>
__device__ __forceinline__ void between_rows(const T* top, const T* bottom, Real s, Real (&node)[VEC]) {
  const auto low = *reinterpret_cast<const Pack<T, VEC>*>(top), up = *reinterpret_cast<const Pack<T, VEC>*>(bottom);
#pragma unroll
  for (int j = 0; j < VEC; ++j) node[j] = (1 - s) * load(low.v[j]) + s * load(up.v[j]);
}

// `nodes` is the level's first, for this thread's channels; the next one lies `stride` behind.
template <typename T, int VEC>
__device__ __forceinline__ void upsample_tile(
    const ConcatLevel& level, const Tile& tile, const T* nodes, int64_t stride, T* to, int64_t to_stride) {
  using Real = Acc<T>;
  const int i = level.rows.node(tile.row), k = level.bins();
  const Real s = level.rows.share<Real>(tile.row, i);
  const T* top = nodes + i * k * stride;
  const T* bottom = nodes + level.rows.next(i) * k * stride;
  Real left[VEC], right[VEC];
  int column = -1;
  for (int w = 0; w < tile.count; ++w, to += to_stride) {
    const int j = level.columns.node(tile.begin + w), next = level.columns.next(j);
    if (j != column) {
      between_rows<T, VEC>(top + j * stride, bottom + j * stride, s, left);
      between_rows<T, VEC>(top + next * stride, bottom + next * stride, s, right);
      column = j;
    }
    const Real t = level.columns.share<Real>(tile.begin + w, j);
    Pack<T, VEC> pack;
#pragma unroll
    for (int v = 0; v < VEC; ++v) pack.v[v] = round_to<T>((1 - t) * left[v] + t * right[v]);
    *reinterpret_cast<Pack<T, VEC>*>(to) = pack;
  }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads) pyramid_concat_fwd_nhwc_kernel(
    const __grid_constant__ ConcatShape shape, const T* x, const T* levels, T* out) {
  const Tile tile = tile_of<VEC>(shape);
  if (tile.channel >= shape.all_channels()) return;
  const int64_t pixel = (tile.image * shape.height + tile.row) * shape.width + tile.begin;
  T* to = out + pixel * shape.all_channels() + tile.channel;

  const int64_t of_x = tile.channel - shape.first_of_x();
  if (0 <= of_x && of_x < shape.channels) {
    return copy_tile<T, VEC>(x + pixel * shape.channels + of_x, shape.channels, to, shape.all_channels(), tile.count);
  }
  const int64_t of_levels = tile.channel - shape.first_of_levels();
  const ConcatLevel& level = shape.level[of_levels / shape.level_channels];
  const T* nodes = levels + (tile.image * shape.packed_bins + level.first_bin) * shape.level_channels;
  upsample_tile<T, VEC>(
      level, tile, nodes + of_levels % shape.level_channels, shape.level_channels, to, shape.all_channels());
}

template <typename T, int VEC>
void forward(const ConcatShape& shape, const T* x, const T* levels, T* out, cudaStream_t stream) {
  const int64_t runs = (shape.all_channels() + kThreads * VEC - 1) / (kThreads * VEC);
  const int64_t parts = (shape.width + kColumns - 1) / kColumns;
  const auto blocks = static_cast<unsigned>(shape.batch * shape.height * parts * runs);
  PSPNET_FAST_LAUNCH(
      (pyramid_concat_fwd_nhwc_kernel<T, VEC>), blocks, kThreads, 0, stream, shape, x, levels, out);
}

}  // namespace

void launch_pyramid_concat_nhwc_fwd(
    ElementType type, const ConcatShape& shape, const void* x, const void* levels, void* out, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const bool aligned = shape.channels % kVec == 0 && shape.level_channels % kVec == 0 && is_aligned(x, 16) &&
                         is_aligned(levels, 16) && is_aligned(out, 16);
    const auto run = aligned ? forward<T, kVec> : forward<T, 1>;
    run(shape, static_cast<const T*>(x), static_cast<const T*>(levels), static_cast<T*>(out), stream);
  });
}

}  // namespace pspnet_fast::cuda
