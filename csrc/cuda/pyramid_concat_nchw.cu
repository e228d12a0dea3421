// Upsampling and concatenation of NCHW maps, written once by one launch.
//
// x is one run of memory in each image of the result: it is copied 16 bytes a thread where C·H·W divides by that, although
// H·W may not. A level's plane is written in packs too. Where a pack lies in its plane, and so between which nodes, is
// the same for all channels: a thread finds that out once and then goes through a run of them. The corners come from L1,
// where neighbouring lanes read the same few words. That is about 16 instructions an element, 4 of them loads, where an
// H100 has time for about 50 and 12 at the speed of its memory (both calculated; bfloat16, as many channels in the levels
// as in x).
#include "elements.cuh"
#include "launch.h"
#include "pyramid_concat.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 32;  // of a level, for one thread
constexpr int kCopies = 4;     // packs of x for one thread: all loaded before the first is stored

// The blocks: those of the levels of all images, then those that copy x.
struct ConcatGrid {
  int64_t pack_blocks, channel_blocks;  // of a level of an image
  int64_t level_blocks;                 // of all
  int64_t copy_blocks;                  // of an image
  bool copy_vectors;
};

// Between which nodes an output lies.
template <typename Real>
struct Corners {
  int first, right, up;  // offsets: of the top left node, from there to the right and to the bottom one
  Real s, t;             // shares of the bottom and of the right nodes
};

template <typename Real>
__device__ __forceinline__ Corners<Real> corners_of(const ConcatLevel& level, int h, int w) {
  const int i = level.rows.node(h), j = level.columns.node(w), k = level.bins();
  return {
      i * k + j,
      level.columns.next(j) - j,
      (level.rows.next(i) - i) * k,
      level.rows.share<Real>(h, i),
      level.columns.share<Real>(w, j),
  };
}

template <typename T, typename Real>
__device__ __forceinline__ Real interpolate(const T* plane, const Corners<Real>& at) {
  const T* top = plane + at.first;
  const T* bottom = top + at.up;
  const Real on_top = (1 - at.t) * load(__ldg(top)) + at.t * load(__ldg(top + at.right));
  const Real on_bottom = (1 - at.t) * load(__ldg(bottom)) + at.t * load(__ldg(bottom + at.right));
  return (1 - at.s) * on_top + at.s * on_bottom;
}

template <typename T, int VEC>
__device__ __forceinline__ void upsample(const ConcatShape& shape, const ConcatGrid& grid, const T* levels, T* out) {
  int64_t block = blockIdx.x;
  const int64_t pixel = (block % grid.pack_blocks * kThreads + threadIdx.x) * VEC;
  block /= grid.pack_blocks;
  const int64_t begin = block % grid.channel_blocks * kChannels;
  block /= grid.channel_blocks;
  const int l = static_cast<int>(block % shape.count);
  const int64_t image = block / shape.count;
  if (pixel >= shape.pixels()) return;

  const ConcatLevel& level = shape.level[l];
  Corners<Acc<T>> at[VEC];
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    const int index = static_cast<int>(pixel) + j, h = index / shape.width;
    at[j] = corners_of<Acc<T>>(level, h, index - h * shape.width);
  }

  const T* plane = levels + (image * shape.level_channels + begin) * shape.packed_bins + level.first_bin;
  const int64_t channel = shape.first_of_levels() + l * shape.level_channels + begin;
  T* output = out + (image * shape.all_channels() + channel) * shape.pixels() + pixel;
  const int count = static_cast<int>(min(int64_t{kChannels}, shape.level_channels - begin));
  for (int c = 0; c < count; ++c) {
    Pack<T, VEC> pack;
#pragma unroll
    for (int j = 0; j < VEC; ++j) pack.v[j] = round_to<T>(interpolate(plane, at[j]));
    *reinterpret_cast<Pack<T, VEC>*>(output) = pack;
    plane += shape.packed_bins;
    output += shape.pixels();
  }
}

template <typename T, int VEC>
__device__ __forceinline__ void copy(const ConcatShape& shape, const ConcatGrid& grid, const T* x, T* out) {
  const int64_t block = blockIdx.x - grid.level_blocks, image = block / grid.copy_blocks;
  const int64_t size = shape.channels * shape.pixels(), packs = size / VEC;
  const int64_t first = block % grid.copy_blocks * (kThreads * kCopies) + threadIdx.x;
  const auto* from = reinterpret_cast<const Pack<T, VEC>*>(x + image * size);
  auto* to = reinterpret_cast<Pack<T, VEC>*>(
      out + (image * shape.all_channels() + shape.first_of_x()) * shape.pixels());
  Pack<T, VEC> pack[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    if (first + i * kThreads < packs) pack[i] = from[first + i * kThreads];
  }
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    if (first + i * kThreads < packs) to[first + i * kThreads] = pack[i];
  }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads) pyramid_concat_fwd_nchw_kernel(
    const __grid_constant__ ConcatShape shape, const __grid_constant__ ConcatGrid grid, const T* x, const T* levels,
    T* out) {
  if (blockIdx.x < grid.level_blocks) {
    upsample<T, VEC>(shape, grid, levels, out);
  } else if (grid.copy_vectors) {
    copy<T, 16 / sizeof(T)>(shape, grid, x, out);
  } else {
    copy<T, 1>(shape, grid, x, out);
  }
}

int64_t quotient_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

template <typename T, int VEC>
void forward(const ConcatShape& shape, const T* x, const T* levels, T* out, cudaStream_t stream) {
  constexpr int kVec = 16 / sizeof(T);
  const int64_t size = shape.channels * shape.pixels();
  ConcatGrid grid{};
  grid.copy_vectors = is_aligned(x, 16) && is_aligned(out, 16) && size % kVec == 0 &&
                      shape.all_level_channels() * shape.pixels() % kVec == 0;
  grid.copy_blocks = quotient_up(size, int64_t{kThreads} * kCopies * (grid.copy_vectors ? kVec : 1));
  grid.pack_blocks = quotient_up(shape.pixels(), int64_t{kThreads} * VEC);
  grid.channel_blocks = quotient_up(shape.level_channels, kChannels);
  grid.level_blocks = grid.pack_blocks * grid.channel_blocks * shape.count * shape.batch;
  const auto blocks = static_cast<unsigned>(grid.level_blocks + grid.copy_blocks * shape.batch);
  PSPNET_FAST_LAUNCH(
      (pyramid_concat_fwd_nchw_kernel<T, VEC>), blocks, kThreads, 0, stream, shape, grid, x, levels, out);
}

}  // namespace

void launch_pyramid_concat_nchw_fwd(
    ElementType type, const ConcatShape& shape, const void* x, const void* levels, void* out, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    // Packs of 4: planes of 90 x 90 divide by them and not by 8, which would take twice the registers.
    constexpr int kVec = sizeof(T) <= 4 ? 4 : 2;
    const auto run = shape.pixels() % kVec == 0 && is_aligned(out, 16) ? forward<T, kVec> : forward<T, 1>;
    run(shape, static_cast<const T*>(x), static_cast<const T*>(levels), static_cast<T*>(out), stream);
  });
}

}  // namespace pspnet_fast::cuda
