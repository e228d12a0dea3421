// The levels of a pyramid in evaluation mode, behind the pooling and the projections of the levels, which cuBLAS takes:
// one launch normalises and rectifies the projected bins of every level, rounds them and puts them in their places.
#include "pyramid_levels.h"

#include "launch.h"
#include "pyramid_types.cuh"

namespace pspnet_fast::cuda {
namespace {

constexpr int kTile = 32, kWarps = 8;

// A block takes 32 channels of 32 bins of an image. Lanes lie along channels where it reads and along bins where it
// writes.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) pyramid_levels_kernel(
    const __grid_constant__ LevelNorms norms, int64_t batch, int64_t channels, const Acc<T>* projected, T* out) {
  __shared__ Acc<T> tile[kTile][kTile + 1];
  const int bins = norms.bins_to[norms.levels - 1], lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int64_t bin_tiles = (bins + kTile - 1) / kTile, channel_tiles = (channels + kTile - 1) / kTile;
  const int first_bin = static_cast<int>(blockIdx.x % bin_tiles) * kTile;
  const int64_t first_channel = blockIdx.x / bin_tiles % channel_tiles * kTile;
  const int64_t image = blockIdx.x / bin_tiles / channel_tiles;

  const int64_t channel = first_channel + lane;
  const int count = min(kTile, bins - first_bin);
  int level = 0;
  in_batches<kTile / kWarps>(
      channel < channels ? (count - warp + kWarps - 1) / kWarps : 0,
      [&](int i) { return projected[((first_bin + warp + i * kWarps) * batch + image) * channels + channel]; },
      [&](int i, Acc<T> value) {
        const int bin = warp + i * kWarps;
        while (first_bin + bin >= norms.bins_to[level]) ++level;
        tile[bin][lane] = channel_norm<T>(norms.norm[level], channel)(value);
      });
  __syncthreads();
  if (lane >= count) return;
  for (int i = warp; i < min(channels - first_channel, int64_t{kTile}); i += kWarps) {
    out[(image * channels + first_channel + i) * bins + first_bin + lane] = round_to<T>(tile[lane][i]);
  }
}

}  // namespace

void launch_pyramid_levels(
    ElementType type, const LevelNorms& norms, int64_t batch, int64_t channels, const void* projected, void* out,
    cudaStream_t stream) {
  const int64_t bin_tiles = (norms.bins_to[norms.levels - 1] + kTile - 1) / kTile;
  const auto blocks = static_cast<unsigned>(batch * bin_tiles * ((channels + kTile - 1) / kTile));
  with_element(type, [&](auto element) {
    using T = decltype(element);
    PSPNET_FAST_LAUNCH(
        (pyramid_levels_kernel<T>), blocks, kWarps * 32, 0, stream, norms, batch, channels,
        static_cast<const Acc<T>*>(projected), static_cast<T*>(out));
  });
}

}  // namespace pspnet_fast::cuda
