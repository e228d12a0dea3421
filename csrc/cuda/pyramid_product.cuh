// The kernel of pyramid_product.h: a block computes a tile of 64 x 64 of one of the products, tensor cores multiply half
// precision (float32 sums), and fused multiply-adds float32 (never TF32) and double.
//
// A step of a training batch of 16 (C_k = O = 512, 3x3, bins 1 2 3 6) takes three products of 3.8 GFLOP. A chunk of
// 64 x 64 x 32 moves 8 KiB to shared memory for 262 kFLOP, 16 values a thread, and the next chunk is on its way in
// registers meanwhile. All calculated, not measured.
#pragma once

#include <mma.h>

#include "launch.h"
#include "pyramid_types.cuh"

namespace pspnet_fast::cuda {

constexpr int kTile = 64, kDepth = 32, kProductThreads = 256;
constexpr int kPerThread = kTile * kDepth / kProductThreads;  // values of a side
constexpr int kResultStride = kTile + 4;                      // tensor cores store rows at multiples of 4

template <typename T>
constexpr bool kTensorCores = sizeof(T) == 2;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // Turing's know float16 alone
template <>
constexpr bool kTensorCores<__nv_bfloat16> = false;
#endif
// Rows of 80 bytes for tensor cores; an odd number of words for scalar reads down a column.
template <typename T>
constexpr int kSideStride = kTensorCores<T> ? kDepth + 8 : kDepth + 1;

// What the sides A and B are multiplied as. Sums of gradients come in float32, of which float16 has not the range.
template <typename A, typename B>
struct FactorOf {
  using type = B;
};
template <>
struct FactorOf<float, __half> {
  using type = float;
};

__device__ __forceinline__ int64_t offset_of(int i, Axis axis, Strides strides) {
  return i < axis.size ? i / axis.inner * strides.outer + i % axis.inner * strides.inner : -1;
}

// Where the rows, and one chunk of the depth, of a side begin; -1 beyond the axis.
struct Offsets {
  int64_t row[kTile], depth[kDepth];
};

template <typename T>
struct ProductShared {
  union {
    struct {
      alignas(32) T a[kTile * kSideStride<T>];
      alignas(32) T b[kTile * kSideStride<T>];
    } side;
    alignas(32) Acc<T> result[kTile * kResultStride];
  };
  Offsets a, b;
  int64_t c_row[kTile], c_column[kTile];
};

// ---- Global memory -> registers -> shared memory --------------------------------------------------------------------

// The values of a chunk that are this thread's: vector number i begins at (row, depth), neighbours along one of them.
template <int VEC, bool ALONG_DEPTH>
struct Place {
  int row, depth;

  __device__ __forceinline__ explicit Place(int i) {
    const int number = static_cast<int>(threadIdx.x) + i * kProductThreads;
    constexpr int kLine = (ALONG_DEPTH ? kDepth : kTile) / VEC;
    row = ALONG_DEPTH ? number / kLine : number % kLine * VEC;
    depth = ALONG_DEPTH ? number % kLine * VEC : number / kLine;
  }
};

template <typename T, int VEC, bool ALONG_DEPTH>
__device__ __forceinline__ void fetch_as(T (&values)[kPerThread], const T* data, const Offsets& offsets) {
#pragma unroll
  for (int i = 0; i < kPerThread / VEC; ++i) {
    const Place<VEC, ALONG_DEPTH> place(i);
    const int64_t row = offsets.row[place.row], depth = offsets.depth[place.depth];
    Pack<T, VEC> vector{};
    if (row >= 0 && depth >= 0) vector = *reinterpret_cast<const Pack<T, VEC>*>(data + row + depth);
#pragma unroll
    for (int j = 0; j < VEC; ++j) values[i * VEC + j] = vector.v[j];
  }
}

template <typename Factor, typename T, int VEC, bool ALONG_DEPTH>
__device__ __forceinline__ void put_as(Factor* side, const T (&values)[kPerThread]) {
#pragma unroll
  for (int i = 0; i < kPerThread / VEC; ++i) {
    const Place<VEC, ALONG_DEPTH> place(i);
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const int row = place.row + (ALONG_DEPTH ? 0 : j), depth = place.depth + (ALONG_DEPTH ? j : 0);
      side[row * kSideStride<Factor> + depth] = static_cast<Factor>(values[i * VEC + j]);
    }
  }
}

// A side that lies in memory as it is.
template <typename T>
struct InPlace {
  static constexpr int kVec = 16 / sizeof(T);

  // All threads of the block call it together.
  __device__ __forceinline__ static void fetch(T (&values)[kPerThread], const Side& side, const Offsets& offsets) {
    const T* data = static_cast<const T*>(side.data);
    switch (side.reading) {
      case Reading::along_depth: return fetch_as<T, 1, true>(values, data, offsets);
      case Reading::along_rows: return fetch_as<T, 1, false>(values, data, offsets);
      case Reading::packs_along_depth: return fetch_as<T, kVec, true>(values, data, offsets);
      case Reading::packs_along_rows: return fetch_as<T, kVec, false>(values, data, offsets);
    }
  }
  template <typename Factor>
  __device__ __forceinline__ static void put(Factor* to, const T (&values)[kPerThread], Reading reading) {
    switch (reading) {
      case Reading::along_depth: return put_as<Factor, T, 1, true>(to, values);
      case Reading::along_rows: return put_as<Factor, T, 1, false>(to, values);
      case Reading::packs_along_depth: return put_as<Factor, T, kVec, true>(to, values);
      case Reading::packs_along_rows: return put_as<Factor, T, kVec, false>(to, values);
    }
  }
};

// ---- Shared memory -> products --------------------------------------------------------------------------------------

// A warp owns 16 x 32 of the tile.
template <typename T>
struct TensorTile {
  template <typename Use, typename Layout>
  using Operand = nvcuda::wmma::fragment<Use, 16, 16, 16, T, Layout>;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum[2];

  __device__ TensorTile() {
    for (auto& s : sum) nvcuda::wmma::fill_fragment(s, 0.0f);
  }
  __device__ static int row() { return threadIdx.x / 32 % 4 * 16; }
  __device__ static int column() { return threadIdx.x / 128 * 32; }

  __device__ __forceinline__ void add(const T* a, const T* b) {
    constexpr int kStride = kSideStride<T>;
    Operand<nvcuda::wmma::matrix_a, nvcuda::wmma::row_major> left;
    Operand<nvcuda::wmma::matrix_b, nvcuda::wmma::col_major> right;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      nvcuda::wmma::load_matrix_sync(left, a + row() * kStride + k, kStride);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        nvcuda::wmma::load_matrix_sync(right, b + (column() + 16 * i) * kStride + k, kStride);
        nvcuda::wmma::mma_sync(sum[i], left, right, sum[i]);
      }
    }
  }
  __device__ __forceinline__ void store(float* result) const {
    for (int i = 0; i < 2; ++i) {
      float* to = result + row() * kResultStride + column() + 16 * i;
      nvcuda::wmma::store_matrix_sync(to, sum[i], kResultStride, nvcuda::wmma::mem_row_major);
    }
  }
};

// A thread owns 4 x 4 of the tile, 16 rows and columns apart, so that neighbours read neighbouring banks.
template <typename T>
struct ScalarTile {
  using Real = Acc<T>;
  Real sum[4][4] = {};

  __device__ static int row(int i) { return threadIdx.x / 16 + 16 * i; }
  __device__ static int column(int j) { return threadIdx.x % 16 + 16 * j; }

  __device__ __forceinline__ void add(const T* a, const T* b) {
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      Real left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = static_cast<Real>(a[row(i) * kSideStride<T> + k]);
        right[i] = static_cast<Real>(b[column(i) * kSideStride<T> + k]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += left[i] * right[j];
      }
    }
  }
  __device__ __forceinline__ void store(Real* result) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) result[row(i) * kResultStride + column(j)] = sum[i][j];
    }
  }
};

template <typename T, bool TENSOR_CORES>
struct TileOf {
  using type = ScalarTile<T>;
};
template <typename T>
struct TileOf<T, true> {
  using type = TensorTile<T>;
};

// ---- The tile -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void place_chunk(const Product& p, int first, Offsets& a, Offsets& b) {
  const int k = static_cast<int>(threadIdx.x);
  if (k >= kDepth) return;
  a.depth[k] = offset_of(first + k, p.k, p.a.depth);
  b.depth[k] = offset_of(first + k, p.k, p.b.depth);
}

// A side of A by one of B, which `source` says how to read.
template <typename A, typename B, typename Out, typename Source>
__device__ __forceinline__ void product_tile(const Product& p, int block, const Source& source) {
  using Factor = typename FactorOf<A, B>::type;
  __shared__ ProductShared<Factor> shared;
  const int columns = (p.n.size + kTile - 1) / kTile;  // blocks in turn share rows of a, the larger side
  const int first_row = block / columns * kTile, first_column = block % columns * kTile;
  if (threadIdx.x < kTile) {
    const int m = first_row + static_cast<int>(threadIdx.x), n = first_column + static_cast<int>(threadIdx.x);
    shared.a.row[threadIdx.x] = offset_of(m, p.m, p.a.row);
    shared.b.row[threadIdx.x] = offset_of(n, p.n, p.b.row);
    shared.c_row[threadIdx.x] = offset_of(m, p.m, p.c_row);
    shared.c_column[threadIdx.x] = offset_of(n, p.n, p.c_column);
  }
  place_chunk(p, 0, shared.a, shared.b);
  __syncthreads();

  typename TileOf<Factor, kTensorCores<Factor>>::type tile;
  A a[kPerThread];
  B b[kPerThread];
  InPlace<A>::fetch(a, p.a, shared.a);
  source.fetch(b, p.b, shared.b);
  __syncthreads();
  for (int first = 0; first < p.k.size; first += kDepth) {
    InPlace<A>::put(shared.side.a, a, p.a.reading);
    InPlace<B>::put(shared.side.b, b, p.b.reading);
    place_chunk(p, first + kDepth, shared.a, shared.b);
    __syncthreads();
    InPlace<A>::fetch(a, p.a, shared.a);  // all beyond the axis after the last chunk
    source.fetch(b, p.b, shared.b);
    tile.add(shared.side.a, shared.side.b);
    __syncthreads();
  }
  tile.store(shared.result);
  __syncthreads();

  Out* c = static_cast<Out*>(p.c);
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kProductThreads) {
    const int row = p.c_along_rows ? i % kTile : i / kTile, column = p.c_along_rows ? i / kTile : i % kTile;
    if (shared.c_row[row] < 0 || shared.c_column[column] < 0) continue;
    Acc<B> value = shared.result[row * kResultStride + column];
    if (p.norm.mean != nullptr) value = channel_norm<B>(p.norm, first_row + row)(value);
    c[shared.c_row[row] + shared.c_column[column]] = static_cast<Out>(value);
  }
}

// The product that a block works on; `block` becomes the number of its tile.
__device__ __forceinline__ int product_of_block(const Products& products, int& block) {
  int which = 0;
  while (which + 1 < products.count && block >= products.of[which + 1].first_block) ++which;
  block -= products.of[which].first_block;
  return which;
}

// Numbers the blocks of all products; returns how many there are.
inline unsigned number_blocks(Products& products) {
  int64_t blocks = 0;
  for (int i = 0; i < products.count; ++i) {
    Product& p = products.of[i];
    p.first_block = static_cast<int32_t>(blocks);
    blocks += (int64_t{p.m.size} + kTile - 1) / kTile * ((p.n.size + kTile - 1) / kTile);
  }
  return static_cast<unsigned>(blocks);
}

}  // namespace pspnet_fast::cuda
