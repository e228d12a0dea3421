// The schemas of all operators, in one place. CPU and CUDA kernels are registered beside their sources; fakes, gradients
// and autocast, and the kernels composed of PyTorch operators, are registered from Python (pspnet_fast/ops).
#include <torch/library.h>

#define PSPNET_FAST_CROSS_ENTROPY_OPTIONS                                                                            \
  "Tensor? weight, Tensor? pixel_weight, int ignore_index, float label_smoothing, str reduction, float denominator, " \
  "str empty, bool align_corners"

TORCH_LIBRARY(pspnet_fast, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};

  m.def("pyramid_pool(Tensor x, int[] bins) -> Tensor", tags);
  m.def(
      "pyramid_pool_backward(Tensor grad, SymInt height, SymInt width, int[] bins, bool channels_last) -> Tensor", tags);
  m.def("pyramid_pool_backward_add(Tensor(a!) grad_x, Tensor grad, int[] bins) -> ()", tags);
  m.def(
      "pyramid_levels(Tensor x, int[] bins, Tensor[] weight, Tensor[] mean, Tensor[] var, Tensor[] gamma, Tensor[] beta, "
      "float[] eps) -> Tensor",
      tags);
  m.def("pyramid_concat(Tensor x, Tensor levels, int[] bins, bool align_corners, bool x_first) -> Tensor", tags);
  m.def(
      "pyramid_concat_backward(Tensor grad, SymInt channels, int[] bins, bool align_corners, bool x_first) -> Tensor",
      tags);
  m.def(
      "pyramid_conv(Tensor x, Tensor levels, Tensor weight, Tensor? bias, int[] bins, bool align_corners, bool x_first) "
      "-> Tensor",
      tags);
  m.def(
      "pyramid_conv_backward(Tensor grad, Tensor x, Tensor levels, Tensor weight, int[] bins, bool align_corners, "
      "bool x_first, bool[3] mask) -> (Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "pyramid_conv_norm_relu(Tensor x, Tensor levels, Tensor weight, Tensor? bias, Tensor mean, Tensor var, Tensor gamma, "
      "Tensor beta, float eps, int[] bins, bool align_corners, bool x_first) -> Tensor",
      tags);
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor target, bool gradient, " PSPNET_FAST_CROSS_ENTROPY_OPTIONS
      ") -> (Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "upsample_cross_entropy_backward(Tensor grad, Tensor scale, Tensor logits, Tensor target, Tensor state, "
      PSPNET_FAST_CROSS_ENTROPY_OPTIONS ") -> Tensor",
      tags);
  m.def(
      "dual_cross_entropy(Tensor main, Tensor aux, Tensor target, bool gradient, bool labels, bool correct, "
      PSPNET_FAST_CROSS_ENTROPY_OPTIONS ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "dual_cross_entropy_backward(Tensor grad_main, Tensor grad_aux, Tensor scale, Tensor main, Tensor aux, Tensor target, "
      "Tensor main_state, Tensor aux_state, " PSPNET_FAST_CROSS_ENTROPY_OPTIONS ") -> (Tensor, Tensor)",
      tags);
  m.def("upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners, ScalarType dtype) -> Tensor", tags);
}
