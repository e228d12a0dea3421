// One pass of pyramid pooling, by atoms (see geometry.h): x is read once, its gradient written once, and no atomics are
// used, so the bits are the same every run.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"
#include "pyramid_pool.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBytes = 40 * 1024;  // under the 48 KiB that need no opt-in

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

template <typename T>
__device__ __forceinline__ Acc<T> load(T v) {
  return static_cast<Acc<T>>(v);
}
template <typename T>
__device__ __forceinline__ T round_to(Acc<T> v) {
  return static_cast<T>(v);
}

// VEC neighbouring elements, moved as one access of up to 16 bytes.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
  T v[VEC];
};

// The level that a packed cell belongs to, and the bin's entries in the tables of rows and columns.
struct Bin {
  int row, column;
};
__device__ __forceinline__ Bin bin_of(const PoolTables& t, int cell) {
  int entry = 0;
  for (int l = 0; l < t.levels; ++l) {
    const int k = t.bins[l];
    if (cell < k * k) return {entry + cell / k, entry + cell % k};
    cell -= k * k;
    entry += k;
  }
  return {0, 0};
}

__device__ __forceinline__ int64_t area_of(const PoolTables& t, Bin bin) {
  const int64_t rows = t.row_edge[t.row_last[bin.row]] - t.row_edge[t.row_first[bin.row]];
  return rows * (t.column_edge[t.column_last[bin.column]] - t.column_edge[t.column_first[bin.column]]);
}

// ---- NCHW: a block owns a plane -------------------------------------------------------------------------------------

// Shared: lines [row_intervals, tile], atoms [row_intervals, column_intervals].
// 1. A thread sums one column over the rows of one interval; neighbouring threads read neighbouring columns.
// 2. Columns are summed to atoms. 3. Atoms are summed to bins.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pyramid_pool_fwd_nchw_kernel(const __grid_constant__ PoolTables t, const T* x, T* out, int tile) {
  Acc<T>* lines = dynamic_shared<Acc<T>>();
  Acc<T>* atoms = lines + t.row_intervals * tile;
  const int64_t plane = blockIdx.x;
  const T* input = x + plane * t.height * t.width;
  const int atom_count = t.row_intervals * t.column_intervals;

  for (int a = threadIdx.x; a < atom_count; a += kThreads) atoms[a] = 0;
  for (int start = 0; start < t.width; start += tile) {
    const int columns = min(tile, t.width - start);
    for (int i = threadIdx.x; i < t.row_intervals * columns; i += kThreads) {
      const int r = i / columns, w = i % columns;
      Acc<T> sum = 0;
#pragma unroll 4
      for (int h = t.row_edge[r]; h < t.row_edge[r + 1]; ++h) {
        sum += load(input[static_cast<int64_t>(h) * t.width + start + w]);
      }
      lines[r * tile + w] = sum;
    }
    __syncthreads();
    for (int a = threadIdx.x; a < atom_count; a += kThreads) {
      const int r = a / t.column_intervals, c = a % t.column_intervals;
      const int first = max(t.column_edge[c] - start, 0), last = min(t.column_edge[c + 1] - start, columns);
      Acc<T> sum = 0;
      for (int w = first; w < last; ++w) sum += lines[r * tile + w];
      atoms[a] += sum;
    }
    __syncthreads();
  }

  for (int cell = threadIdx.x; cell < t.cells; cell += kThreads) {
    const Bin bin = bin_of(t, cell);
    Acc<T> sum = 0;
    for (int r = t.row_first[bin.row]; r < t.row_last[bin.row]; ++r) {
      for (int c = t.column_first[bin.column]; c < t.column_last[bin.column]; ++c) {
        sum += atoms[r * t.column_intervals + c];
      }
    }
    out[plane * t.cells + cell] = round_to<T>(sum / static_cast<Acc<T>>(area_of(t, bin)));
  }
}

// Shared: shares [cells], atoms [row_intervals, column_intervals], then the interval of every row and column.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    pyramid_pool_bwd_nchw_kernel(const __grid_constant__ PoolTables t, const T* grad, T* grad_x) {
  Acc<T>* shares = dynamic_shared<Acc<T>>();
  Acc<T>* atoms = shares + t.cells;
  uint8_t* interval_of_column = reinterpret_cast<uint8_t*>(atoms + t.row_intervals * t.column_intervals);
  const int64_t plane = blockIdx.x;

  for (int cell = threadIdx.x; cell < t.cells; cell += kThreads) {
    shares[cell] = load(grad[plane * t.cells + cell]) / static_cast<Acc<T>>(area_of(t, bin_of(t, cell)));
  }
  for (int c = 0; c < t.column_intervals; ++c) {
    for (int w = t.column_edge[c] + threadIdx.x; w < t.column_edge[c + 1]; w += kThreads) {
      interval_of_column[w] = static_cast<uint8_t>(c);
    }
  }
  __syncthreads();
  for (int a = threadIdx.x; a < t.row_intervals * t.column_intervals; a += kThreads) {
    const int r = a / t.column_intervals, c = a % t.column_intervals;
    Acc<T> sum = 0;
    for (int cell = 0; cell < t.cells; ++cell) {
      const Bin bin = bin_of(t, cell);
      if (t.row_first[bin.row] <= r && r < t.row_last[bin.row] && t.column_first[bin.column] <= c &&
          c < t.column_last[bin.column]) {
        sum += shares[cell];
      }
    }
    atoms[a] = sum;
  }
  __syncthreads();

  T* output = grad_x + plane * t.height * t.width;
  const int packs = t.width / VEC;  // VEC divides the width
  for (int r = 0; r < t.row_intervals; ++r) {
    const Acc<T>* row_atoms = atoms + r * t.column_intervals;
    const int begin = t.row_edge[r] * packs, end = t.row_edge[r + 1] * packs;
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
      const int first = i % packs * VEC;
      Pack<T, VEC> pack;
#pragma unroll
      for (int j = 0; j < VEC; ++j) pack.v[j] = round_to<T>(row_atoms[interval_of_column[first + j]]);
      reinterpret_cast<Pack<T, VEC>*>(output)[i] = pack;
    }
  }
}

// ---- channels_last: a block owns an atom and a run of channels ------------------------------------------------------

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

// A thread sums VEC channels over the cells of the atom; a warp reads 32 · VEC neighbouring channels.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    pyramid_pool_fwd_atoms_kernel(const __grid_constant__ PoolTables t, const T* x, Acc<T>* atoms) {
  const AtomBlock block = atom_block<VEC>(t);
  if (block.channel >= t.channels) return;
  Acc<T> sum[VEC] = {};
  for (int h = t.row_edge[block.r]; h < t.row_edge[block.r + 1]; ++h) {
    const T* row = x + ((block.b * t.height + h) * t.width) * t.channels + block.channel;
#pragma unroll 4
    for (int w = t.column_edge[block.c]; w < t.column_edge[block.c + 1]; ++w) {
      const Pack<T, VEC> pack = *reinterpret_cast<const Pack<T, VEC>*>(row + w * t.channels);
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum[j] += load(pack.v[j]);
    }
  }
  const int64_t atom = (block.b * t.row_intervals + block.r) * t.column_intervals + block.c;
#pragma unroll
  for (int j = 0; j < VEC; ++j) atoms[atom * t.channels + block.channel + j] = sum[j];
}

// A block sums one bin for kThreads channels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pyramid_pool_fwd_bins_kernel(const __grid_constant__ PoolTables t, const Acc<T>* atoms, T* out) {
  const int64_t runs = (t.channels + kThreads - 1) / kThreads;
  const int64_t channel = blockIdx.x % runs * kThreads + threadIdx.x;
  const int cell = static_cast<int>(blockIdx.x / runs % t.cells);
  const int64_t b = blockIdx.x / runs / t.cells;
  if (channel >= t.channels) return;
  const Bin bin = bin_of(t, cell);
  Acc<T> sum = 0;
  for (int r = t.row_first[bin.row]; r < t.row_last[bin.row]; ++r) {
    const Acc<T>* row = atoms + (b * t.row_intervals + r) * t.column_intervals * t.channels + channel;
    for (int c = t.column_first[bin.column]; c < t.column_last[bin.column]; ++c) sum += row[c * t.channels];
  }
  out[(b * t.channels + channel) * t.cells + cell] = round_to<T>(sum / static_cast<Acc<T>>(area_of(t, bin)));
}

// A thread gathers the gradient of its VEC channels on the atom, and writes it to every cell of it.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    pyramid_pool_bwd_atoms_kernel(const __grid_constant__ PoolTables t, const T* grad, T* grad_x) {
  const AtomBlock block = atom_block<VEC>(t);
  if (block.channel >= t.channels) return;
  const T* packed = grad + (block.b * t.channels + block.channel) * t.cells;
  Acc<T> sum[VEC] = {};
  for (int cell = 0; cell < t.cells; ++cell) {
    const Bin bin = bin_of(t, cell);
    if (block.r < t.row_first[bin.row] || block.r >= t.row_last[bin.row]) continue;
    if (block.c < t.column_first[bin.column] || block.c >= t.column_last[bin.column]) continue;
    const Acc<T> area = static_cast<Acc<T>>(area_of(t, bin));
#pragma unroll
    for (int j = 0; j < VEC; ++j) sum[j] += load(packed[static_cast<int64_t>(j) * t.cells + cell]) / area;
  }
  Pack<T, VEC> pack;
#pragma unroll
  for (int j = 0; j < VEC; ++j) pack.v[j] = round_to<T>(sum[j]);
  for (int h = t.row_edge[block.r]; h < t.row_edge[block.r + 1]; ++h) {
    T* row = grad_x + ((block.b * t.height + h) * t.width) * t.channels + block.channel;
    for (int w = t.column_edge[block.c]; w < t.column_edge[block.c + 1]; ++w) {
      *reinterpret_cast<Pack<T, VEC>*>(row + w * t.channels) = pack;
    }
  }
}

// ---- Launchers ------------------------------------------------------------------------------------------------------

template <int VEC>
unsigned atom_blocks(const PoolTables& t) {
  const int64_t runs = (t.channels + kThreads * VEC - 1) / (kThreads * VEC);
  return static_cast<unsigned>(t.batch * t.row_intervals * t.column_intervals * runs);
}

template <typename T, int VEC>
void forward_channels_last(const PoolTables& t, const T* x, Acc<T>* atoms, T* out, cudaStream_t stream) {
  PSPNET_FAST_LAUNCH((pyramid_pool_fwd_atoms_kernel<T, VEC>), atom_blocks<VEC>(t), kThreads, 0, stream, t, x, atoms);
  const int64_t runs = (t.channels + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(t.batch * t.cells * runs);
  PSPNET_FAST_LAUNCH((pyramid_pool_fwd_bins_kernel<T>), blocks, kThreads, 0, stream, t, atoms, out);
}

template <typename T>
void forward(bool channels_last, const PoolTables& t, const void* x, void* atoms, void* out, cudaStream_t stream) {
  const T* input = static_cast<const T*>(x);
  T* output = static_cast<T*>(out);
  if (channels_last) {
    constexpr int kVec = 16 / sizeof(T);
    Acc<T>* scratch = static_cast<Acc<T>*>(atoms);
    const bool aligned = t.channels % kVec == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    return aligned ? forward_channels_last<T, kVec>(t, input, scratch, output, stream)
                   : forward_channels_last<T, 1>(t, input, scratch, output, stream);
  }
  const int atom_bytes = t.row_intervals * t.column_intervals * static_cast<int>(sizeof(Acc<T>));
  const int line_bytes = t.row_intervals * static_cast<int>(sizeof(Acc<T>));
  const int tile = std::min(t.width, (kSharedBytes - atom_bytes) / line_bytes);
  const auto planes = static_cast<unsigned>(t.batch * t.channels);
  PSPNET_FAST_LAUNCH(
      (pyramid_pool_fwd_nchw_kernel<T>), planes, kThreads, line_bytes * tile + atom_bytes, stream, t, input, output,
      tile);
}

template <typename T>
void backward(bool channels_last, const PoolTables& t, const void* grad, void* grad_x, cudaStream_t stream) {
  constexpr int kVec = 16 / sizeof(T);
  const T* input = static_cast<const T*>(grad);
  T* output = static_cast<T*>(grad_x);
  const bool aligned = reinterpret_cast<uintptr_t>(grad_x) % 16 == 0;
  if (channels_last) {
    if (aligned && t.channels % kVec == 0) {
      PSPNET_FAST_LAUNCH(
          (pyramid_pool_bwd_atoms_kernel<T, kVec>), atom_blocks<kVec>(t), kThreads, 0, stream, t, input, output);
    } else {
      PSPNET_FAST_LAUNCH((pyramid_pool_bwd_atoms_kernel<T, 1>), atom_blocks<1>(t), kThreads, 0, stream, t, input, output);
    }
    return;
  }
  const int shared_bytes =
      (t.cells + t.row_intervals * t.column_intervals) * static_cast<int>(sizeof(Acc<T>)) + t.width;
  const auto planes = static_cast<unsigned>(t.batch * t.channels);
  if (aligned && t.width % kVec == 0) {
    PSPNET_FAST_LAUNCH(
        (pyramid_pool_bwd_nchw_kernel<T, kVec>), planes, kThreads, shared_bytes, stream, t, input, output);
  } else {
    PSPNET_FAST_LAUNCH((pyramid_pool_bwd_nchw_kernel<T, 1>), planes, kThreads, shared_bytes, stream, t, input, output);
  }
}

}  // namespace

void launch_pyramid_pool_fwd(
    PoolType type, bool channels_last, const PoolTables& t, const void* x, void* atoms, void* out, cudaStream_t stream) {
  switch (type) {
    case PoolType::f32: return forward<float>(channels_last, t, x, atoms, out, stream);
    case PoolType::f64: return forward<double>(channels_last, t, x, atoms, out, stream);
    case PoolType::f16: return forward<__half>(channels_last, t, x, atoms, out, stream);
    case PoolType::bf16: return forward<__nv_bfloat16>(channels_last, t, x, atoms, out, stream);
  }
}

void launch_pyramid_pool_bwd(
    PoolType type, bool channels_last, const PoolTables& t, const void* grad, void* grad_x, cudaStream_t stream) {
  switch (type) {
    case PoolType::f32: return backward<float>(channels_last, t, grad, grad_x, stream);
    case PoolType::f64: return backward<double>(channels_last, t, grad, grad_x, stream);
    case PoolType::f16: return backward<__half>(channels_last, t, grad, grad_x, stream);
    case PoolType::bf16: return backward<__nv_bfloat16>(channels_last, t, grad, grad_x, stream);
  }
}

}  // namespace pspnet_fast::cuda
