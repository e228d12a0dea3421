// The levels of a pyramid in evaluation mode, behind the pooling kernel: one launch projects the bins of every level,
// normalises and rectifies each value as it is written. Of a channels_last map it sums the bins from atoms on their way
// into shared memory, so that pooled bins never exist.
//
// For bins 1 2 3 6 and C = 2048, Ck = 512 the weights are 8.4 MB in bfloat16, read once for each 64 bins of a level, and
// the products 0.1 GFLOP an image. Calculated.
#include "pyramid_levels.h"
#include "pyramid_pool.cuh"
#include "pyramid_product.cuh"

namespace pspnet_fast::cuda {
namespace {

constexpr int kWarps = kProductThreads / 32;
constexpr int kFewBins = 4;   // of a tile: then all warps sum each of them

// The side of pooled bins: a value is the mean of a bin, summed from its atoms and rounded to the map's type. Rows of the
// side are the bins of one level, image after image, and lanes lie along channels.
template <typename T>
struct BinMeans {
  const PoolTables& t;
  const Acc<T>* atoms;
  int level, first_line;  // Σk of the levels before
  Acc<T> (*shared)[kFewBins][32];  // [kWarps], sums of a part of the atoms

  __device__ int64_t area(int64_t row) const { return area_of(t, bin_of_row(row)); }
  __device__ Bin bin_of_row(int64_t row) const {
    const int k = t.bins[level], index = static_cast<int>(row % (k * k));
    return {first_line + index / k, first_line + index % k};
  }

  // The sum of every `step`-th atom of a bin, from number `first`.
  __device__ Acc<T> sum(int64_t row, int64_t channel, int first, int step) const {
    const Bin bin = bin_of_row(row);
    const int64_t image = row / (t.bins[level] * t.bins[level]);
    const int r = t.row_first[bin.row], c = t.column_first[bin.column];
    const int columns = t.column_last[bin.column] - c, count = (t.row_last[bin.row] - r) * columns;
    const Acc<T>* from = atoms + ((image * t.row_intervals + r) * t.column_intervals + c) * t.channels + channel;
    Acc<T> total = 0;
#pragma unroll 4
    for (int i = first; i < count; i += step) {
      total += from[(i / columns * t.column_intervals + i % columns) * t.channels];
    }
    return total;
  }

  __device__ void fetch(T (&values)[kPerThread], const Side&, const Offsets& offsets) const {
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const int64_t channel = offsets.depth[lane];
    const bool few = offsets.row[kFewBins] < 0;
    if (few) {
      for (int row = 0; row < kFewBins; ++row) {
        const bool there = offsets.row[row] >= 0 && channel >= 0;
        shared[warp][row][lane] = there ? sum(offsets.row[row], channel, warp, kWarps) : Acc<T>(0);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t row = offsets.row[Place<1, true>(i).row];
      Acc<T> total = 0;
      if (row >= 0 && channel >= 0) {
        if (few) {
          for (int part = 0; part < kWarps; ++part) total += shared[part][Place<1, true>(i).row][lane];
        } else {
          total = sum(row, channel, 0, 1);
        }
        total /= static_cast<Acc<T>>(area(row));
      }
      values[i] = round_to<T>(total);
    }
  }
  __device__ static void put(T* to, const T (&values)[kPerThread], Reading) { put_as<T, 1, true>(to, values); }
};

template <typename T, bool ATOMS>
__global__ void __launch_bounds__(kProductThreads) pyramid_levels_kernel(
    const __grid_constant__ PoolTables t, const Acc<T>* atoms, const __grid_constant__ Products products) {
  int block = static_cast<int>(blockIdx.x);
  const int which = product_of_block(products, block);
  if constexpr (ATOMS) {
    __shared__ Acc<T> sums[kWarps][kFewBins][32];
    int first_line = 0;
    for (int l = 0; l < which; ++l) first_line += t.bins[l];
    product_tile<T, T, T>(products.of[which], block, BinMeans<T>{t, atoms, which, first_line, sums});
  } else {
    product_tile<T, T, T>(products.of[which], block, InPlace<T>{});
  }
}

}  // namespace

void launch_pyramid_levels(
    ElementType type, const PoolTables& tables, const void* atoms, Products products, cudaStream_t stream) {
  const unsigned blocks = number_blocks(products);
  with_element(type, [&](auto element) {
    using T = decltype(element);
    const auto kernel = atoms != nullptr ? pyramid_levels_kernel<T, true> : pyramid_levels_kernel<T, false>;
    PSPNET_FAST_LAUNCH(
        kernel, blocks, kProductThreads, 0, stream, tables, static_cast<const Acc<T>*>(atoms), products);
  });
}

}  // namespace pspnet_fast::cuda
