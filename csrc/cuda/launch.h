// The one way kernels are launched, and the one way they reach dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#ifndef PSPNET_FAST_LAUNCH  // where there is no GPU, tests/cuda_on_cpu's cuda_runtime.h has its own
#define PSPNET_FAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

namespace pspnet_fast::cuda {

// The block's dynamic shared memory, aligned for vectors. One declaration serves kernels of all types: an extern array
// cannot be declared twice with different ones.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace pspnet_fast::cuda
#endif

namespace pspnet_fast::cuda {

// Lets launches of a kernel without static shared memory have all the dynamic shared memory that a block can have on the
// current device. What is set belongs to the function and the device, not to a launch: a limit that fits one launch
// would be changed by another host thread before that launch. What is not shared memory is cache, which such kernels
// have no use for.
template <typename Kernel>
void allow_dynamic_shared(Kernel* kernel) {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
}

}  // namespace pspnet_fast::cuda
