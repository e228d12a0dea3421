// The levels' terms added into the convolution's output: rows, then columns, interpolated in registers and shared memory.
//
// A warp takes a row: R[term, channel] from the block's q, two rows of bins for each dy, then y += U · R with 8 columns x
// 8 channels a thread, 4 vectors of shared memory for 64 multiply-adds. y is read and written once: 118 MB in bfloat16 for
// 16 x 512 x 60 x 60, and 36 multiply-adds for each of its elements, 2.1 GFLOP. A block of bins 1 2 3 6 and a 3x3 kernel
// holds 59 KB of q, 9 KB of U and 4.6 KB of R a warp: two blocks of 8 warps fit a multiprocessor. All calculated.
#include "pyramid_conv_run.cuh"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = kMostWarps * 32;
constexpr int kQStride = kRunChannels + 1;  // lanes that store several taps of a channel meet few banks
constexpr int kUnderWay = 8;                // loads of a thread

// What a row reads of one level for one dy: two rows of bins.
template <typename Real>
struct alignas(sizeof(Real) == 4 ? 16 : 8) RowTap {
  int32_t top, bottom;
  Real top_weight, bottom_weight;
};

// A block's shared memory, in this order.
template <typename Real>
struct AddShared {
  Real* u;              // [terms, kRunColumns]
  Real* r;              // [warps, terms, kRunChannels]
  ChannelNorm<Real>* norm;  // [kRunChannels]
  RowTap<Real>* taps;   // [warps, levels · kernel_height]
  Real* q;              // [positions, kQStride] where staged

  __host__ __device__ static int64_t bytes(const ConvTables& t, int warps) {
    const int64_t values = t.terms * (kRunColumns + int64_t{warps} * kRunChannels);
    const int64_t taps = int64_t{warps} * t.levels * t.kernel_height;
    return values * sizeof(Real) + kRunChannels * sizeof(ChannelNorm<Real>) + (taps * sizeof(RowTap<Real>) + 15) / 16 * 16;
  }
  __device__ AddShared(const ConvTables& t, int warps) {
    u = dynamic_shared<Real>();
    r = u + t.terms * kRunColumns;
    norm = reinterpret_cast<ChannelNorm<Real>*>(r + warps * t.terms * kRunChannels);
    taps = reinterpret_cast<RowTap<Real>*>(norm + kRunChannels);
    q = reinterpret_cast<Real*>(reinterpret_cast<char*>(u) + bytes(t, warps));
  }
};

// Everything that a block's rows share. Returns whether the block's q is finite.
template <typename T>
__device__ __forceinline__ bool stage_block(
    const ConvTables& t, const ConvGrid& grid, const Run& run, const Acc<T>* q, const Norm& norm,
    const AddShared<Acc<T>>& shared) {
  using Real = Acc<T>;
  for_column_weights(t, run, [&](double weight, int term, int column) {
    shared.u[term * kRunColumns + column] = static_cast<Real>(weight);
  });
  if (norm.mean != nullptr && threadIdx.x < kRunChannels && run.first_channel + threadIdx.x < t.out_channels) {
    shared.norm[threadIdx.x] = channel_norm<T>(norm, run.first_channel + threadIdx.x);
  }
  // A warp takes a bin: the taps of the block's channels are neighbours.
  const int taps = t.kernel_height * t.kernel_width, lane = static_cast<int>(threadIdx.x % 32);
  const int there = static_cast<int>(min(t.out_channels - run.first_channel, int64_t{kRunChannels})) * taps;
  Real special = 0;
  for (int bin = threadIdx.x / 32; bin * taps < t.positions; bin += grid.warps) {
    const Real* from = q + ((bin * t.batch + run.image) * t.out_channels + run.first_channel) * taps;
    Real* to = shared.q + bin * taps * kQStride;
    in_batches<kUnderWay>(
        taps, [&](int i) { return i * 32 + lane < there ? from[i * 32 + lane] : Real(0); },
        [&](int i, Real value) {
          special += Real(0) * value;
          const unsigned at = i * 32 + lane, channel = at / static_cast<unsigned>(taps);
          if (grid.staged) to[(at - channel * taps) * kQStride + channel] = value;
        });
  }
  return !__syncthreads_or(special != 0);
}

template <typename Real>
__device__ __forceinline__ void find_row_taps(const ConvTables& t, int h, RowTap<Real>* taps) {
  for (int i = threadIdx.x % 32; i < t.levels * t.kernel_height; i += 32) {
    const int l = i / t.kernel_height, at = h + i % t.kernel_height - t.kernel_height / 2;
    const Taps row = bilinear_taps(at, t.rows[l], t.height, t.align_corners);
    taps[i] = {row.first, row.second, static_cast<Real>(row.first_weight), static_cast<Real>(row.second_weight)};
  }
}

// Where the q of a channel lies, and its neighbours by bin and by tap.
template <typename Real, typename Index>
struct ChannelQ {
  const Real* data;
  Index bin, tap;
};

// R of a row for the channel of this lane, over DYS rows of the kernel from `first_dy`. Rows in the padding read
// nothing: their weights are 0, which is enough where q is finite.
template <int DYS, bool FINITE, typename Real, typename Index>
__device__ __forceinline__ void row_terms(
    const ConvTables& t, const RowTap<Real>* taps, int first_dy, Real* r, const ChannelQ<Real, Index>& q) {
  for (int l = 0; l < t.levels; ++l) {
    const int columns = t.columns[l];
    RowTap<Real> tap[DYS];
    Index top[DYS], bottom[DYS];  // the first bin of either row
#pragma unroll
    for (int i = 0; i < DYS; ++i) {
      tap[i] = taps[l * t.kernel_height + first_dy + i];
      const Index of_dy = (first_dy + i) * t.kernel_width * q.tap;
      top[i] = of_dy + (t.first_bin[l] + tap[i].top * columns) * q.bin;
      bottom[i] = of_dy + (t.first_bin[l] + tap[i].bottom * columns) * q.bin;
    }
    Real* to = r + t.first_column[l] * t.kernel_width * kRunChannels;
    for (int dx = 0; dx < t.kernel_width; ++dx) {
      for (int j = 0; j < columns; ++j, to += kRunChannels) {
        const Index at = j * q.bin + dx * q.tap;
        Real sum = first_dy == 0 ? Real(0) : *to;
#pragma unroll
        for (int i = 0; i < DYS; ++i) {
          if (!FINITE && tap[i].top_weight == 0 && tap[i].bottom_weight == 0) continue;
          sum += tap[i].top_weight * q.data[top[i] + at] + tap[i].bottom_weight * q.data[bottom[i] + at];
        }
        *to = sum;
      }
    }
  }
}

template <typename Real, typename Index>
__device__ __forceinline__ void all_row_terms(
    const ConvTables& t, bool finite, const RowTap<Real>* taps, Real* r, const ChannelQ<Real, Index>& q) {
  if (finite && t.kernel_height == 3) return row_terms<3, true>(t, taps, 0, r, q);
  for (int dy = 0; dy < t.kernel_height; ++dy) row_terms<1, false>(t, taps, dy, r, q);
}

// What the columns of row `h` read of a channel's R, without the zeros of U. Not inline: the kernel's registers are for
// finite numbers.
template <typename T, bool CHANNELS_LAST>
__device__ __attribute__((noinline)) void add_reads(
    const ConvTables& t, Run run, int h, int64_t channel, const Acc<T>* r, const ChannelNorm<Acc<T>>* norm, T* y) {
  for (int w = run.first_column; w < min(run.first_column + kRunColumns, t.width); ++w) {
    Acc<T> sum = 0;
    for (int l = 0; l < t.levels; ++l) {
      for (int dx = 0; dx < t.kernel_width; ++dx) {
        const Taps taps = bilinear_taps(w + dx - t.kernel_width / 2, t.columns[l], t.width, t.align_corners);
        if (taps.in_padding()) continue;
        const Acc<T>* of_dx = r + (t.first_column[l] * t.kernel_width + dx * t.columns[l]) * kRunChannels;
        sum += static_cast<Acc<T>>(taps.first_weight) * of_dx[taps.first * kRunChannels];
        sum += static_cast<Acc<T>>(taps.second_weight) * of_dx[taps.second * kRunChannels];
      }
    }
    T* to = y + pixel_offset<CHANNELS_LAST>(t, run.image, channel, h, w);
    sum += static_cast<Acc<T>>(*to);
    *to = static_cast<T>(norm != nullptr ? (*norm)(sum) : sum);
  }
}

// The same number, unknown to the compiler: what follows from it is computed again rather than kept in registers, which
// have no room for it.
__device__ __forceinline__ int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

template <typename T, bool CHANNELS_LAST, int VEC>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) pyramid_conv_add_kernel(
    const __grid_constant__ ConvTables t, const ConvGrid grid, const Acc<T>* q, T* y, const Norm norm) {
  using Real = Acc<T>;
  const Run run = run_of_block(t, grid);
  const AddShared<Real> shared(t, grid.warps);
  const bool finite = stage_block<T>(t, grid, run, q, norm, shared);

  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const Owned<CHANNELS_LAST> owned;
  Real* r = shared.r + warp * t.terms * kRunChannels;
  RowTap<Real>* taps = shared.taps + warp * t.levels * t.kernel_height;
  const int64_t channel = run.first_channel + lane;
  const int kernel_taps = t.kernel_height * t.kernel_width;
  const ChannelQ<Real, int> staged_q = {shared.q + lane, kernel_taps * kQStride, kQStride};
  // A lane without a channel reads the last one; nothing is made of it.
  const int64_t known = min(channel, t.out_channels - 1);
  const ChannelQ<Real, int64_t> global_q = {
      q + (run.image * t.out_channels + known) * kernel_taps, t.batch * t.out_channels * kernel_taps, 1};

  for (int h = run.first_row + warp; h < run.last_row; h += grid.warps) {
    // All vectors of y are under way at once, and where registers allow for it while R is computed; single elements, of
    // which there are too many, a line at a time behind the product. Those beyond the map read its first numbers, for
    // nothing: a load under a condition would be waited for.
    constexpr bool kVectors = VEC > 1 || sizeof(T) == 8, kEarly = kVectors && sizeof(T) * VEC == 16 && sizeof(T) == 2;
    const MapRow<CHANNELS_LAST> row(t, run, owned, h);
    Pack<T, VEC> vectors[kOwned][kOwned / VEC];
    const auto read_y = [&] {
      row.template visit_lines<VEC, kOwned>(0, [&](int i, int j, int64_t offset) {
        vectors[i][j / VEC] = *reinterpret_cast<const Pack<T, VEC>*>(y + max(offset, int64_t{0}));
      });
    };
    if constexpr (kEarly) read_y();
    find_row_taps(t, h, taps);
    __syncwarp();
    if (grid.staged) {
      all_row_terms(t, finite, taps, r + lane, staged_q);
    } else {
      all_row_terms(t, finite, taps, r + lane, global_q);
    }
    __syncwarp();

    if (!finite) {
      const ChannelNorm<Real>* own = norm.mean != nullptr ? shared.norm + lane : nullptr;
      if (channel < t.out_channels) add_reads<T, CHANNELS_LAST>(t, run, h, channel, r + lane, own, y);
      __syncwarp();
      continue;
    }
    if constexpr (kVectors && !kEarly) read_y();
    Real sum[kOwned][kOwned];  // [column][channel]
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
        Real& first = CHANNELS_LAST ? sum[i][j] : sum[j][i];
        first = kVectors ? static_cast<Real>(vectors[i][j / VEC].v[j % VEC]) : Real(0);
      }
    }
#pragma unroll 2
    for (int term = 0; term < t.terms; ++term) {
      Real u[kOwned], v[kOwned];
      read_shared(u, shared.u + term * kRunColumns + owned.column);
      read_shared(v, r + term * kRunChannels + owned.channel);
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
#pragma unroll
        for (int j = 0; j < kOwned; ++j) sum[i][j] += u[i] * v[j];
      }
    }
    const MapRow<CHANNELS_LAST> to(t, run, owned, anew(h));
#pragma unroll
    for (int line = 0; line < kOwned; ++line) {
      if constexpr (!kVectors) {
        to.template visit_lines<VEC, 1>(line, [&](int i, int j, int64_t offset) {
          if (offset >= 0) (CHANNELS_LAST ? sum[i][j] : sum[j][i]) += static_cast<Real>(y[offset]);
        });
      }
      to.template visit_lines<VEC, 1>(line, [&](int i, int j, int64_t offset) {
        if (offset < 0) return;
        Pack<T, VEC> vector;
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
          const int column = CHANNELS_LAST ? i : j + e, channel = CHANNELS_LAST ? j + e : i;
          const Real value = sum[column][channel];
          vector.v[e] = static_cast<T>(norm.mean != nullptr ? shared.norm[owned.channel + channel](value) : value);
        }
        *reinterpret_cast<Pack<T, VEC>*>(y + offset) = vector;
      });
    }
    __syncwarp();  // R has been read
  }
}

template <typename Real>
ConvGrid add_grid(const ConvTables& t, int64_t most_bytes) {
  const int64_t position_bytes = int64_t{t.positions} * kQStride * static_cast<int64_t>(sizeof(Real));
  return cut_image(t, most_bytes, position_bytes, [&](int warps) { return AddShared<Real>::bytes(t, warps); });
}

}  // namespace

ConvGrid conv_add_grid(ElementType type, const ConvTables& t, int64_t most_bytes) {
  return type == ElementType::f64 ? add_grid<double>(t, most_bytes) : add_grid<float>(t, most_bytes);
}

void launch_pyramid_conv_add(
    ElementType type, bool channels_last, const ConvTables& t, const ConvGrid& grid, const void* q, void* y,
    const Norm& norm, cudaStream_t stream) {
  visit_map(type, channels_last, t, y, [&](auto element, auto layout, auto vector) {
    using T = decltype(element);
    const auto kernel = pyramid_conv_add_kernel<T, decltype(layout)::value, decltype(vector)::value>;
    allow_dynamic_shared(kernel);
    PSPNET_FAST_LAUNCH(
        kernel, static_cast<unsigned>(grid.blocks), grid.warps * 32, grid.shared_bytes, stream, t, grid,
        static_cast<const Acc<T>*>(q), static_cast<T*>(y), norm);
  });
}

}  // namespace pspnet_fast::cuda
