// Launcher of what follows the levels' projection. Free of torch; it enqueues on `stream` and never synchronises.
#pragma once

#include "pyramid_norm.h"
#include "pyramid_pool.h"

namespace pspnet_fast::cuda {

struct LevelNorms {
  int32_t levels;
  int32_t bins_to[kMaxLevels];  // Σk² of the levels to each, itself included
  Norm norm[kMaxLevels];
};

// out = relu(norm of its level(projected)).
void launch_pyramid_levels(
    ElementType type,
    const LevelNorms& norms,
    int64_t batch,
    int64_t channels,
    const void* projected,  // [Σk², B, C] float (double for f64)
    void* out,              // [B, C, Σk²]
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
