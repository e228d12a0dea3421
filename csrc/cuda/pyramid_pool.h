// Launchers of the pyramid pooling kernels. Free of torch; they enqueue on `stream` and never synchronise.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../types.h"

namespace pspnet_fast::cuda {

// The geometry of one call, passed to the kernels by value: nothing to copy to the device, nothing to wait for.
constexpr int kMaxLevels = 8;
constexpr int kMaxBins = 32;  // Σk
constexpr int kMaxEdges = 2 * kMaxBins + 2;
constexpr int kMaxWidth = 4096;

struct PoolTables {
  int64_t batch, channels;
  int32_t height, width;
  int32_t levels, packed_bins;  // packed_bins = Σk²
  int32_t row_intervals, column_intervals;
  int32_t bins[kMaxLevels];
  int32_t row_edge[kMaxEdges], column_edge[kMaxEdges];  // [intervals + 1]
  int32_t row_first[kMaxBins], row_last[kMaxBins];      // [Σk] intervals of each bin of each level
  int32_t column_first[kMaxBins], column_last[kMaxBins];
};

// ---- NCHW: pyramid_pool_nchw.cu -----------------------------------------------------------------------------------

void launch_pyramid_pool_nchw_fwd(
    ElementType type,
    const PoolTables& tables,
    const void* x,  // [B, C, H, W]
    void* out,      // [B, C, Σk²]
    cudaStream_t stream);

void launch_pyramid_pool_nchw_bwd(
    ElementType type,
    bool add,  // to what grad_x holds
    const PoolTables& tables,
    const void* grad,  // [B, C, Σk²]
    void* grad_x,      // [B, C, H, W]
    cudaStream_t stream);

// ---- channels_last: pyramid_pool_nhwc.cu ---------------------------------------------------------------------------

void launch_pyramid_pool_nhwc_fwd(
    ElementType type,
    const PoolTables& tables,
    const void* x,  // [B, H, W, C]
    void* atoms,    // [B, row_intervals · column_intervals, C] float (double for f64)
    void* out,      // [B, C, Σk²]
    cudaStream_t stream);

void launch_pyramid_pool_nhwc_bwd(
    ElementType type,
    bool add,  // to what grad_x holds
    const PoolTables& tables,
    const void* grad,  // [B, Σk², C]
    void* grad_x,      // [B, H, W, C]
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
