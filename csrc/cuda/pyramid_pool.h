// Launchers of the pyramid pooling kernels. Free of torch; they enqueue on `stream` and never synchronise.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pspnet_fast::cuda {

enum class PoolType { f32, f64, f16, bf16 };

// The geometry of one call, passed to the kernels by value: nothing to copy to the device, nothing to wait for.
constexpr int kMaxLevels = 8;
constexpr int kMaxBins = 32;  // Σk
constexpr int kMaxEdges = 2 * kMaxBins + 2;
constexpr int kMaxWidth = 4096;

struct PoolTables {
  int64_t batch, channels;
  int32_t height, width;
  int32_t levels, cells;  // cells = Σk²
  int32_t row_intervals, column_intervals;
  int32_t bins[kMaxLevels];
  int32_t row_edge[kMaxEdges], column_edge[kMaxEdges];  // [intervals + 1]
  int32_t row_first[kMaxBins], row_last[kMaxBins];      // [Σk] intervals of each bin of each level
  int32_t column_first[kMaxBins], column_last[kMaxBins];
};

void launch_pyramid_pool_fwd(
    PoolType type,
    bool channels_last,
    const PoolTables& tables,
    const void* x,   // [B, C, H, W]
    void* atoms,     // [B, row_intervals · column_intervals, C] float (double for f64); channels_last only
    void* out,       // [B, C, Σk²]
    cudaStream_t stream);

void launch_pyramid_pool_bwd(
    PoolType type,
    bool channels_last,
    const PoolTables& tables,
    const void* grad,  // [B, C, Σk²]
    void* grad_x,      // [B, C, H, W]
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
