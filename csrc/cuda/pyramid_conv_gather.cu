// The gradient of q: the transpose of pyramid_conv_add.cu, for all levels in one pass over the output's gradient.
//
// A warp takes a row: it stages a run of 64 columns x 32 channels, multiplies it by U to G[term, channel], and when every
// warp of the block has its row, the block adds the rows' G to the positions that they read. A block sums a run of rows; the
// runs' sums are added in a fixed order by a second kernel, so no atomics. grad is read once, 59 MB in bfloat16 for
// 16 x 512 x 60 x 60, with 36 multiply-adds for each element; a block of bins 1 2 3 6 and a 3x3 kernel holds 58 KB of
// positions, 10 KB of U and 5 KB a warp, so that two blocks of 8 warps fit a multiprocessor. All calculated.
#include "pyramid_conv_gather_memory.cuh"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = kMostWarps * 32;
constexpr int kStep = 4;          // columns at a time
constexpr int kLaneChannels = 4;  // a lane owns 4 channels of a quarter of the terms

// The run's columns and channels of row `h` as [column, channel], zero beyond the map.
template <typename T, bool CHANNELS_LAST, int VEC>
__device__ __forceinline__ void stage_row(const ConvTables& t, const Run& run, int h, const T* grad, T* staged) {
  const Owned<CHANNELS_LAST> owned;
  const MapRow<CHANNELS_LAST> row(t, run, owned, h);
  T* to = staged + owned.column * kRunChannels + owned.channel;
  const auto move = [&](int i, int j, int64_t offset) {
    Pack<T, VEC> vector;
#pragma unroll
    for (int e = 0; e < VEC; ++e) vector.v[e] = static_cast<T>(0.0f);
    if (offset >= 0) vector = *reinterpret_cast<const Pack<T, VEC>*>(grad + offset);
    if constexpr (CHANNELS_LAST) {
      *reinterpret_cast<Pack<T, VEC>*>(to + i * kRunChannels + j) = vector;
    } else {
#pragma unroll
      for (int e = 0; e < VEC; ++e) to[(j + e) * kRunChannels + i] = vector.v[e];
    }
  };
  constexpr int kLines = 4;  // on their way at once
#pragma unroll 1
  for (int first = 0; first < kOwned; first += kLines) row.template visit_lines<VEC, kLines>(first, move);
}

// G of TERMS terms of this lane from that of `u`: Σ over columns of U · grad.
template <int TERMS, typename T>
__device__ __forceinline__ void multiply_row(
    const Acc<T>* u, const T* staged, Acc<T> (&sum)[TERMS][kLaneChannels]) {
  using Real = Acc<T>;
#pragma unroll
  for (auto& of_term : sum) {
#pragma unroll
    for (Real& s : of_term) s = Real(0);
  }
  for (int column = 0; column < kRunColumns; column += kStep) {
    Real g[kStep][kLaneChannels];
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      const T* from = staged + (column + i) * kRunChannels;
      constexpr int kVec = sizeof(T) * kLaneChannels <= 16 ? kLaneChannels : kLaneChannels / 2;
#pragma unroll
      for (int j = 0; j < kLaneChannels; j += kVec) {
        const auto part = *reinterpret_cast<const Pack<T, kVec>*>(from + j);
#pragma unroll
        for (int e = 0; e < kVec; ++e) g[i][j + e] = static_cast<Real>(part.v[e]);
      }
    }
#pragma unroll
    for (int term = 0; term < TERMS; ++term) {
      Real weights[kStep];
      read_shared(weights, u + term * kUStride + column);
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneChannels; ++j) sum[term][j] += weights[i] * g[i][j];
      }
    }
  }
}

// The row's G from its staged gradient, TERMS terms a lane at a time.
template <int TERMS, typename T>
__device__ __forceinline__ void row_gradient(
    const ConvTables& t, const Acc<T>* u, const T* staged, Acc<T>* terms) {
  using Real = Acc<T>;
  const int lane = static_cast<int>(threadIdx.x % 32), channel = lane % 8 * kLaneChannels;
  for (int pass = 0; pass < t.terms; pass += 4 * TERMS) {
    const int first = pass + lane / 8 * TERMS;
    Real sum[TERMS][kLaneChannels];
    multiply_row<TERMS>(u + first * kUStride, staged + channel, sum);
    __syncwarp();  // all have read what G may take the place of
#pragma unroll
    for (int term = 0; term < TERMS; ++term) {
      if (first + term >= t.terms) continue;
#pragma unroll
      for (int j = 0; j < kLaneChannels; ++j) terms[(first + term) * kRunChannels + channel + j] = sum[term][j];
    }
  }
}

// What row `h` gives to each row of bins, for each dy: (dy, i) of level after level.
template <typename Real>
__device__ __forceinline__ void find_row_weights(const ConvTables& t, int h, Real* weights) {
  for (int l = 0; l < t.levels; ++l) {
    const int k = t.rows[l];
    for (int i = threadIdx.x % 32; i < t.kernel_height * k; i += 32) {
      const int at = h + i / k - t.kernel_height / 2;
      const Taps taps = bilinear_taps(at, k, t.height, t.align_corners);
      weights[t.first_row[l] * t.kernel_height + i] = static_cast<Real>(weight_of(taps, i % k));
    }
  }
}

// The rows' G added to the positions, in the order of the rows: a warp owns rows of bins, a lane its channel. sum_of(p)
// is the sum of position p.
template <typename T, typename Sum>
__device__ __forceinline__ void add_rows(const ConvTables& t, const GatherShared<T>& shared, int rows, const Sum& sum_of) {
  using Real = Acc<T>;
  const int lane = static_cast<int>(threadIdx.x % 32), warps = static_cast<int>(blockDim.x / 32);
  int l = 0;
  for (int number = static_cast<int>(threadIdx.x / 32); number < t.row_terms; number += warps) {
    while (l + 1 < t.levels && number >= t.first_row[l + 1] * t.kernel_height) ++l;
    const int columns = t.columns[l], of_level = number - t.first_row[l] * t.kernel_height;
    const int dy = of_level / t.rows[l], i = of_level % t.rows[l];
    Real weight[kMostWarps];
    bool any = false;
#pragma unroll
    for (int row = 0; row < kMostWarps; ++row) {
      weight[row] = row < rows ? shared.rows[row * t.row_terms + number] : Real(0);
      any = any || weight[row] != Real(0);
    }
    if (!any) continue;
    const int first = t.first_column[l] * t.kernel_width;
    const int row_stride = static_cast<int>(GatherShared<T>::warp_bytes(t) / sizeof(Real));
    for (int dx = 0; dx < t.kernel_width; ++dx) {
      for (int j = 0; j < columns; ++j) {
        Real& sum = sum_of(((t.first_bin[l] + i * columns + j) * t.kernel_height + dy) * t.kernel_width + dx);
        Real total = sum;
        const Real* terms = shared.terms_of(t, 0) + (first + dx * columns + j) * kRunChannels + lane;
#pragma unroll
        for (int row = 0; row < kMostWarps; ++row, terms += row_stride) {
          if (weight[row] != Real(0)) total += weight[row] * *terms;
        }
        sum = total;
      }
    }
  }
}

// Position `p` of channel `channel` from what the run's pixels give to it. Not inline: the kernel's registers are for
// finite numbers.
template <typename T, bool CHANNELS_LAST>
__device__ __attribute__((noinline)) Acc<T> sum_of_readers(
    const ConvTables& t, Run run, const T* grad, int64_t channel, int p) {
  const int bin = p / (t.kernel_height * t.kernel_width), dy = p / t.kernel_width % t.kernel_height;
  int l = 0;
  while (l + 1 < t.levels && bin >= t.first_bin[l + 1]) ++l;
  const int i = (bin - t.first_bin[l]) / t.columns[l], j = (bin - t.first_bin[l]) % t.columns[l];
  Acc<T> sum = 0;
  for (int h = run.first_row; h < run.last_row; ++h) {
    const Taps row = bilinear_taps(h + dy - t.kernel_height / 2, t.rows[l], t.height, t.align_corners);
    if (row.in_padding() || (i != row.first && i != row.second)) continue;
    for (int w = run.first_column; w < min(run.first_column + kRunColumns, t.width); ++w) {
      const int at = w + p % t.kernel_width - t.kernel_width / 2;
      const Taps column = bilinear_taps(at, t.columns[l], t.width, t.align_corners);
      if (column.in_padding() || (j != column.first && j != column.second)) continue;
      const int64_t pixel = pixel_offset<CHANNELS_LAST>(t, run.image, channel, h, w);
      sum += static_cast<Acc<T>>(weight_of(row, i) * weight_of(column, j)) * static_cast<Acc<T>>(grad[pixel]);
    }
  }
  return sum;
}

template <typename T, bool CHANNELS_LAST, int VEC>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) pyramid_conv_gather_kernel(
    const __grid_constant__ ConvTables t, const ConvGrid grid, const T* grad, Acc<T>* parts) {
  using Real = Acc<T>;
  const Run run = run_of_block(t, grid);
  const GatherShared<T> shared(t, grid.warps);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t channel = run.first_channel + lane;
  const bool there = channel < t.out_channels;
  Real* global = parts + (run.part * t.batch + run.image) * t.positions * t.out_channels + channel;
  const auto staged_sum = [&](int p) -> Real& { return shared.sums[p * kRunChannels + lane]; };
  const auto global_sum = [&](int p) -> Real& { return global[p * t.out_channels]; };

  for_column_weights(t, run, [&](double weight, int term, int column) {
    shared.u[term * kUStride + column] = static_cast<Real>(weight);
  });
  for (int p = warp; p < t.positions; p += grid.warps) {
    if (grid.staged) staged_sum(p) = Real(0);
    if (!grid.staged && there) global_sum(p) = Real(0);
  }
  __syncthreads();

  for (int first = run.first_row; first < run.last_row; first += grid.warps) {
    const int rows = min(grid.warps, run.last_row - first);
    if (warp < rows) {
      T* staged = reinterpret_cast<T*>(shared.warps + warp * GatherShared<T>::warp_bytes(t));
      Real* terms = shared.terms_of(t, warp);
      stage_row<T, CHANNELS_LAST, VEC>(t, run, first + warp, grad, staged);
      find_row_weights(t, first + warp, shared.rows + warp * t.row_terms);
      __syncwarp();
      if (t.terms <= 4 * kFewLaneTerms) {
        row_gradient<kFewLaneTerms>(t, shared.u, staged, terms);
      } else {
        row_gradient<kMostLaneTerms>(t, shared.u, staged, terms);
      }
    }
    __syncthreads();
    if (grid.staged) {
      add_rows(t, shared, rows, staged_sum);
    } else if (there) {
      add_rows(t, shared, rows, global_sum);
    }
    __syncthreads();
  }
  Real special = 0;
  for (int p = warp; there && p < t.positions; p += grid.warps) {
    if (grid.staged) global_sum(p) = staged_sum(p);
    special += Real(0) * global_sum(p);
  }
  if (!__syncthreads_or(special != 0) || !there) return;
  for (int p = warp; p < t.positions; p += grid.warps) {
    global_sum(p) = sum_of_readers<T, CHANNELS_LAST>(t, run, grad, channel, p);
  }
}

// grad_q = Σ parts, in their order. A block writes a part of a row, an image of a bin. Its reads lie `out_channels`
// apart; what a block reads of a tap are neighbours, so that the cache serves it.
template <typename Real, typename Out>
__global__ void __launch_bounds__(kThreads)
    pyramid_conv_sum_kernel(const __grid_constant__ ConvTables t, const Real* parts, Out* grad_q, int count) {
  const unsigned taps = t.kernel_height * t.kernel_width, bins = t.positions / taps;
  const unsigned filters = static_cast<unsigned>(t.out_channels) * taps;
  const unsigned row_blocks = (filters + kThreads - 1) / kThreads;
  const unsigned row = blockIdx.x / row_blocks, i = blockIdx.x % row_blocks * kThreads + threadIdx.x;
  if (i >= filters) return;
  const int64_t image = row % t.batch, bin = row / t.batch, size = t.batch * bins * filters;
  const Real* from = parts + (image * t.positions + bin * taps + i % taps) * t.out_channels + i / taps;
  Real sum = 0;
  in_batches<4>(
      count, [&](int part) { return from[part * size]; }, [&](int, Real value) { sum += value; });
  grad_q[int64_t{row} * filters + i] = static_cast<Out>(sum);
}

template <typename T>
ConvGrid gather_grid(const ConvTables& t, int64_t most_bytes) {
  const int64_t position_bytes = int64_t{t.positions} * kRunChannels * static_cast<int64_t>(sizeof(Acc<T>));
  return cut_image(t, most_bytes, position_bytes, [&](int warps) { return GatherShared<T>::bytes(t, warps); });
}

}  // namespace

ConvGrid conv_gather_grid(ElementType type, const ConvTables& t, int64_t most_bytes) {
  ConvGrid grid{};
  with_element(type, [&](auto element) { grid = gather_grid<decltype(element)>(t, most_bytes); });
  return grid;
}

void launch_pyramid_conv_gather(
    ElementType type, bool channels_last, const ConvTables& t, const ConvGrid& grid, const void* grad, void* parts,
    void* grad_q, cudaStream_t stream) {
  visit_map(type, channels_last, t, grad, [&](auto element, auto layout, auto vector) {
    using T = decltype(element);
    const auto kernel = pyramid_conv_gather_kernel<T, decltype(layout)::value, decltype(vector)::value>;
    allow_dynamic_shared(kernel);
    PSPNET_FAST_LAUNCH(
        kernel, static_cast<unsigned>(grid.blocks), grid.warps * 32, grid.shared_bytes, stream, t, grid,
        static_cast<const T*>(grad), static_cast<Acc<T>*>(parts));
  });
  const int64_t taps = t.kernel_height * t.kernel_width, rows = t.batch * (t.positions / taps);
  const auto blocks = static_cast<unsigned>(rows * ((t.out_channels * taps + kThreads - 1) / kThreads));
  with_element(type, [&](auto element) {
    using Real = Acc<decltype(element)>;
    using Out = std::conditional_t<std::is_same_v<decltype(element), __half>, float, decltype(element)>;
    PSPNET_FAST_LAUNCH(
        (pyramid_conv_sum_kernel<Real, Out>), blocks, kThreads, 0, stream, t, static_cast<const Real*>(parts),
        static_cast<Out*>(grad_q), static_cast<int>(grid.parts()));
  });
}

}  // namespace pspnet_fast::cuda
