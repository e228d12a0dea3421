// What a GPU would punish, as an exception out of the launch.
#pragma once

#include <cstdio>
#include <source_location>
#include <stdexcept>
#include <string>

#include "vector_types.h"

namespace cuda_on_cpu {

using Where = std::source_location;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string describe(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

inline std::string describe(dim3 size) { return describe(uint3{size.x, size.y, size.z}); }

inline std::string describe(Where where) {
  std::string path = where.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(where.line());
}

inline std::string describe_mask(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

}  // namespace cuda_on_cpu
