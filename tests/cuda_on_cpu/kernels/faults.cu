// What a GPU would punish, one fault a case. Each must be found: test_faults.py says how.

#include <cmath>

#include "cases.h"

namespace {

constexpr unsigned kFull = 0xffffffffu;
constexpr int kThreads = 64;

template <typename Kernel>
void run(Kernel* kernel, int threads = kThreads, size_t shared_bytes = kThreads * sizeof(float), dim3 grid = 1) {
  Array<float> out(kThreads);
  PSPNET_FAST_LAUNCH(kernel, grid, threads, shared_bytes, nullptr, out.data);
  report(out);
}

// ---- Results that depend on the order of threads or blocks ----------------------------------------------------------

__global__ void missing_barrier_kernel(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}
CASE(missing_barrier) { run(missing_barrier_kernel); }

// A second barrier would keep fast threads from overwriting what slow ones still read.
__global__ void overwritten_kernel(float* out) {
  float* shared = dynamic_shared<float>();
  float sum = 0;
  for (int turn = 0; turn < 3; ++turn) {
    shared[threadIdx.x] = static_cast<float>(threadIdx.x + 100 * turn);
    __syncthreads();
    sum += shared[kThreads - 1 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
CASE(overwritten) { run(overwritten_kernel); }

__global__ void missing_syncwarp_kernel(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}
CASE(missing_syncwarp) { run(missing_syncwarp_kernel, 32); }

template <typename T>
__global__ void unwritten_static_kernel(T* out) {
  __shared__ T shared[kThreads + 1];
  shared[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + 1];
}
CASE(unwritten_static) { run(unwritten_static_kernel<float>); }

// A maximum drops NaN: the other pattern shows.
__global__ void unwritten_dynamic_kernel(float* out) {
  float* shared = dynamic_shared<float>();
  if (threadIdx.x > 0) shared[threadIdx.x] = 1.0f;
  __syncthreads();
  float most = 0;
  for (int i = 0; i < kThreads; ++i) most = fmaxf(most, shared[i]);
  out[threadIdx.x] = most;
}
CASE(unwritten_dynamic) { run(unwritten_dynamic_kernel); }

__global__ void float_atomics_kernel(float* out) { atomicAdd(out, 1.0f / static_cast<float>(1 + threadIdx.x)); }
CASE(float_atomics) { run(float_atomics_kernel); }

__global__ void blocks_depend_kernel(float* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = blockIdx.x > 0 ? out[blockIdx.x - 1] + 1.0f : 1.0f;
}
CASE(blocks_depend) { run(blocks_depend_kernel, kThreads, 0, 8); }

// ---- Divergence -----------------------------------------------------------------------------------------------------

__global__ void two_barriers_kernel(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}
CASE(two_barriers) { run(two_barriers_kernel); }

__global__ void early_exit_kernel(float* out) {
  if (threadIdx.x >= 50) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}
CASE(early_exit) { run(early_exit_kernel); }

__global__ void barrier_and_shuffle_kernel(float* out) {
  if (threadIdx.x < 16) out[0] = __shfl_xor_sync(kFull, 1.0f, 16);
  __syncthreads();
}
CASE(barrier_and_shuffle) { run(barrier_and_shuffle_kernel); }

// ---- Warps ----------------------------------------------------------------------------------------------------------

__global__ void exited_lane_kernel(float* out) {
  if (threadIdx.x % 32 >= 16) return;
  out[threadIdx.x] = __shfl_xor_sync(kFull, 1.0f, 16);
}
CASE(exited_lane) { run(exited_lane_kernel); }

__global__ void absent_lane_kernel(float* out) { out[threadIdx.x] = __shfl_down_sync(kFull, 1.0f, 1); }
CASE(absent_lane) { run(absent_lane_kernel, 40); }

__global__ void lane_outside_mask_kernel(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}
CASE(lane_outside_mask) { run(lane_outside_mask_kernel); }

__global__ void caller_outside_mask_kernel(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);
}
CASE(caller_outside_mask) { run(caller_outside_mask_kernel); }

__global__ void different_masks_kernel(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(threadIdx.x % 2 ? kFull : 0x7fffffffu, 1.0f, 2);
}
CASE(different_masks) { run(different_masks_kernel); }

__global__ void different_calls_kernel(float* out) {
  out[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(kFull, 1.0f, 1) : __shfl_down_sync(kFull, 1.0f, 1);
}
CASE(different_calls) { run(different_calls_kernel); }

__global__ void odd_width_kernel(float* out) { out[threadIdx.x] = __shfl_xor_sync(kFull, 1.0f, 1, 12); }
CASE(odd_width) { run(odd_width_kernel); }

// ---- Addresses ------------------------------------------------------------------------------------------------------

template <typename T>
__global__ void static_bound_kernel(T* out) {
  __shared__ T shared[kThreads];
  T* volatile unknown = shared;  // or the compiler sees the fault itself
  unknown[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = unknown[threadIdx.x];
}
CASE(static_bound) { run(static_bound_kernel<float>); }

__global__ void dynamic_bound_kernel(float* out) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}
CASE(dynamic_bound) { run(dynamic_bound_kernel); }

__global__ void global_bound_kernel(float* out) { out[threadIdx.x + 1] = 1.0f; }
CASE(global_bound) { run(global_bound_kernel); }

// Instructions for global memory, on what is not there.
__global__ void cached_local_kernel(float* out) {
  const float local = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = __ldg(&local);
}
CASE(cached_local) { run(cached_local_kernel); }

__global__ void cached_shared_kernel(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = 1.0f;
  __stcg(out + threadIdx.x, __ldcg(shared + threadIdx.x));
}
CASE(cached_shared) { run(cached_shared_kernel); }

__global__ void misaligned_kernel(float* out) {
  if (threadIdx.x < 8) reinterpret_cast<float4*>(out + 2)[threadIdx.x] = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
}
CASE(misaligned) { run(misaligned_kernel); }

// ---- Limits ---------------------------------------------------------------------------------------------------------

__global__ void nothing_kernel(float*) {}
CASE(too_many_threads) { run(nothing_kernel, 1025, 0); }
CASE(no_threads) { run(nothing_kernel, 0, 0); }
CASE(too_much_shared) { run(nothing_kernel, kThreads, 48 * 1024 + 1); }
CASE(grid_too_high) { run(nothing_kernel, kThreads, 0, dim3(1, 65536)); }
// More than nvcc lets pass: found in the binary, not at the launch.
__global__ void large_static_kernel(float* out) {
  __shared__ float shared[12 * 1024], more[1];
  shared[threadIdx.x] = more[0] = 1.0f;
  out[threadIdx.x] = shared[threadIdx.x];
}
CASE(large_static) { run(large_static_kernel, 1); }
CASE(empty_grid) { run(nothing_kernel, kThreads, 0, 0); }
CASE(more_than_opt_in) {
  constexpr auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
  EXPECT(cudaFuncSetAttribute(nothing_kernel, limit, 227 * 1024 + 1) == cudaSuccess);
}

}  // namespace
