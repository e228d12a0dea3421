// Tensors as kernels of every device take them: element types, layouts, results.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "types.h"

namespace pspnet_fast {

inline ElementType element_type(const char* name, const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return ElementType::f32;
    case at::kDouble: return ElementType::f64;
    case at::kHalf: return ElementType::f16;
    case at::kBFloat16: return ElementType::bf16;
    default: TORCH_CHECK_TYPE(false, name, " must be float32, float64, float16 or bfloat16, not ", x.scalar_type());
  }
}

inline LabelType label_type(const char* name, at::ScalarType type) {
  switch (type) {
    case at::kLong: return LabelType::i64;
    case at::kInt: return LabelType::i32;
    case at::kByte: return LabelType::u8;
    default: TORCH_CHECK_TYPE(false, name, " must be int64, int32 or uint8, not ", type);
  }
}

// What sums of x are taken in, and options of scratch for them.
inline at::ScalarType accumulator_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}
inline at::TensorOptions accumulator(const at::Tensor& x) {
  return at::TensorOptions(x.device()).dtype(accumulator_type(x));
}

// Whether x is laid out in channels_last memory and could not pass for NCHW: then results are, too.
inline bool is_channels_last(const at::Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
}
inline at::MemoryFormat format_of(const at::Tensor& x) {
  return is_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline bool is_dense(const at::Tensor& x) {
  return x.is_contiguous() || x.is_contiguous(at::MemoryFormat::ChannelsLast);
}
inline at::Tensor dense(const at::Tensor& x) { return is_dense(x) ? x : x.contiguous(); }

// Of shape [0]: stands for a result that is not wanted.
inline at::Tensor absent(const at::Tensor& like) {
  return at::empty({0}, like.options().memory_format(std::nullopt));
}

}  // namespace pspnet_fast
