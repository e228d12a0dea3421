// Stands for CUDA's own header: kernels that include it are compiled by a C++20 compiler and run on the CPU.
// See ../README.md for what is covered.
#pragma once

#include <climits>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "cuda_on_cpu/vector_types.h"
#include "cuda_on_cpu/math.h"
#include "cuda_on_cpu/atomics.h"
#include "cuda_on_cpu/runtime.h"
#include "cuda_on_cpu/warp.h"
#include "cuda_on_cpu/global_memory.h"
#include "cuda_on_cpu/launch.h"

[[noreturn]] inline void __trap() { cuda_on_cpu::fail("__trap"); }
