// The shared memory of a block of pyramid_conv_gather.cu.
#pragma once

#include "pyramid_conv_run.cuh"

namespace pspnet_fast::cuda {

constexpr int kUStride = kRunColumns + 4;  // four rows of U are read at once, from different banks
constexpr int kMostLaneTerms = 9, kFewLaneTerms = 3;  // of a lane, which owns a quarter of the terms

// In this order.
template <typename T>
struct GatherShared {
  using Real = Acc<T>;
  Real* u;        // [padded_terms, kUStride]
  Real* rows;     // [warps, row_terms] weight of a row for each row of bins and dy
  char* warps;    // [warps] what a warp stages of grad, then its G [terms, kRunChannels]
  Real* sums;     // [positions, kRunChannels] where staged

  __host__ __device__ static int64_t warp_bytes(const ConvTables& t) {
    const int64_t staged = kRunColumns * kRunChannels * static_cast<int64_t>(sizeof(T));
    const int64_t terms = int64_t{t.terms} * kRunChannels * static_cast<int64_t>(sizeof(Real));
    return terms_begin(t) == 0 && staged > terms ? staged : terms_begin(t) + terms;
  }
  // Terms come by as many as a warp's lanes own; what the last ones make of rows that were not written is dropped.
  __host__ __device__ static int padded_terms(const ConvTables& t) {
    const int at_once = 4 * (t.terms <= 4 * kFewLaneTerms ? kFewLaneTerms : kMostLaneTerms);
    return (t.terms + at_once - 1) / at_once * at_once;
  }
  // G takes the place of what was staged, unless the lanes need that again for more terms.
  __host__ __device__ static int64_t terms_begin(const ConvTables& t) {
    return t.terms <= 4 * kMostLaneTerms ? 0 : kRunColumns * kRunChannels * static_cast<int64_t>(sizeof(T));
  }
  __host__ __device__ static int64_t row_bytes(const ConvTables& t, int warps) {
    return (int64_t{warps} * t.row_terms * static_cast<int64_t>(sizeof(Real)) + 15) / 16 * 16;
  }
  __host__ __device__ static int64_t bytes(const ConvTables& t, int warps) {
    return int64_t{padded_terms(t)} * kUStride * static_cast<int64_t>(sizeof(Real)) + row_bytes(t, warps) +
           warps * warp_bytes(t);
  }
  __device__ GatherShared(const ConvTables& t, int count) {
    u = dynamic_shared<Real>();
    rows = u + padded_terms(t) * kUStride;
    warps = reinterpret_cast<char*>(rows) + row_bytes(t, count);
    sums = reinterpret_cast<Real*>(warps + count * warp_bytes(t));
  }
  __device__ Real* terms_of(const ConvTables& t, int warp) const {
    return reinterpret_cast<Real*>(warps + warp * warp_bytes(t) + terms_begin(t));
  }
};

}  // namespace pspnet_fast::cuda
