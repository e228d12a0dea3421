// Loops for test_sass.py: one with batches of loads under way, and one whose loads wait for each other.
#include "elements.cuh"

namespace pspnet_fast::cuda {

__global__ void batches(const float* from, float* to, int count, int64_t stride) {
  float sum = 0;
  in_batches<4>(
      count, [&](int i) { return from[i * stride + threadIdx.x]; }, [&](int, float value) { sum += value; });
  to[threadIdx.x] = sum;
}

__global__ void one_by_one(const float* from, float* to, const int* count, int64_t stride) {
  float sum = 0;
#pragma unroll 4
  for (int i = 0; i < count[i]; ++i) sum += from[i * stride + threadIdx.x];
  to[threadIdx.x] = sum;
}

}  // namespace pspnet_fast::cuda
