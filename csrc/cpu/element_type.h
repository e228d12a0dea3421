// The element types that the pyramid's kernels take.
#pragma once

namespace pspnet_fast {

enum class ElementType { f32, f64, f16, bf16 };

}  // namespace pspnet_fast
