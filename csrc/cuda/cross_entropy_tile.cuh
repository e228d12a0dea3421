// What a warp holds of a tile (see cross_entropy.h): its place, and the way of logits and gradients through shared
// memory.
#pragma once

#include <type_traits>

#include "cross_entropy.h"
#include "cross_entropy_math.cuh"
#include "elements.cuh"

namespace pspnet_fast::cuda {

constexpr int kChunk = 8;              // classes that are in shared memory together
constexpr int kRowNodes = kCells + 1;  // nodes round the cells of a row
constexpr int kSlots = 2 * kRowNodes;  // those on top of the cells and those below
// Four more than a multiple of the 32 banks: 8 classes of 4 nodes, which is how channels_last is read and written, are
// in banks of their own, and so are the lanes.
constexpr int kNodePitch = 68;
constexpr int kCornerPitch = 4 * 32 + 4;

struct Tile {
  int image, column, row;   // of tiles
  int first_row, end_row;   // of cells
};

struct CellRow {
  int cell, begin, end;  // output rows
};

// A row of nodes in global memory: the one on top or at the bottom of a row of cells.
template <typename Real>
struct NodeRow {
  Real* at;  // node 0 of class 0 of the image, or null: not there
  int64_t stride_c, stride_w;
  bool add;  // to what is there, rather than write
};

// Shared memory of one warp: where the layout in global memory is changed for that of the lanes; and what would take up
// registers through loops that do not need it. Arrays that end in [32] are the lanes' own.
template <typename R, int kPixels, int kPartPixels>
struct WarpMemory {
  using Real = R;
  using Mask = std::conditional_t<(kPartPixels > 32), unsigned long long, unsigned>;  // of the pixels of a part

  CrossEntropyHead head;
  Tile tile;
  CellRow row;                  // at work
  NodeRow<Real> top, bottom;    // of it
  int64_t offset[kSlots];       // of a node in an image
  int column_begin[kRowNodes];  // first output column of every cell, and of the next
  double loss[32], divisor[32];
  Real own, share, class_sum;  // 1 - ε, ε / C and Σ_c w_c (cross_entropy_labels.cuh)

  Real nodes[kChunk][kNodePitch];  // logits of the chunk: slot row · kRowNodes + node
  Real largest[kSlots];            // logit of a node, of all classes
  int measured;                    // row of cells whose top nodes' largest logits are known
  Real shift[kSlots];              // what is subtracted from a node's logits
  bool finite[2], narrow[2];       // whether logits of a row of nodes are (narrow: for the progression)
  Real smooth[4][32];              // sums of smoothing (cross_entropy_labels.cuh)
  uint16_t codes[kPixels][32];     // labels of pixels, and
  Mask merged[kPixels / kPartPixels][32];  // those that are merged (cross_entropy_labels.cuh)
  union {
    Real corners[kChunk][kCornerPitch];  // gradients of the chunk: corner · 32 + lane
    Real pixels[kPartPixels][32];        // between sums and weights
  };
};

// A lane is a cell. Cell 0 of the tile is there for the nodes on its right; its pixels are another tile's to count,
// but for the very first cell.
struct Lane {
  unsigned number;

  __device__ __forceinline__ int cell() const { return static_cast<int>(number); }

  // For work on 8 classes of 4 nodes.
  __device__ __forceinline__ int node() const { return static_cast<int>(number / kChunk); }
  __device__ __forceinline__ int chunk_class() const { return static_cast<int>(number % kChunk); }
};
template <typename Memory>
__device__ __forceinline__ bool counts(const Memory& memory, Lane lane) {
  return lane.number > 0 || memory.tile.column == 0;
}

// Where the nodes of the row of cells are, relative to their image.
template <typename Memory>
__device__ __forceinline__ void place_nodes(Memory& memory, Lane lane) {
  const CrossEntropyHead& head = memory.head;
  const int cell = memory.tile.column * kOwnedNodes - 1;
  __syncwarp();
  for (int slot = lane.cell(); slot < kSlots; slot += 32) {
    const int64_t h = head.rows.node(memory.row.cell + slot / kRowNodes);
    const int64_t w = head.columns.node(cell + slot % kRowNodes);
    memory.offset[slot] = h * head.logits.stride_h + w * head.logits.stride_w;
    memory.shift[slot] = 0;
  }
  __syncwarp();
}

// ---- Logits ---------------------------------------------------------------------------------------------------------

template <typename Real>
__device__ __forceinline__ Real load_logit(const LogitMap& logits, int64_t at) {
  if constexpr (sizeof(Real) == 8) return load_as<Real>(static_cast<const double*>(logits.data) + at);
  if (logits.type == ElementType::f32) return load_as<Real>(static_cast<const float*>(logits.data) + at);
  if (logits.type == ElementType::f16) return load_as<Real>(static_cast<const __half*>(logits.data) + at);
  return load_as<Real>(static_cast<const __nv_bfloat16*>(logits.data) + at);
}

// A chunk of `count` classes of ROWS rows of nodes from `first_row` on, from global to shared memory, as
// logit · scale - shift (rounded once). `image` is at the first class. Neighbouring lanes read neighbouring nodes, or in
// channels_last neighbouring classes.
template <int ROWS, typename T, typename Memory>
__device__ __forceinline__ void stage_from(
    Memory& memory, const T* image, Lane lane, int count, int first_row, typename Memory::Real scale) {
  using Real = typename Memory::Real;
  const int64_t stride_c = memory.head.logits.stride_c;
  const int c_of_lane = lane.chunk_class(), first = first_row * kRowNodes;
  const auto put = [&](int c, int slot, T logit) {
    memory.nodes[c][slot] = fma(static_cast<Real>(logit), scale, -memory.shift[slot]);
  };
  if (stride_c == 1) {
    constexpr int kStep = 32 / kChunk;
    const int node = first + lane.node(), nodes = c_of_lane < count ? ROWS * kRowNodes - lane.node() : 0;
    in_batches<8>(
        (nodes + kStep - 1) / kStep, [&](int i) { return __ldg(image + memory.offset[node + i * kStep] + c_of_lane); },
        [&](int i, T logit) { put(c_of_lane, node + i * kStep, logit); });
    return;
  }
  // All of a lane's loads are under way before it uses the first: a warp waits for memory once a chunk.
  const auto load_if = [](bool there, const T* at) { return there ? __ldg(at) : static_cast<T>(0.0f); };
  T logits[ROWS][kChunk];  // of nodes 0 to 31
  const auto load_classes = [&](auto is_there) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const T* from = image + memory.offset[first + row * kRowNodes + lane.cell()];
#pragma unroll
      for (int c = 0; c < kChunk; ++c, from += stride_c) logits[row][c] = load_if(is_there(c), from);
    }
  };
  const bool has_last = lane.node() < ROWS && c_of_lane < count;  // a class of node 32
  const int last = first + (has_last ? lane.node() : 0) * kRowNodes + kCells;
  const T logit_of_last = load_if(has_last, image + memory.offset[last] + c_of_lane * stride_c);
  if (count == kChunk) {  // loads without conditions take fewer instructions
    load_classes([](int) { return true; });
  } else {
    load_classes([&](int c) { return c < count; });
  }
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int c = 0; c < kChunk; ++c) put(c, first + row * kRowNodes + lane.cell(), logits[row][c]);
  }
  if (has_last) put(c_of_lane, last, logit_of_last);
}

// Calls visit(first, count) for the chunks of classes, each in shared memory by then: ROWS rows of nodes from
// `first_row` on.
template <int ROWS, typename Memory, typename Visit>
__device__ __forceinline__ void for_chunks(
    Memory& memory, int classes, Lane lane, int first_row, typename Memory::Real scale, Visit visit) {
  for (int first = 0; first < classes; first += kChunk) {
    const LogitMap& logits = memory.head.logits;
    const int count = min(kChunk, classes - first);
    const int64_t at = memory.tile.image * logits.stride_b + first * logits.stride_c;
    const auto stage = [&](const auto* data) { stage_from<ROWS>(memory, data + at, lane, count, first_row, scale); };
    __syncwarp();
    if constexpr (sizeof(scale) == 8) {
      stage(static_cast<const double*>(logits.data));
    } else if (logits.type == ElementType::f32) {
      stage(static_cast<const float*>(logits.data));
    } else if (logits.type == ElementType::f16) {
      stage(static_cast<const __half*>(logits.data));
    } else {
      stage(static_cast<const __nv_bfloat16*>(logits.data));
    }
    __syncwarp();
    visit(first, count);
  }
}

// ---- Gradients ------------------------------------------------------------------------------------------------------

// The sum of the corners at node `node` of a tile, counted from 1: of the cells on its right and its left. The last
// node of a row is also the right one of the cell on its right.
template <typename Memory>
__device__ __forceinline__ typename Memory::Real sum_corners(
    const Memory& memory, int c, int row, int node, bool last_node) {
  const auto* left = memory.corners[c] + 2 * row * 32 + node;
  const auto* right = left + 32;
  const auto sum = left[0] + right[-1];
  return last_node ? sum + right[0] : sum;
}

// And in the last row of nodes, those of both rows.
template <typename Memory>
__device__ __forceinline__ typename Memory::Real sum_node(
    const Memory& memory, int c, int row, int node, bool last_node, bool last_row) {
  const auto sum = sum_corners(memory, c, row, node, last_node);
  return last_row ? sum + sum_corners(memory, c, 1, node, last_node) : sum;
}

// The gradients of `count` classes from `first` to a tile's nodes in both rows. All lanes have written their corners.
template <typename Memory>
__device__ __forceinline__ void emit_nodes(Memory& memory, Lane lane, int first, int count) {
  using Real = typename Memory::Real;
  const int first_node = memory.tile.column * kOwnedNodes, nodes = memory.head.columns.nodes;
  const int owned = min(kOwnedNodes, nodes - first_node);
  const bool last_row = memory.bottom.at == nullptr;
  __syncwarp();
#pragma unroll 1
  for (int row = 0; row < 2; ++row) {
    const NodeRow<Real>& to = row == 0 ? memory.top : memory.bottom;
    if (to.at == nullptr) continue;
    const int64_t stride_c = to.stride_c;
    const bool add = to.add;
    if (stride_c == 1) {  // neighbouring lanes write neighbouring classes
      const int c = lane.chunk_class();
#pragma unroll 1
      for (int i = lane.node(); i < owned && c < count; i += 32 / kChunk) {
        Real* at = to.at + (first + c) + (first_node + i) * to.stride_w;
        const Real sum = sum_node(memory, c, row, i + 1, first_node + i == nodes - 1, last_row);
        __stcg(at, add ? __ldcg(at) + sum : sum);
      }
      continue;
    }
    const int node = first_node + lane.cell() - 1;
    if (lane.cell() == 0 || lane.cell() > owned) continue;
    Real* at = to.at + first * stride_c + node * to.stride_w;
    constexpr int kBatch = kChunk / 2;  // of loads that wait for nothing
#pragma unroll
    for (int batch = 0; batch < kChunk; batch += kBatch) {
      const Real* from = at;
      Real before[kBatch];
#pragma unroll
      for (int c = 0; c < kBatch; ++c, from += stride_c) before[c] = add && batch + c < count ? __ldcg(from) : Real(0);
#pragma unroll
      for (int c = 0; c < kBatch; ++c, at += stride_c) {
        if (batch + c >= count) break;
        __stcg(at, before[c] + sum_node(memory, batch + c, row, lane.cell(), node == nodes - 1, last_row));
      }
    }
  }
}

}  // namespace pspnet_fast::cuda
