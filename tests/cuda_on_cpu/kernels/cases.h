// A program of named cases: `program CASE ORDER` runs one and prints what it reports, bit by bit. A case that expects
// something else than it gets, or a launch that fails, makes the program's exit status 1.
//
// Ordinary CUDA: nvcc compiles the same sources, and a GPU runs them as program CASE.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <type_traits>
#include <vector>

#include "launch.h"

using pspnet_fast::cuda::dynamic_shared;

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

#define CASE(name)                                                              \
  static void name();                                                           \
  static const bool name##_is_listed = (cases().push_back({#name, name}), true); \
  static void name()

inline bool failed = false;

#define EXPECT(condition)                                                    \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      failed = true;                                                         \
    }                                                                        \
  } while (0)

// Memory for host and device.
template <typename T>
struct Array {
  T* data = nullptr;
  size_t size;

  explicit Array(size_t count, T value = T()) : size(count) {
    if (cudaMallocManaged(&data, count * sizeof(T)) != cudaSuccess) std::abort();
    for (size_t i = 0; i < count; ++i) data[i] = value;
  }
  ~Array() { cudaFree(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T& operator[](size_t i) { return data[i]; }
  operator T*() { return data; }
};

// Results that must have the same bits in every order of threads.
template <typename T>
void report(Array<T>& results) {
  cudaDeviceSynchronize();
  std::vector<unsigned char> bytes(results.size * sizeof(T));
  std::memcpy(bytes.data(), results.data, bytes.size());
  for (unsigned char byte : bytes) std::printf("%02x", byte);
  std::printf("\n");
}

int main(int argc, char** argv) try {
#if !defined(__CUDACC__)
  if (argc > 2) cuda_on_cpu::order = static_cast<unsigned>(std::atoi(argv[2]));
#endif
  for (const Case& c : cases()) {
    if (argc < 2 || std::string(argv[1]) != c.name) continue;
    c.run();
    const cudaError_t error = cudaDeviceSynchronize();
    if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    return failed || error != cudaSuccess;
  }
  std::fprintf(stderr, "usage: %s CASE [ORDER]\n", argv[0]);
  return 2;
} catch (const std::exception& fault) {
  std::fprintf(stderr, "%s\n", fault.what());
  return 1;
}
