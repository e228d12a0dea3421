// The schemas of all operators, generated from pspnet_fast/schemas.txt. CPU and CUDA kernels are registered where they
// are implemented; fakes, gradients, autocast and the compositions of PyTorch operators are registered from Python
// (pspnet_fast/ops).
#include <torch/library.h>

TORCH_LIBRARY(pspnet_fast, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
#include "schemas.inc"
}
