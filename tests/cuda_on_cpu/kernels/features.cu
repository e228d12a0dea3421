// How threads may work together, and their memory: each case computes something whose value is known.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "cases.h"

namespace {

constexpr unsigned kFull = 0xffffffffu;

// ---- Indices --------------------------------------------------------------------------------------------------------

__global__ void indices_kernel(unsigned* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  atomicAdd(&out[block * blockDim.x * blockDim.y * blockDim.z + thread], 1 + thread + 1000 * block);
}
CASE(indices) {
  Array<unsigned> out(6 * 30);
  PSPNET_FAST_LAUNCH(indices_kernel, dim3(3, 1, 2), dim3(2, 5, 3), 0, nullptr, out);
  cudaDeviceSynchronize();
  for (unsigned i = 0; i < 180; ++i) EXPECT(out[i] == 1 + i % 30 + 1000 * (i / 30));
}

// ---- Shuffles -------------------------------------------------------------------------------------------------------

template <typename T>
__global__ void shuffles_kernel(T* out) {
  const int lane = threadIdx.x % 32;
  const T own = static_cast<T>(lane);
  T sum = own;
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(kFull, sum, d);
  T* row = out + threadIdx.x * 6;
  row[0] = sum;
  row[1] = __shfl_sync(kFull, own, 37);           // lane 5
  row[2] = __shfl_up_sync(kFull, own, 3);         // lanes 0 to 2 keep theirs
  row[3] = __shfl_down_sync(kFull, own, 3, 8);    // within groups of 8
  row[4] = __shfl_sync(kFull, own, 1, 4);         // the second of each group of 4
  row[5] = __shfl_xor_sync(kFull, own, 1, 2);
}
template <typename T>
void check_shuffles() {
  Array<T> out(64 * 6);
  PSPNET_FAST_LAUNCH((shuffles_kernel<T>), 1, 64, 0, nullptr, out);
  cudaDeviceSynchronize();
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32;
    const int expected[6] = {496,          5, lane < 3 ? lane : lane - 3, lane % 8 + 3 < 8 ? lane + 3 : lane,
                             lane / 4 * 4 + 1, lane ^ 1};
    for (int j = 0; j < 6; ++j) EXPECT(out[i * 6 + j] == static_cast<T>(expected[j]));
  }
}
CASE(shuffles) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<long long>();
  check_shuffles<float>();
  check_shuffles<double>();
}

// Halves of a warp go different ways and meet among themselves; a lane that has exited is not waited for.
__global__ void partial_warps_kernel(int* out) {
  const int lane = threadIdx.x % 32;
  int v = lane;
  if (lane < 16) {
    for (int d = 8; d > 0; d /= 2) v += __shfl_xor_sync(0x0000ffffu, v, d);
  } else {
    if (lane == 31) return;
    __syncwarp(0xffff0000u);
    v = static_cast<int>(__ballot_sync(0xffff0000u, lane % 2));
  }
  out[threadIdx.x] = v;
}
CASE(partial_warps) {
  Array<int> out(48, -1);  // the second warp has 16 lanes
  PSPNET_FAST_LAUNCH(partial_warps_kernel, 1, 48, 0, nullptr, out);
  cudaDeviceSynchronize();
  for (int i = 0; i < 48; ++i) EXPECT(out[i] == (i % 32 < 16 ? 120 : i == 31 ? -1 : 0x2aaa0000));
}

__global__ void votes_kernel(unsigned* out) {
  const unsigned i = threadIdx.x;
  out[i * 7 + 0] = __ballot_sync(kFull, i % 3 == 0);
  out[i * 7 + 1] = __any_sync(kFull, i == 40);
  out[i * 7 + 2] = __all_sync(kFull, i < 40);
  out[i * 7 + 3] = __activemask();
  out[i * 7 + 4] = __syncthreads_count(i % 5 == 0);
  out[i * 7 + 5] = __syncthreads_or(i == 63);
  out[i * 7 + 6] = __syncthreads_and(i != 63);
}
CASE(votes) {
  Array<unsigned> out(64 * 7);
  PSPNET_FAST_LAUNCH(votes_kernel, 1, 64, 0, nullptr, out);
  cudaDeviceSynchronize();
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned expected[7] = {i < 32 ? 0x49249249u : 0x92492492u, i >= 32, i < 32, kFull, 13, 1, 0};
    for (unsigned j = 0; j < 7; ++j) EXPECT(out[i * 7 + j] == expected[j]);
  }
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

// Static and dynamic shared memory, and shuffles: the usual reduction of a block.
template <typename T>
__global__ void sum_kernel(const float* x, T* out, int n) {
  __shared__ T of_warp[32];
  T* of_thread = dynamic_shared<T>();
  T sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += static_cast<T>(x[i]);
  of_thread[blockDim.x - 1 - threadIdx.x] = sum;
  __syncthreads();
  sum = of_thread[threadIdx.x];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(kFull, sum, d);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += of_warp[w];
    out[blockIdx.x] = sum;
  }
}
CASE(reductions) {
  Array<float> x(5000);
  for (int i = 0; i < 5000; ++i) x[i] = std::sin(static_cast<float>(i));
  Array<float> sums(3);
  Array<double> exact(3);
  PSPNET_FAST_LAUNCH((sum_kernel<float>), 3, 1024, 1024 * sizeof(float), nullptr, x, sums, 5000);
  PSPNET_FAST_LAUNCH((sum_kernel<double>), 3, 96, 96 * sizeof(double), nullptr, x, exact, 5000);
  report(sums);
  report(exact);
  EXPECT(std::abs(sums[2] - exact[2]) < 1e-4);
}

__global__ void fill_kernel(int* out, int words) {
  int* shared = dynamic_shared<int>();
  for (int i = threadIdx.x; i < words; i += blockDim.x) shared[i] = i;
  __syncthreads();
  for (int i = threadIdx.x; i < words; i += blockDim.x) out[i] = shared[words - 1 - i];
}
CASE(opt_in_shared_memory) {
  int most = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  EXPECT(cudaFuncSetAttribute(fill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most) == cudaSuccess);
  Array<int> out(most / 4);
  PSPNET_FAST_LAUNCH(fill_kernel, 1, 256, most, nullptr, out, most / 4);
  cudaDeviceSynchronize();
  for (int i = 0; i < most / 4; ++i) EXPECT(out[i] == most / 4 - 1 - i);

  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, fill_kernel, 256, most);
  EXPECT(blocks == 1);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, fill_kernel, 256, 0);
  EXPECT(blocks == 8);
}

// Frames of several kilobytes, in every thread of the largest block.
__global__ void deep_kernel(int* out) {
  volatile int local[2048];
  for (int i = 0; i < 2048; ++i) local[i] = i + threadIdx.x;
  __syncthreads();
  int wrong = 0;
  for (int i = 0; i < 2048; ++i) wrong += local[i] != i + static_cast<int>(threadIdx.x);
  out[threadIdx.x] = wrong;
}
CASE(large_frames) {
  Array<int> out(1024, -1);
  PSPNET_FAST_LAUNCH(deep_kernel, 2, 1024, 0, nullptr, out);
  cudaDeviceSynchronize();
  for (int i = 0; i < 1024; ++i) EXPECT(out[i] == 0);
}

// ---- Atomics --------------------------------------------------------------------------------------------------------

struct Tally {
  int added, subtracted, least, most, set, cas;
  unsigned bits, wrapped, down;
  unsigned long long wide;
  float real;
  double real64;
};
__global__ void atomics_kernel(Tally* t) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&t->added, i);
  atomicSub(&t->subtracted, 1);
  atomicMin(&t->least, 50 - i);
  atomicMax_system(&t->most, i);
  atomicOr(&t->bits, 1u << (i % 32));
  atomicInc(&t->wrapped, 6);
  atomicDec(&t->down, 6);
  atomicAdd(&t->wide, 1ull << 33);
  atomicAdd(&t->real, 0.5f);
  atomicAdd(&t->real64, 0.25);
  atomicCAS_system(&t->set, 0, 7);  // only the first one finds 0
  int seen = t->cas, before;
  do {
    before = seen;
    seen = atomicCAS(&t->cas, before, before + 2);
  } while (seen != before);
}
CASE(atomics) {
  Array<Tally> t(1, Tally{});
  PSPNET_FAST_LAUNCH(atomics_kernel, 3, 100, 0, nullptr, t);
  cudaDeviceSynchronize();
  const Tally& a = t[0];
  EXPECT(a.added == 44850 && a.subtracted == -300 && a.least == -249 && a.most == 299 && a.set == 7 && a.cas == 600);
  EXPECT(a.bits == kFull && a.wrapped == 300 % 7 && a.down == (7 - 300 % 7) % 7);
  EXPECT(a.wide == 300ull << 33 && a.real == 150.0f && a.real64 == 75.0);
}

// The block that comes last sums what all have written: the same bits, whichever it is.
__global__ void last_block_kernel(const float* x, float* partial, unsigned* arrived, float* out) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = x[blockIdx.x] / 3.0f;
    __threadfence();
    is_last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += __ldcg(partial + b);
  *out = sum;
}
CASE(last_block) {
  Array<float> x(50), partial(50), out(1);
  for (int i = 0; i < 50; ++i) x[i] = std::sqrt(static_cast<float>(i));
  Array<unsigned> arrived(1);
  PSPNET_FAST_LAUNCH(last_block_kernel, 50, 32, 0, nullptr, x, partial, arrived, out);
  report(out);
  EXPECT(arrived[0] == 0);
}

// ---- Memory of the host ---------------------------------------------------------------------------------------------

__global__ void flag_kernel(int* flag) { *flag += 1; }
CASE(mapped_memory) {
  int *on_host = nullptr, *on_device = nullptr;
  EXPECT(cudaHostAlloc(&on_host, sizeof(int), cudaHostAllocMapped) == cudaSuccess);
  EXPECT(cudaHostGetDevicePointer(&on_device, on_host, 0) == cudaSuccess);
  cudaMemsetAsync(on_device, 0, sizeof(int), nullptr);
  PSPNET_FAST_LAUNCH(flag_kernel, 1, 1, 0, nullptr, on_device);
  cudaDeviceSynchronize();
  EXPECT(*on_host == 1);
  cudaFreeHost(on_host);
}

}  // namespace
