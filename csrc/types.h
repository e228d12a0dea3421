// The types of elements and labels that kernels take, on every device. Free of torch.
#pragma once

#include <cstdint>

namespace pspnet_fast {

enum class ElementType : int32_t { f32, f64, f16, bf16 };
enum class LabelType : int32_t { i64, i32, u8 };

}  // namespace pspnet_fast
