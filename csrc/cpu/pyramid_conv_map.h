// What the operators on a pyramid's upsampled levels share on CPU tensors: the geometry that kernels take (tables of
// taps, pitches, packed levels), and the way between Q of the levels and a map, on all threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "../geometry.h"
#include "../checks.h"
#include "pyramid_conv_kernel.h"

namespace pspnet_fast {

struct ConvGeometry {
  const ElementType type;
  ConvShape shape;

  // `map` is the convolution's output or its gradient, dense, or a run of `out_channels` channels of such a map.
  ConvGeometry(
      const at::Tensor& map, bool channels_last, int64_t level_channels, at::IntArrayRef kernel, at::IntArrayRef sizes,
      bool align_corners)
      : type(element_type("map", map)), lanes_(PSPNET_FAST_PER_ISA(conv_lanes, type)) {
    shape = {};
    shape.batch = map.size(0), shape.out_channels = map.size(1), shape.height = map.size(2), shape.width = map.size(3);
    // The stride of a side of 1 says nothing: along a single column the next pixel is in the next row.
    shape.image_stride = map.stride(0);
    shape.pixel_stride = channels_last ? map.stride(shape.width > 1 ? 3 : 2) : 1;
    shape.level_channels = level_channels;
    shape.kernel_rows = kernel[0], shape.kernel_columns = kernel[1];
    shape.panel = PSPNET_FAST_PER_ISA(conv_panel, type);

    place_levels(sizes);
    take_outputs(shape.out_channels);
    fill_axis(row_taps_, shape.height, shape.kernel_rows, &ConvLevel::height, align_corners);
    fill_axis(column_reads_, shape.width, shape.kernel_columns, &ConvLevel::width, align_corners);
    taps_ = at::empty({shape.width * shape.column_pitch + shape.columns * shape.width_pitch}, accumulator(map));
    type == ElementType::f64 ? fill_column_taps<double>() : fill_column_taps<float>();
    shape.level = levels_.data();
    shape.row_taps = row_taps_.data();
    shape.column_reads = column_reads_.data();
  }
  ConvGeometry(const ConvGeometry&) = delete;  // shape points into the tables
  ConvGeometry(ConvGeometry&&) = default;      // which move along

  // The weight of the levels: dense, its level channels from `first_level_channel` on.
  void place_weight(const at::Tensor& weight, int64_t first_level_channel) {
    // Strides of a side of 1 say nothing: they are worked out from the layout.
    const bool taps_last = weight.is_contiguous();
    shape.weight_out = weight.size(1) * shape.taps();
    shape.weight_channel = taps_last ? shape.taps() : 1;
    shape.weight_tap = taps_last ? 1 : weight.size(1);
    shape.weight_level = first_level_channel;
  }

  // Q is that of so many output channels from now on.
  void take_outputs(int64_t count) {
    shape.out_channels = count;
    shape.out_pitch = whole_vectors(count);
    int64_t pitches = 0;
    for (ConvLevel& level : levels_) {
      level.q = count * shape.taps() * pitches;
      pitches += level.pitch;
    }
  }

  // Elements of Q, as conv_q writes it.
  int64_t q_size(bool channels_last) const {
    return channels_last ? shape.batch * shape.positions * shape.out_pitch : shape.out_channels * shape.taps() * pitches_;
  }

  // p, as conv_q reads it.
  at::Tensor empty_bins(const at::Tensor& levels) const {
    return at::empty({shape.level_channels * pitches_}, accumulator(levels));
  }

  // p from levels [B, Ck, Σhw].
  at::Tensor pack_bins(const at::Tensor& levels) const {
    at::Tensor packed = empty_bins(levels);
    for (const ConvLevel& level : levels_) {
      const at::Tensor matrix = bins_of(levels, level).transpose(0, 1).flatten(1);
      for_each_panel(packed, matrix, level.pooled, level.pitch, [](const at::Tensor& panel, const at::Tensor& part) {
        panel.copy_(part);
      });
    }
    return packed;
  }

  // The same transposed: [B · hw, level_pitch] a level.
  at::Tensor pack_bins_transposed(const at::Tensor& levels) const {
    at::Tensor packed = at::empty({shape.batch * shape.packed_bins * shape.level_pitch}, accumulator(levels));
    for (const ConvLevel& level : levels_) {
      const at::Tensor matrix = bins_of(levels, level).transpose(1, 2).flatten(0, 1);
      const int64_t begin = shape.batch * level.first_bin * shape.level_pitch;
      for_each_panel(packed, matrix, begin, shape.level_pitch, [](const at::Tensor& panel, const at::Tensor& part) {
        panel.copy_(part);
      });
    }
    return packed;
  }

  // levels [B, Ck, Σhw] from p.
  void unpack_bins(const at::Tensor& packed, const at::Tensor& levels) const {
    for (const ConvLevel& level : levels_) {
      const at::Tensor matrix = at::empty({shape.level_channels, shape.batch * level.area()}, accumulator(levels));
      for_each_panel(packed, matrix, level.pooled, level.pitch, [](const at::Tensor& panel, const at::Tensor& part) {
        part.copy_(panel);
      });
      bins_of(levels, level).copy_(matrix.unflatten(1, {shape.batch, level.area()}).transpose(0, 1));
    }
  }

 private:
  int64_t whole_vectors(int64_t count) const { return (count + lanes_ - 1) / lanes_ * lanes_; }

  at::Tensor bins_of(const at::Tensor& levels, const ConvLevel& level) const {
    return levels.narrow(2, level.first_bin, level.area());
  }

  // Calls body(panel, its columns of the matrix) for a matrix whose panels begin at `begin` of `packed`.
  template <typename Body>
  void for_each_panel(
      const at::Tensor& packed, const at::Tensor& matrix, int64_t begin, int64_t pitch, Body body) const {
    const int64_t rows = matrix.size(0), columns = matrix.size(1);
    for (int64_t first = 0; first < columns; first += shape.panel) {
      const int64_t width = std::min(shape.panel, pitch - first), count = std::min(width, columns - first);
      body(packed.as_strided({rows, count}, {width, 1}, begin + first * rows), matrix.narrow(1, first, count));
    }
  }

  void place_levels(at::IntArrayRef sizes) {
    shape.levels = static_cast<int64_t>(sizes.size()) / 2;
    for (int64_t l = 0; l < shape.levels; ++l) {
      ConvLevel level{};
      level.height = sizes[2 * l], level.width = sizes[2 * l + 1];
      level.first_bin = shape.packed_bins;
      level.column = shape.columns;
      level.position = shape.positions;
      level.pitch = whole_vectors(shape.batch * level.area());
      level.pooled = shape.level_channels * pitches_;
      shape.packed_bins += level.area();
      shape.columns += shape.kernel_columns * level.width;
      shape.positions += shape.taps() * level.area();
      pitches_ += level.pitch;
      levels_.push_back(level);
    }
    shape.column_pitch = whole_vectors(shape.columns);
    shape.width_pitch = whole_vectors(shape.width);
    shape.level_pitch = whole_vectors(shape.level_channels);
  }

  void fill_axis(
      std::vector<AxisTap>& axis, int64_t size, int64_t kernel, int64_t ConvLevel::*nodes, bool align_corners) const {
    for (int64_t position = 0; position < size; ++position) {
      for (const ConvLevel& level : levels_) {
        for (int64_t d = 0; d < kernel; ++d) {
          const Taps taps = bilinear_taps(position + d - kernel / 2, level.*nodes, size, align_corners);
          axis.push_back({taps.first, taps.second, taps.first_weight, taps.second_weight});
        }
      }
    }
  }

  // `column_reads` as a matrix and its transpose.
  template <typename Acc>
  void fill_column_taps() {
    taps_.zero_();
    Acc* table = taps_.mutable_data_ptr<Acc>();
    Acc* transposed = table + shape.width * shape.column_pitch;
    const auto put = [&](int64_t w, int64_t column, double weight) {
      table[w * shape.column_pitch + column] += static_cast<Acc>(weight);
      transposed[column * shape.width_pitch + w] += static_cast<Acc>(weight);
    };
    const AxisTap* tap = column_reads_.data();
    for (int64_t w = 0; w < shape.width; ++w) {
      for (const ConvLevel& level : levels_) {
        for (int64_t dx = 0; dx < shape.kernel_columns; ++dx, ++tap) {
          put(w, level.column + dx * level.width + tap->first, tap->first_weight);
          put(w, level.column + dx * level.width + tap->second, tap->second_weight);
        }
      }
    }
    shape.column_taps = table;
    shape.column_taps_t = transposed;
  }

  int64_t lanes_, pitches_ = 0;
  std::vector<ConvLevel> levels_;
  std::vector<AxisTap> row_taps_, column_reads_;
  at::Tensor taps_;
};

// ---- Between Q and a map --------------------------------------------------------------------------------------------

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs body(scratch, begin, end) over tasks [0, count), with `scratch` numbers of like's accumulator for each thread.
template <typename Body>
void for_tasks(int64_t count, int64_t scratch, const at::Tensor& like, Body body) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor own = at::empty({scratch}, accumulator(like));
    body(own.mutable_data_ptr(), begin, end);
  });
}

// y from interpolated Q, as the epilogue says.
inline void q_to_map(
    const ConvGeometry& geometry, bool channels_last, const at::Tensor& q, const at::Tensor& y,
    ConvEpilogue epilogue) {
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  if (channels_last) {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nhwc_scratch, type, shape);
    for_tasks(shape.batch * shape.height, scratch, y, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_add_nhwc, type, shape, q.const_data_ptr(), y.mutable_data_ptr(), epilogue, own, begin, end);
    });
  } else {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nchw_scratch, shape);
    for_tasks(shape.batch * shape.out_channels, scratch, y, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_add_nchw, type, shape, q.const_data_ptr(), y.mutable_data_ptr(), epilogue, own, begin, end);
    });
  }
}

// The gradient of Q, as NCHW has it, from that of the map.
inline at::Tensor map_to_q(const ConvGeometry& geometry, bool channels_last, const at::Tensor& grad) {
  const ConvShape& shape = geometry.shape;
  const ElementType type = geometry.type;
  at::Tensor q = at::empty({geometry.q_size(/*channels_last=*/false)}, accumulator(grad));
  if (channels_last) {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nhwc_scratch, type, shape);
    const int64_t tasks = shape.batch * PSPNET_FAST_PER_ISA(conv_nhwc_blocks, type, shape);
    for_tasks(tasks, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_gather_nhwc, type, shape, grad.const_data_ptr(), q.mutable_data_ptr(), own, begin, end);
    });
  } else {
    const int64_t scratch = PSPNET_FAST_PER_ISA(conv_nchw_scratch, shape);
    for_tasks(shape.batch * shape.out_channels, scratch, grad, [&](void* own, int64_t begin, int64_t end) {
      PSPNET_FAST_PER_ISA(
          conv_gather_nchw, type, shape, grad.const_data_ptr(), q.mutable_data_ptr(), own, begin, end);
    });
  }
  return q;
}

}  // namespace pspnet_fast
