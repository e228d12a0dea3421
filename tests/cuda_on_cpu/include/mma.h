// nvcuda::wmma for half precision and 16 x 16 x 16: what a warp multiplies together, on the CPU.
//
// A fragment's lanes hold eight elements each, in an order that a program must not rely on (on a GPU it is another one).
// Every call is a meeting of the whole warp; between its two halves one lane does the work of all.
#pragma once

#include <algorithm>
#include <array>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment {
  static_assert(m == 16 && n == 16 && k == 16, "only 16 x 16 x 16 is covered");
  static_assert(sizeof(T) == 2 || std::is_same_v<Use, accumulator>, "operands are __half or __nv_bfloat16");
  static_assert(!std::is_same_v<T, __nv_bfloat16> || !std::is_same_v<Use, accumulator>, "bfloat16 is summed in float");
  static constexpr int num_elements = 8;
  T x[num_elements];
};

}  // namespace nvcuda::wmma

namespace cuda_on_cpu {

using Matrix = std::array<float, 256>;  // row-major

// What a lane holds at a meeting.
template <typename... Fragments>
struct Brought {
  const void* address;
  unsigned stride;
  std::tuple<Fragments*...> fragments;
};

// `work(lanes)` runs once, when all 32 lanes have come with what they hold; nobody goes on before it is done.
template <typename B, typename Work>
void with_whole_warp(const char* call, B& own, Where where, Work work) {
  const unsigned lane = block.current->lane(), base = block.current->number - lane;
  const auto address = reinterpret_cast<uint64_t>(&own);
  meet(call, kFullMask, address, kEveryLane, where);
  unsigned present = 0;
  for_lanes(kFullMask, [&](const Thread&) { ++present; });
  if (present < warpSize) {
    fail(std::string(call) + " (" + describe(where) + ") by a warp of which only " + std::to_string(present) +
         " lanes are there");
  }
  if (lane == 0) {
    std::array<B*, warpSize> lanes;
    for (unsigned i = 0; i < warpSize; ++i) lanes[i] = reinterpret_cast<B*>(block.threads[base + i]->sent);
    work(lanes);
  }
  meet(call, kFullMask, address, kEveryLane, where);
}

// The lanes must agree on where a matrix lies; rows begin at multiples of 16 bytes, the matrix at one of 32.
template <typename T, typename B>
void check_matrix(const char* call, const std::array<B*, warpSize>& lanes, Where where) {
  const auto reject = [&](const std::string& why) { fail(std::string(call) + " (" + describe(where) + ")" + why); };
  for (const B* other : lanes) {
    if (other->address != lanes[0]->address || other->stride != lanes[0]->stride) reject(": lanes name two matrices");
  }
  if (reinterpret_cast<uintptr_t>(lanes[0]->address) % 32 != 0) reject(" of a pointer that is not aligned to 32 bytes");
  if (lanes[0]->stride * sizeof(T) % 16 != 0) reject(" with a stride of " + std::to_string(lanes[0]->stride));
}

// Element number i, counted row after row, is element i % 8 of lane i / 8.
template <size_t I, typename B>
Matrix gather(const std::array<B*, warpSize>& lanes) {
  Matrix matrix;
  for (int i = 0; i < 256; ++i) matrix[i] = static_cast<float>(std::get<I>(lanes[i / 8]->fragments)->x[i % 8]);
  return matrix;
}

template <bool ROW_MAJOR, typename T, typename F>
void load_matrix(const char* call, F& to, const T* from, unsigned stride, Where where) {
  Brought<F> own{from, stride, {&to}};
  with_whole_warp(call, own, where, [&](const auto& lanes) {
    check_matrix<T>(call, lanes, where);
    for (unsigned i = 0; i < 256; ++i) {
      const unsigned row = i / 16, column = i % 16;
      std::get<0>(lanes[i / 8]->fragments)->x[i % 8] = from[ROW_MAJOR ? row * stride + column : column * stride + row];
    }
  });
}

}  // namespace cuda_on_cpu

namespace nvcuda::wmma {

template <typename Use, typename T, typename Layout>
void load_matrix_sync(
    fragment<Use, 16, 16, 16, T, Layout>& to, const T* from, unsigned stride,
    std::source_location where = std::source_location::current()) {
  constexpr bool kRowMajor = std::is_same_v<Layout, row_major>;
  cuda_on_cpu::load_matrix<kRowMajor>("load_matrix_sync", to, from, stride, where);
}

template <typename T>
void fill_fragment(fragment<accumulator, 16, 16, 16, T>& to, T value) {
  std::fill_n(to.x, to.num_elements, value);
}

// In float32, a row by a column in ascending order; a GPU sums in another.
template <typename T, typename LayoutA, typename LayoutB, typename Sum>
void mma_sync(
    fragment<accumulator, 16, 16, 16, Sum>& d, const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
    const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b, const fragment<accumulator, 16, 16, 16, Sum>& c,
    std::source_location where = std::source_location::current()) {
  using namespace cuda_on_cpu;
  Brought<fragment<accumulator, 16, 16, 16, Sum>, const fragment<matrix_a, 16, 16, 16, T, LayoutA>,
          const fragment<matrix_b, 16, 16, 16, T, LayoutB>, const fragment<accumulator, 16, 16, 16, Sum>>
      own{nullptr, 0, {&d, &a, &b, &c}};
  with_whole_warp("mma_sync", own, where, [](const auto& lanes) {
    const Matrix left = gather<1>(lanes), right = gather<2>(lanes);
    Matrix sum = gather<3>(lanes);
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 16; ++column) {
          sum[row * 16 + column] += left[row * 16 + k] * right[k * 16 + column];
        }
      }
    }
    for (int i = 0; i < 256; ++i) std::get<0>(lanes[i / 8]->fragments)->x[i % 8] = static_cast<Sum>(sum[i]);
  });
}

template <typename T>
void store_matrix_sync(
    T* to, const fragment<accumulator, 16, 16, 16, T>& from, unsigned stride, layout_t layout,
    std::source_location where = std::source_location::current()) {
  using namespace cuda_on_cpu;
  Brought<const fragment<accumulator, 16, 16, 16, T>> own{to, stride, {&from}};
  with_whole_warp("store_matrix_sync", own, where, [&](const auto& lanes) {
    check_matrix<T>("store_matrix_sync", lanes, where);
    for (unsigned i = 0; i < 256; ++i) {
      const unsigned row = i / 16, column = i % 16;
      to[layout == mem_row_major ? row * stride + column : column * stride + row] =
          std::get<0>(lanes[i / 8]->fragments)->x[i % 8];
    }
  });
}

}  // namespace nvcuda::wmma
