// The types of elements and labels that kernels take, on every device. Free of torch.
#pragma once

#include <cstdint>

namespace pspnet_fast {

enum class ElementType : int32_t { f32, f64, f16, bf16 };
enum class LabelType : int32_t { i64, i32, u8 };

// The two positions of another axis that each of n positions is read from; null pointers for its own position.
struct AxisTable {
  const int32_t* index;  // [n, 2]
  const void* weight;    // [n, 2], of the type that sums are taken in
};

}  // namespace pspnet_fast
