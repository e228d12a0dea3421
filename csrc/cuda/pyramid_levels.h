// Launcher of the levels' projection. Free of torch; it enqueues on `stream` and never synchronises.
#pragma once

#include "pyramid_product.h"

namespace pspnet_fast::cuda {

// A product for each level, weight [Ck, C] times the pooled bins, normalised and rectified. Where `atoms` is given a side
// b is read from it, not from its data: its row offsets are the level's bins, image · k² + bin, its depth offsets
// channels.
void launch_pyramid_levels(
    ElementType type,
    const PoolTables& tables,
    const void* atoms,  // [B, row_intervals · column_intervals, C] float (double for f64), or null
    Products products,
    cudaStream_t stream);

}  // namespace pspnet_fast::cuda
