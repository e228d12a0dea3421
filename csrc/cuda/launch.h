// The one way kernels are launched.
#pragma once

#include <cuda_runtime.h>

#define PSPNET_FAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
