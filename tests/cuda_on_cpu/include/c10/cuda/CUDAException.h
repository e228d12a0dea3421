// Stands for torch's header. A launch that fails has thrown already.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#define C10_CUDA_CHECK(expression)                                                                        \
  do {                                                                                                    \
    const cudaError_t cuda_on_cpu_error = (expression);                                                   \
    TORCH_CHECK(cuda_on_cpu_error == cudaSuccess, "CUDA error: ", cudaGetErrorString(cuda_on_cpu_error)); \
  } while (0)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
