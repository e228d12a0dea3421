// What the pooling kernels of both layouts share: the bins of a level, the bins of an atom, and writing a gradient.
//
// x is read once, its gradient written once, and no atomics are used, so the bits are the same every run.
#pragma once

#include <type_traits>

#include "elements.cuh"
#include "pyramid_pool.h"

namespace pspnet_fast::cuda {

constexpr int kPoolThreads = 256;

// The level that a packed bin belongs to, and the bin's entries in the tables of rows and columns.
struct Bin {
  int row, column;
};
__device__ __forceinline__ Bin bin_of(const PoolTables& t, int packed) {
  int entry = 0;
  for (int l = 0; l < t.levels; ++l) {
    const int k = t.bins[l];
    if (packed < k * k) return {entry + packed / k, entry + packed % k};
    packed -= k * k;
    entry += k;
  }
  return {0, 0};
}

__device__ __forceinline__ int64_t area_of(const PoolTables& t, Bin bin) {
  const int64_t rows = t.row_edge[t.row_last[bin.row]] - t.row_edge[t.row_first[bin.row]];
  return rows * (t.column_edge[t.column_last[bin.column]] - t.column_edge[t.column_first[bin.column]]);
}

// Calls `visit(packed, bin)` for the bins that hold the atom (r, c). Rows and columns are looked through one after the
// other, about Σk entries of each, not the Σk² bins.
template <typename Visit>
__device__ __forceinline__ void for_bins_of_atom(const PoolTables& t, int r, int c, Visit visit) {
  for (int l = 0, entry = 0, packed = 0; l < t.levels; ++l) {
    const int k = t.bins[l];
    for (int row = entry; row < entry + k; ++row, packed += k) {
      if (r < t.row_first[row] || r >= t.row_last[row]) continue;
      for (int j = 0; j < k; ++j) {
        const int column = entry + j;
        if (t.column_first[column] <= c && c < t.column_last[column]) visit(packed + j, Bin{row, column});
      }
    }
    entry += k;
  }
}

// Adds `count` packs, `stride` apart, to `sums`, one after the other.
template <int UNDER_WAY, typename T, int VEC>
__device__ __forceinline__ void add_packs(
    const Pack<T, VEC>* from, int64_t stride, int count, Acc<T> (&sums)[VEC]) {
  in_batches<UNDER_WAY>(
      count, [&](int i) { return from[i * stride]; },
      [&](int, const Pack<T, VEC>& pack) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) sums[j] += load(pack.v[j]);
      });
}

// Writes VEC sums to shared memory, 16 bytes at once (to global memory: store_sums). `to` is aligned as far as VEC of
// them are, up to that.
template <typename Real, int VEC>
__device__ __forceinline__ void write_sums(Real* to, const Real (&sums)[VEC]) {
  constexpr int kVec = VEC * sizeof(Real) > 16 ? 16 / static_cast<int>(sizeof(Real)) : VEC;
#pragma unroll
  for (int i = 0; i < VEC; i += kVec) {
    Pack<Real, kVec> pack;
#pragma unroll
    for (int j = 0; j < kVec; ++j) pack.v[j] = sums[i + j];
    *reinterpret_cast<Pack<Real, kVec>*>(to + i) = pack;
  }
}

// Calls `visit(VEC)`, a constant: the most neighbours, of at most 16 bytes, that divide a line of the map at `data`.
template <typename T, int VEC = 16 / sizeof(T), typename Visit>
void with_vector(int64_t line, const void* data, Visit visit) {
  if constexpr (VEC > 1) {
    if (line % VEC != 0 || !is_aligned(data, VEC * sizeof(T))) return with_vector<T, VEC / 2>(line, data, visit);
  }
  visit(std::integral_constant<int, VEC>{});
}

// Writes `count` packs that lie `stride` apart, or adds to what is there; `value(i, sums)` gives the i-th. Additions are
// rounded once, and several loads are under way before the first store: a compiler cannot know that they do not meet.
template <bool ADD, typename T, int VEC, typename Value>
__device__ __forceinline__ void write_packs(Pack<T, VEC>* output, int64_t stride, int count, Value value) {
  constexpr int kUnderWay = ADD ? 4 : 1;
  for (int begin = 0; begin < count; begin += kUnderWay) {
    Pack<T, VEC> packs[kUnderWay];
    if constexpr (ADD) {
#pragma unroll
      for (int i = 0; i < kUnderWay; ++i) {
        if (begin + i < count) packs[i] = output[(begin + i) * stride];
      }
    }
#pragma unroll
    for (int i = 0; i < kUnderWay; ++i) {
      if (begin + i >= count) break;
      Acc<T> sums[VEC];
      value(begin + i, sums);
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        if constexpr (ADD) sums[j] += load(packs[i].v[j]);
        packs[i].v[j] = round_to<T>(sums[j]);
      }
      output[(begin + i) * stride] = packs[i];
    }
  }
}

}  // namespace pspnet_fast::cuda
