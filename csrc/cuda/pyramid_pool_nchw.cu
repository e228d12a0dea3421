// Pyramid pooling of NCHW maps, by atoms (see geometry.h): a block owns a plane.
#include <algorithm>

#include "launch.h"
#include "pyramid_pool.cuh"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = kPoolThreads;
// A map of 60 columns has work for 90 threads of 8 bytes in half precision, and for twice as many in float32. Blocks are
// small, and many: while some sum atoms and bins, others load.
constexpr int kForwardThreads = 96;
constexpr int kForwardBlocks = 14;  // of a multiprocessor at least
constexpr int kSharedBytes = 40 * 1024;  // under the 48 KiB that need no opt-in
constexpr int kUnderWay = 8;             // loads of a thread

// Shared: lines [row_intervals, tile], atoms [row_intervals, column_intervals].
// 1. A thread sums VEC columns over the rows of one interval; neighbouring threads read neighbouring columns.
// 2. Columns are summed to atoms. 3. Atoms are summed to bins.
template <typename T, int VEC>
__global__ void __launch_bounds__(kForwardThreads, kForwardBlocks)
    pyramid_pool_fwd_nchw_kernel(const __grid_constant__ PoolTables t, const T* x, T* out, int tile) {
  Acc<T>* lines = dynamic_shared<Acc<T>>();
  Acc<T>* atoms = lines + t.row_intervals * tile;
  const int64_t plane = blockIdx.x;
  const T* input = x + plane * t.height * t.width;
  const int atom_count = t.row_intervals * t.column_intervals;

  for (int a = threadIdx.x; a < atom_count; a += kForwardThreads) atoms[a] = 0;
  for (int start = 0; start < t.width; start += tile) {
    const int columns = min(tile, t.width - start);
    const int packs = columns / VEC;  // VEC divides the width and the tile
    for (int i = threadIdx.x; i < t.row_intervals * packs; i += kForwardThreads) {
      const int r = i / packs, w = i % packs * VEC, first = t.row_edge[r], rows = t.row_edge[r + 1] - first;
      const T* column = input + static_cast<int64_t>(first) * t.width + start + w;
      Acc<T> sums[VEC] = {};
      add_packs<kUnderWay>(reinterpret_cast<const Pack<T, VEC>*>(column), t.width / VEC, rows, sums);
      write_sums(lines + r * tile + w, sums);
    }
    __syncthreads();
    for (int a = threadIdx.x; a < atom_count; a += kForwardThreads) {
      const int r = a / t.column_intervals, c = a % t.column_intervals;
      const int first = max(t.column_edge[c] - start, 0), last = min(t.column_edge[c + 1] - start, columns);
      Acc<T> sum = 0;
      for (int w = first; w < last; ++w) sum += lines[r * tile + w];
      atoms[a] += sum;
    }
    __syncthreads();
  }

  for (int index = threadIdx.x; index < t.packed_bins; index += kForwardThreads) {
    const Bin bin = bin_of(t, index);
    Acc<T> sum = 0;
    for (int r = t.row_first[bin.row]; r < t.row_last[bin.row]; ++r) {
      for (int c = t.column_first[bin.column]; c < t.column_last[bin.column]; ++c) {
        sum += atoms[r * t.column_intervals + c];
      }
    }
    out[plane * t.packed_bins + index] = round_to<T>(sum / static_cast<Acc<T>>(area_of(t, bin)));
  }
}

// Shared: shares [packed_bins], atoms [row_intervals, column_intervals], then the interval of every column.
template <typename T, int VEC, bool ADD>
__global__ void __launch_bounds__(kThreads)
    pyramid_pool_bwd_nchw_kernel(const __grid_constant__ PoolTables t, const T* grad, T* grad_x) {
  Acc<T>* shares = dynamic_shared<Acc<T>>();
  Acc<T>* atoms = shares + t.packed_bins;
  uint8_t* interval_of_column = reinterpret_cast<uint8_t*>(atoms + t.row_intervals * t.column_intervals);
  const int64_t plane = blockIdx.x;

  for (int index = threadIdx.x; index < t.packed_bins; index += kThreads) {
    shares[index] = load(grad[plane * t.packed_bins + index]) / static_cast<Acc<T>>(area_of(t, bin_of(t, index)));
  }
  for (int c = 0; c < t.column_intervals; ++c) {
    for (int w = t.column_edge[c] + threadIdx.x; w < t.column_edge[c + 1]; w += kThreads) {
      interval_of_column[w] = static_cast<uint8_t>(c);
    }
  }
  __syncthreads();
  for (int a = threadIdx.x; a < t.row_intervals * t.column_intervals; a += kThreads) {
    Acc<T> sum = 0;
    for_bins_of_atom(
        t, a / t.column_intervals, a % t.column_intervals, [&](int index, Bin) { sum += shares[index]; });
    atoms[a] = sum;
  }
  __syncthreads();

  // Threads share the whole plane, not one interval after the other: that could have fewer packs than there are threads.
  const int packs = t.width / VEC;  // VEC divides the width
  const int first = static_cast<int>(threadIdx.x), count = (t.height * packs - first + kThreads - 1) / kThreads;
  auto* output = reinterpret_cast<Pack<T, VEC>*>(grad_x + plane * t.height * t.width) + first;
  int r = 0;
  write_packs<ADD>(output, kThreads, count, [&](int i, Acc<T>(&sums)[VEC]) {
    const int pack = i * kThreads + first, h = pack / packs, w = (pack - h * packs) * VEC;
    while (h >= t.row_edge[r + 1]) ++r;
#pragma unroll
    for (int j = 0; j < VEC; ++j) sums[j] = atoms[r * t.column_intervals + interval_of_column[w + j]];
  });
}

template <typename T>
void forward(const PoolTables& t, const T* x, T* out, cudaStream_t stream) {
  const int atom_bytes = t.row_intervals * t.column_intervals * static_cast<int>(sizeof(Acc<T>));
  const int line_bytes = t.row_intervals * static_cast<int>(sizeof(Acc<T>));
  const int tile = std::min(t.width, (kSharedBytes - atom_bytes) / line_bytes / 16 * 16);
  const auto planes = static_cast<unsigned>(t.batch * t.channels);
  // Wider vectors would leave threads without work.
  with_vector<T, sizeof(T) < 8 ? 8 / sizeof(T) : 1>(t.width, x, [&](auto vector) {
    PSPNET_FAST_LAUNCH(
        (pyramid_pool_fwd_nchw_kernel<T, decltype(vector)::value>), planes, kForwardThreads,
        line_bytes * tile + atom_bytes, stream, t, x, out, tile);
  });
}

template <typename T, bool ADD>
void backward(const PoolTables& t, const T* grad, T* grad_x, cudaStream_t stream) {
  const int shared_bytes =
      (t.packed_bins + t.row_intervals * t.column_intervals) * static_cast<int>(sizeof(Acc<T>)) + t.width;
  const auto planes = static_cast<unsigned>(t.batch * t.channels);
  with_vector<T>(t.width, grad_x, [&](auto vector) {
    PSPNET_FAST_LAUNCH(
        (pyramid_pool_bwd_nchw_kernel<T, decltype(vector)::value, ADD>), planes, kThreads, shared_bytes, stream, t,
        grad, grad_x);
  });
}

}  // namespace

void launch_pyramid_pool_nchw_fwd(
    ElementType type, const PoolTables& t, const void* x, void* out, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    forward(t, static_cast<const T*>(x), static_cast<T*>(out), stream);
  });
}

void launch_pyramid_pool_nchw_bwd(
    ElementType type, bool add, const PoolTables& t, const void* grad, void* grad_x, cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    const auto run = add ? backward<T, true> : backward<T, false>;
    run(t, static_cast<const T*>(grad), static_cast<T*>(grad_x), stream);
  });
}

}  // namespace pspnet_fast::cuda
