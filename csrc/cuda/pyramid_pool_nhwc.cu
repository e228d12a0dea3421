// Pyramid pooling of channels_last maps, by atoms (see geometry.h): a block owns an atom and a run of channels.
#include "launch.h"
#include "pyramid_pool.cuh"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = kPoolThreads;
constexpr int kBinChannels = 32, kBinTile = 64, kBinThreads = 128;
constexpr int kForwardBlocks = 4;  // of a multiprocessor at least: registers for loads under way
constexpr int kBinBlocks = 8;  // as kForwardBlocks: a launch of 2048 channels and 16 images is one wave of a large GPU
constexpr int kStagedAtoms = kMaxEdges;  // a row of atoms at least
constexpr int kUnderWay = 4;        // loads of a thread
constexpr int kBackwardBlocks = 2;  // as kForwardBlocks

// Block index -> (image, atom, run of kThreads · VEC channels).
struct AtomBlock {
  int64_t b;
  int r, c;
  int64_t channel;  // of this thread
};
template <int VEC>
__device__ __forceinline__ AtomBlock atom_block(const PoolTables& t) {
  const int64_t runs = (t.channels + kThreads * VEC - 1) / (kThreads * VEC);
  const int64_t atom = blockIdx.x / runs;
  const int atom_count = t.row_intervals * t.column_intervals;
  const int a = static_cast<int>(atom % atom_count);
  return {
      atom / atom_count,
      a / t.column_intervals,
      a % t.column_intervals,
      (blockIdx.x % runs * kThreads + threadIdx.x) * VEC,
  };
}

// A thread sums VEC channels over the pixels of the atom; a warp reads 32 · VEC neighbouring channels.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    pyramid_pool_fwd_nhwc_kernel(const __grid_constant__ PoolTables t, const T* x, Acc<T>* atoms) {
  const AtomBlock block = atom_block<VEC>(t);
  if (block.channel >= t.channels) return;
  const int first = t.column_edge[block.c], count = t.column_edge[block.c + 1] - first;
  Acc<T> sum[VEC] = {};
  for (int h = t.row_edge[block.r]; h < t.row_edge[block.r + 1]; ++h) {
    const T* row = x + ((block.b * t.height + h) * t.width + first) * t.channels + block.channel;
    add_packs<kUnderWay>(reinterpret_cast<const Pack<T, VEC>*>(row), t.channels / VEC, count, sum);
  }
  const int64_t atom = (block.b * t.row_intervals + block.r) * t.column_intervals + block.c;
  store_sums(atoms + atom * t.channels + block.channel, sum);
}

// The atoms of a bin, and its pixels.
template <typename Real>
struct BinAtoms {
  int row_first, row_last, column_first, column_last;
  Real area;
};

// A block sums some bins of some channels. Rows of atoms are read once into shared memory, lanes along the channels; the
// sums change places there, as lanes lie along the bins when they are written.
template <typename T>
__global__ void __launch_bounds__(kBinThreads, kBinBlocks)
    pyramid_pool_fwd_bins_kernel(const __grid_constant__ PoolTables t, const Acc<T>* atoms, T* out) {
  __shared__ Acc<T> staged[kStagedAtoms][kBinChannels], sums[kBinChannels][kBinTile + 1];
  __shared__ BinAtoms<Acc<T>> of_bin[kBinTile];
  constexpr int kWarps = kBinThreads / kBinChannels;
  const int64_t runs = (t.channels + kBinChannels - 1) / kBinChannels;
  const int64_t tiles = (t.packed_bins + kBinTile - 1) / kBinTile;
  const int64_t first_channel = blockIdx.x % runs * kBinChannels, b = blockIdx.x / runs / tiles;
  const int first_bin = static_cast<int>(blockIdx.x / runs % tiles) * kBinTile;
  const int channels = static_cast<int>(min(t.channels - first_channel, int64_t{kBinChannels}));
  const int bins = min(t.packed_bins - first_bin, kBinTile);
  const int lane = static_cast<int>(threadIdx.x % kBinChannels), warp = static_cast<int>(threadIdx.x / kBinChannels);
  const bool mine = lane < channels;

  // A thread looks up a bin: for a warp to do so for each of its bins would take most of the kernel's instructions.
  for (int i = threadIdx.x; i < bins; i += kBinThreads) {
    const Bin bin = bin_of(t, first_bin + i);
    of_bin[i] = {t.row_first[bin.row], t.row_last[bin.row], t.column_first[bin.column], t.column_last[bin.column],
                 static_cast<Acc<T>>(area_of(t, bin))};
  }
  for (int i = warp; i < bins; i += kWarps) sums[lane][i] = 0;
  const int rows_at_once = kStagedAtoms / t.column_intervals;
  for (int top = 0; top < t.row_intervals; top += rows_at_once) {
    const int end = min(top + rows_at_once, t.row_intervals), count = (end - top) * t.column_intervals;
    const Acc<T>* from = atoms + (b * t.row_intervals + top) * t.column_intervals * t.channels + first_channel + lane;
    __syncthreads();
    in_batches<kUnderWay>(
        mine ? (count - warp + kWarps - 1) / kWarps : 0,
        [&](int i) { return from[(warp + i * kWarps) * t.channels]; },
        [&](int i, Acc<T> sum) { staged[warp + i * kWarps][lane] = sum; });
    __syncthreads();
    for (int i = warp; i < bins && mine; i += kWarps) {
      const BinAtoms<Acc<T>> bin = of_bin[i];
      const int columns = bin.column_last - bin.column_first;
      Acc<T> sum = sums[lane][i];
      for (int r = max(bin.row_first, top); r < min(bin.row_last, end); ++r) {
        const Acc<T>* atom = &staged[(r - top) * t.column_intervals + bin.column_first][lane];
#pragma unroll 2
        for (int c = 0; c < columns; ++c) sum += atom[c * kBinChannels];
      }
      sums[lane][i] = end < t.row_intervals ? sum : sum / bin.area;
    }
  }
  __syncthreads();
  for (int channel = warp; channel < channels; channel += kWarps) {
    T* to = out + (b * t.channels + first_channel + channel) * t.packed_bins + first_bin;
    for (int i = lane; i < bins; i += kBinChannels) to[i] = round_to<T>(sums[channel][i]);
  }
}

// A thread gathers the gradient of its VEC channels on the atom, and writes it to every pixel of it, or adds it there.
template <typename T, int VEC, bool ADD>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    pyramid_pool_bwd_nhwc_kernel(const __grid_constant__ PoolTables t, const T* grad, T* grad_x) {
  const AtomBlock block = atom_block<VEC>(t);
  if (block.channel >= t.channels) return;
  const T* grads = grad + block.b * t.packed_bins * t.channels + block.channel;
  Acc<T> sum[VEC] = {};
  for_bins_of_atom(t, block.r, block.c, [&](int index, Bin bin) {
    const Acc<T> area = static_cast<Acc<T>>(area_of(t, bin));
    const Pack<T, VEC> pack = *reinterpret_cast<const Pack<T, VEC>*>(grads + index * t.channels);
#pragma unroll
    for (int j = 0; j < VEC; ++j) sum[j] += load(pack.v[j]) / area;
  });

  const int first = t.column_edge[block.c], count = t.column_edge[block.c + 1] - first;
  for (int h = t.row_edge[block.r]; h < t.row_edge[block.r + 1]; ++h) {
    T* run = grad_x + ((block.b * t.height + h) * t.width + first) * t.channels + block.channel;
    write_packs<ADD>(
        reinterpret_cast<Pack<T, VEC>*>(run), t.channels / VEC, count, [&](int, Acc<T>(&sums)[VEC]) {
#pragma unroll
          for (int j = 0; j < VEC; ++j) sums[j] = sum[j];
        });
  }
}

template <int VEC>
unsigned atom_blocks(const PoolTables& t) {
  const int64_t runs = (t.channels + kThreads * VEC - 1) / (kThreads * VEC);
  return static_cast<unsigned>(t.batch * t.row_intervals * t.column_intervals * runs);
}

template <typename T, int VEC>
void forward(const PoolTables& t, const T* x, Acc<T>* atoms, T* out, cudaStream_t stream) {
  PSPNET_FAST_LAUNCH((pyramid_pool_fwd_nhwc_kernel<T, VEC>), atom_blocks<VEC>(t), kThreads, 0, stream, t, x, atoms);
  const int64_t runs = (t.channels + kBinChannels - 1) / kBinChannels;
  const int64_t tiles = (t.packed_bins + kBinTile - 1) / kBinTile;
  const auto blocks = static_cast<unsigned>(t.batch * tiles * runs);
  PSPNET_FAST_LAUNCH((pyramid_pool_fwd_bins_kernel<T>), blocks, kBinThreads, 0, stream, t, atoms, out);
}

template <typename T, int VEC, bool ADD>
void backward(const PoolTables& t, const T* grad, T* grad_x, cudaStream_t stream) {
  PSPNET_FAST_LAUNCH(
      (pyramid_pool_bwd_nhwc_kernel<T, VEC, ADD>), atom_blocks<VEC>(t), kThreads, 0, stream, t, grad, grad_x);
}

}  // namespace

void launch_pyramid_pool_nhwc_fwd(
    ElementType type, const PoolTables& t, const void* x, void* atoms, void* out, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const bool aligned = t.channels % kVec == 0 && is_aligned(x, 16);
    const auto run = aligned ? forward<T, kVec> : forward<T, 1>;
    run(t, static_cast<const T*>(x), static_cast<Acc<T>*>(atoms), static_cast<T*>(out), stream);
  });
}

void launch_pyramid_pool_nhwc_bwd(
    ElementType type, bool add, const PoolTables& t, const void* grad, void* grad_x, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const bool aligned = t.channels % kVec == 0 && is_aligned(grad, 16) && is_aligned(grad_x, 16);
    const auto vector = add ? backward<T, kVec, true> : backward<T, kVec, false>;
    const auto scalar = add ? backward<T, 1, true> : backward<T, 1, false>;
    (aligned ? vector : scalar)(t, static_cast<const T*>(grad), static_cast<T*>(grad_x), stream);
  });
}

}  // namespace pspnet_fast::cuda
