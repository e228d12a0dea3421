// What every file of kernels includes, precompiled (compiling.py).
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
