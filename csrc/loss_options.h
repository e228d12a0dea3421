// The options of the cross-entropies as one value, for both back ends. In schemas.txt they are the last arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>

namespace pspnet_fast {

struct LossOptions {
  std::optional<at::Tensor> weight;        // [C], a factor per class
  std::optional<at::Tensor> pixel_weight;  // [B, H, W], a factor per pixel
  int64_t ignore_index;                    // the label of pixels that are left out
  double label_smoothing;                  // in [0, 1]
  bool align_corners;                      // of the upsampling
};

// The kernel of an operator from a function that takes its options as one, in front of its other arguments.
template <typename Result, typename... Arguments>
auto with_loss_options(Result (*function)(const LossOptions&, Arguments...)) {
  return [function](
             Arguments... arguments, const std::optional<at::Tensor>& weight,
             const std::optional<at::Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing,
             bool align_corners) -> Result {
    const LossOptions options{
        .weight = weight,
        .pixel_weight = pixel_weight,
        .ignore_index = ignore_index,
        .label_smoothing = label_smoothing,
        .align_corners = align_corners};
    return function(options, arguments...);
  };
}

// What a problem points into: labels and weights in the layout and types that kernels read.
struct LossTensors {
  at::Tensor target, class_weight, pixel_weight;

  LossTensors(const LossOptions& options, const at::Tensor& labels, int64_t batch, int64_t classes, at::ScalarType real) {
    TORCH_CHECK_VALUE(
        labels.dim() == 3 && labels.size(0) == batch, "target must be [", batch, ", H, W], not of shape ", labels.sizes());
    target = labels.contiguous();
    if (options.weight) {
      TORCH_CHECK_VALUE(
          options.weight->dim() == 1 && options.weight->size(0) == classes, "weight must be [", classes, "], not ",
          options.weight->sizes());
      class_weight = options.weight->to(real).contiguous();
    }
    if (options.pixel_weight) {
      TORCH_CHECK_VALUE(
          options.pixel_weight->sizes() == labels.sizes(), "pixel_weight must be ", labels.sizes(), ", not ",
          options.pixel_weight->sizes());
      pixel_weight = options.pixel_weight->to(real).contiguous();
    }
  }

  const void* class_weights() const { return class_weight.defined() ? class_weight.const_data_ptr() : nullptr; }
  const void* pixel_weights() const { return pixel_weight.defined() ? pixel_weight.const_data_ptr() : nullptr; }
};

// What an operator returns of its heads.
struct LossSums {
  at::Tensor losses[2];  // Real 0-d sums, or maps [B, H, W]
  at::Tensor divisor;    // Real 0-d: Σ class weight · pixel weight over the pixels that count
  at::Tensor states[2];  // the gradients of the sums by the logits, Real, or empty
};

}  // namespace pspnet_fast
