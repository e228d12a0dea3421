// Element types of the pyramid's tensors, for launchers that are free of torch.
#pragma once

namespace pspnet_fast::cuda {

enum class ElementType { f32, f64, f16, bf16 };

}  // namespace pspnet_fast::cuda
