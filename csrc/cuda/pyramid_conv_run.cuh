// What adding to an image and gathering from it share: a warp goes through a run of 64 columns x 32 channels of a row, of
// which a thread owns 8 x 8.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../geometry.h"
#include "launch.h"
#include "pyramid_conv.h"
#include "pyramid_types.cuh"

namespace pspnet_fast::cuda {

constexpr int kOwned = 8;  // columns and channels of a thread

// What a block works on.
struct Run {
  int64_t image, part;
  int64_t first_channel;
  int first_column, first_row, last_row;
};

__device__ __forceinline__ Run run_of_block(const ConvTables& t, const ConvGrid& grid) {
  int64_t rest = blockIdx.x;
  const auto next = [&](int64_t count) {
    const int64_t i = rest % count;
    rest /= count;
    return i;
  };
  // Blocks in turn take neighbouring channels, which in channels_last memory are neighbours.
  Run run;
  run.first_channel = next(grid.channel_runs) * kRunChannels;
  run.part = rest % (grid.column_runs * grid.row_runs);
  run.first_column = static_cast<int>(next(grid.column_runs)) * kRunColumns;
  run.first_row = static_cast<int>(next(grid.row_runs)) * grid.run_rows;
  run.last_row = min(run.first_row + grid.run_rows, t.height);
  run.image = rest;
  return run;
}

// Where a pixel of a channel lies in the map.
template <bool CHANNELS_LAST>
__device__ __forceinline__ int64_t pixel_offset(const ConvTables& t, int64_t image, int64_t channel, int h, int w) {
  return CHANNELS_LAST ? ((image * t.height + h) * t.width + w) * t.out_channels + channel
                       : ((image * t.out_channels + channel) * t.height + h) * t.width + w;
}

// The first column and channel of a thread within the run. Lanes in turn are neighbours in memory.
template <bool CHANNELS_LAST>
struct Owned {
  int column, channel;

  __device__ Owned() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    constexpr int kChannelGroups = kRunChannels / kOwned, kColumnGroups = kRunColumns / kOwned;
    column = kOwned * (CHANNELS_LAST ? lane / kChannelGroups : lane % kColumnGroups);
    channel = kOwned * (CHANNELS_LAST ? lane % kChannelGroups : lane / kColumnGroups);
  }
};

// What a thread owns of a row of the map: kOwned lines of kOwned neighbours. Lines are columns and neighbours channels in
// channels_last memory, and the other way round in NCHW.
template <bool CHANNELS_LAST>
struct MapRow {
  int64_t first, stride;  // of the lines
  int lines, line;        // how many of them, and how much of each, the map has

  __device__ MapRow(const ConvTables& t, const Run& run, const Owned<CHANNELS_LAST>& owned, int h) {
    const int64_t w = run.first_column + owned.column, o = run.first_channel + owned.channel;
    const int columns = static_cast<int>(min(t.width - w, int64_t{kOwned}));
    const int channels = static_cast<int>(min(t.out_channels - o, int64_t{kOwned}));
    lines = CHANNELS_LAST ? columns : channels;
    line = CHANNELS_LAST ? channels : columns;
    stride = CHANNELS_LAST ? t.out_channels : int64_t{t.height} * t.width;
    first = CHANNELS_LAST ? ((run.image * t.height + h) * t.width + w) * t.out_channels + o
                          : ((run.image * t.out_channels + o) * t.height + h) * t.width + w;
  }

  // Calls visit(i, j, offset) for LINES lines: the vectors of VEC neighbours from number j of line i. One that begins
  // beyond the map has offset -1; none lies beyond it in part.
  template <int VEC, int LINES, typename Visit>
  __device__ __forceinline__ void visit_lines(int first_line, Visit visit) const {
#pragma unroll
    for (int i = first_line; i < first_line + LINES; ++i) {
#pragma unroll
      for (int j = 0; j < kOwned; j += VEC) visit(i, j, i < lines && j < line ? first + i * stride + j : int64_t{-1});
    }
  }
};

// What the taps give to one of the nodes.
__device__ __forceinline__ double weight_of(const Taps& taps, int node) {
  return (node == taps.first ? taps.first_weight : 0.0) + (node == taps.second ? taps.second_weight : 0.0);
}

// Calls visit(weight, term, column) for the block's table of columns: what each column of the run reads of each term.
// Columns beyond the image read nothing.
//
// A product by this table multiplies by many zeros, which make NaN of an infinite or NaN number: where there is one, sums
// are taken over what is read alone.
template <typename Visit>
__device__ __forceinline__ void for_column_weights(const ConvTables& t, const Run& run, Visit visit) {
  for (int l = 0; l < t.levels; ++l) {
    const int k = t.columns[l];
    for (int i = threadIdx.x; i < t.kernel_width * kRunColumns; i += blockDim.x) {
      const int column = i % kRunColumns, dx = i / kRunColumns, w = run.first_column + column;
      const int64_t at = w < t.width ? w + dx - t.kernel_width / 2 : -1;
      const Taps taps = bilinear_taps(at, k, t.width, t.align_corners);
      const int term = t.first_column[l] * t.kernel_width + dx * k;
      for (int j = 0; j < k; ++j) visit(weight_of(taps, j), term + j, column);
    }
  }
}

// ---- Host -----------------------------------------------------------------------------------------------------------

// Cuts the image: `shared_bytes` of a block with `warps` warps, of which `position_bytes` for its positions.
template <typename Bytes>
ConvGrid cut_image(const ConvTables& t, int64_t most_bytes, int64_t position_bytes, Bytes bytes_of) {
  constexpr int64_t kBlocks = 264;  // two for each of the 132 multiprocessors of an H100
  ConvGrid grid{};
  grid.channel_runs = (t.out_channels + kRunChannels - 1) / kRunChannels;
  grid.column_runs = (t.width + kRunColumns - 1) / kRunColumns;
  const int64_t before = std::max<int64_t>(t.batch * grid.channel_runs * grid.column_runs, 1);
  const int64_t wanted = std::clamp<int64_t>(kBlocks / before, 1, (t.height + kMostWarps - 1) / kMostWarps);
  grid.run_rows = static_cast<int32_t>((t.height + wanted - 1) / wanted);
  grid.row_runs = (t.height + grid.run_rows - 1) / grid.run_rows;
  grid.blocks = before * grid.row_runs;

  // The positions in shared memory if half of the warps fit as well.
  for (const bool staged : {true, false}) {
    for (int warps = kMostWarps; warps >= (staged ? kMostWarps / 2 : 1); --warps) {
      const int64_t bytes = bytes_of(warps) + (staged ? position_bytes : 0);
      if (bytes > most_bytes) continue;
      grid.warps = warps, grid.staged = staged, grid.shared_bytes = static_cast<int32_t>(bytes);
      return grid;
    }
  }
  return grid;
}

// Vectors for a map whose rows of neighbours have `line` elements: the longest of at most `most` that divides it, where
// the map is aligned.
inline int vector_length(int64_t line, const void* map, int64_t element_bytes) {
  int length = kOwned;
  while (length > 1 && (length * element_bytes > 16 || line % length != 0 ||
                        reinterpret_cast<uintptr_t>(map) % (length * element_bytes) != 0)) {
    length /= 2;
  }
  return length;
}

// Calls visit(T{}, whether channels_last, VEC), the last two as constants: vectors of 16, 8 bytes, or single elements.
template <typename Visit>
void visit_map(ElementType type, bool channels_last, const ConvTables& t, const void* map, Visit visit) {
  with_element(type, [&](auto element) {
    using T = decltype(element);
    constexpr int kFull = 16 / sizeof(T), kHalf = sizeof(T) == 2 ? 4 : 1;
    const int length = vector_length(channels_last ? t.out_channels : t.width, map, sizeof(T));
    const auto with_layout = [&](auto layout) {
      if (length >= kFull) return visit(element, layout, std::integral_constant<int, kFull>{});
      if (length >= kHalf) return visit(element, layout, std::integral_constant<int, kHalf>{});
      return visit(element, layout, std::integral_constant<int, 1>{});
    };
    return channels_last ? with_layout(std::true_type{}) : with_layout(std::false_type{});
  });
}

}  // namespace pspnet_fast::cuda
