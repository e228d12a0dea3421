// The sum of upsampled maps, written once by one launch, in both layouts.
//
// A thread owns neighbours of a line, columns in NCHW and channels in channels_last, in a few rows. Of each level it keeps
// the two rows of bins that a row lies between, their columns interpolated, and goes down: they are loaded where a cell
// begins, and an element costs two multiply-adds a level. Where rows lie is the same for all threads of a block. For
// levels of 1/2, 1/4 and 1/8 of a map's side in bfloat16 that is about 25 instructions an element, 4 of them loads; an
// H100 has time for about 40 and 10 at the speed of its memory (all calculated).
#include "elements.cuh"
#include "launch.h"
#include "upsample_add.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 8;  // of the map, for one thread
// On a multiprocessor: for more, registers would be spilled.
template <int VEC, bool CHANNELS_LAST>
constexpr int kBlocks = VEC > 1 && !CHANNELS_LAST ? 4 : 6;

// What a row of the map is interpolated from.
template <typename Real>
struct RowTap {
  int32_t first, second;
  Real share;  // of the second
};

// taps [levels, kRows] of the rows from `first` on; behind the map, those of its last row.
template <typename Real>
__device__ __forceinline__ void find_row_taps(const UpsampleShape& shape, int first, RowTap<Real>* taps) {
  for (int i = threadIdx.x; i < shape.count * kRows; i += kThreads) {
    const BilinearAxis& rows = shape.level[i / kRows].rows;
    const int h = min(first + i % kRows, shape.height - 1), node = rows.node(h);
    taps[i] = {node, rows.next(node), rows.share<Real>(h, node)};
  }
}

// What VEC neighbours of a line read of a row of bins: as many columns in NCHW, else as many channels of one column.
template <typename T, int VEC, bool CHANNELS_LAST>
struct ColumnTaps {
  using Real = Acc<T>;
  static constexpr int kColumns = CHANNELS_LAST ? 1 : VEC;
  int32_t first[kColumns], second[kColumns];  // offsets in the row
  Real share[kColumns];

  __device__ __forceinline__ ColumnTaps(const BilinearAxis& axis, int unit, int at) {
    const int column = CHANNELS_LAST ? at / unit : at, channel = CHANNELS_LAST ? at - column * unit : 0;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int node = axis.node(column + i);
      first[i] = node * unit + channel;
      second[i] = axis.next(node) * unit + channel;
      share[i] = axis.share<Real>(column + i, node);
    }
  }

  __device__ __forceinline__ void read(const T* row, Real (&values)[VEC]) const {
    if constexpr (CHANNELS_LAST) {
      const auto near = *reinterpret_cast<const Pack<T, VEC>*>(row + first[0]);
      const auto next = *reinterpret_cast<const Pack<T, VEC>*>(row + second[0]);
#pragma unroll
      for (int j = 0; j < VEC; ++j) values[j] = (1 - share[0]) * load(near.v[j]) + share[0] * load(next.v[j]);
    } else {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        values[j] = (1 - share[j]) * load(__ldg(row + first[j])) + share[j] * load(__ldg(row + second[j]));
      }
    }
  }
};

// Adds what the rows of the map read of one level, whose bins in this plane begin at `bins`.
template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ void add_level(
    const UpsampleLevel& level, const RowTap<Acc<T>>* taps, const T* bins, int unit, int at,
    Acc<T> (&sum)[kRows][VEC]) {
  const ColumnTaps<T, VEC, CHANNELS_LAST> columns(level.columns, unit, at);
  const int64_t stride = int64_t{level.columns.nodes} * unit;
  Acc<T> top[VEC] = {}, bottom[VEC] = {};
  int held = -1;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const RowTap<Acc<T>> tap = taps[r];
    if (tap.first != held) {
      columns.read(bins + tap.first * stride, top);
      columns.read(bins + tap.second * stride, bottom);
      held = tap.first;
    }
#pragma unroll
    for (int j = 0; j < VEC; ++j) sum[r][j] += (1 - tap.share) * top[j] + tap.share * bottom[j];
  }
}

// Shared: taps [levels, kRows].
template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, kBlocks<VEC, CHANNELS_LAST>) upsample_add_fwd_kernel(
    const __grid_constant__ UpsampleShape shape, const T* levels, const T* base, T* y) {
  const int tiles = (shape.height + kRows - 1) / kRows;
  const int first = static_cast<int>(blockIdx.x % tiles) * kRows, rows = min(kRows, shape.height - first);
  RowTap<Acc<T>>* taps = dynamic_shared<RowTap<Acc<T>>>();
  find_row_taps(shape, first, taps);
  __syncthreads();

  const int64_t line = shape.line(), packs = line / VEC;
  const int64_t item = int64_t{blockIdx.x / tiles} * kThreads + threadIdx.x, plane = item / packs;
  if (plane >= shape.planes) return;
  const int at = static_cast<int>(item - plane * packs) * VEC;
  const int64_t offset = (plane * shape.height + first) * line + at;
  Acc<T> sum[kRows][VEC] = {};
  if (base != nullptr) {
    // All at once; behind the map, its last row again.
    Pack<T, VEC> packs[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      packs[r] = *reinterpret_cast<const Pack<T, VEC>*>(base + offset + min(r, rows - 1) * line);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum[r][j] = load(packs[r].v[j]);
    }
  }
  const T* bins = levels + plane * shape.packed_bins * shape.unit;
  for (int l = 0; l < shape.count; ++l) {
    const UpsampleLevel& level = shape.level[l];
    add_level<T, VEC, CHANNELS_LAST>(
        level, taps + l * kRows, bins + int64_t{level.first_bin} * shape.unit, shape.unit, at, sum);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    Pack<T, VEC> pack;
#pragma unroll
    for (int j = 0; j < VEC; ++j) pack.v[j] = round_to<T>(sum[r][j]);
    *reinterpret_cast<Pack<T, VEC>*>(y + offset + r * line) = pack;
  }
}

template <typename T, int VEC>
void forward(
    bool channels_last, const UpsampleShape& shape, const T* levels, const T* base, T* y, cudaStream_t stream) {
  const int64_t runs = (shape.planes * (shape.line() / VEC) + kThreads - 1) / kThreads;
  const int64_t tiles = (shape.height + kRows - 1) / kRows;
  const auto kernel = channels_last ? upsample_add_fwd_kernel<T, VEC, true> : upsample_add_fwd_kernel<T, VEC, false>;
  PSPNET_FAST_LAUNCH(
      kernel, static_cast<unsigned>(runs * tiles), kThreads,
      shape.count * kRows * static_cast<int>(sizeof(RowTap<Acc<T>>)), stream, shape, levels, base, y);
}

}  // namespace

void launch_upsample_add_fwd(
    ElementType type, bool channels_last, const UpsampleShape& shape, const void* levels, const void* base, void* y,
    cudaStream_t stream) {
  with_element(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = sizeof(T) <= 4 ? 4 : 2;
    constexpr size_t kBytes = sizeof(Pack<T, kVec>);
    const bool packs = (channels_last ? shape.unit : shape.width) % kVec == 0 && is_aligned(levels, kBytes) &&
                       is_aligned(base, kBytes) && is_aligned(y, kBytes);
    const auto run = packs ? forward<T, kVec> : forward<T, 1>;
    run(channels_last, shape, static_cast<const T*>(levels), static_cast<const T*>(base), static_cast<T*>(y), stream);
  });
}

}  // namespace pspnet_fast::cuda
