// The geometry of one convolution over a pyramid, as the CPU kernels take it: tables of taps, pitches, packed levels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "../geometry.h"
#include "../pyramid_conv_checks.h"
#include "pyramid_conv_kernel.h"
#include "tensors.h"

namespace pspnet_fast {

struct ConvGeometry {
  const ElementType type;
  ConvShape shape;

  // `y` is the convolution's output or its gradient; `weight` is dense.
  ConvGeometry(const at::Tensor& y, const at::Tensor& levels, const at::Tensor& weight, const ConvOptions& options)
      : type(element_type(y)), lanes_(PSPNET_FAST_PER_ISA(conv_lanes, type)) {
    shape = {};
    shape.batch = y.size(0), shape.out_channels = y.size(1), shape.height = y.size(2), shape.width = y.size(3);
    shape.level_channels = levels.size(1), shape.packed_cells = levels.size(2);
    shape.kernel_rows = weight.size(2), shape.kernel_columns = weight.size(3);
    shape.levels = static_cast<int64_t>(options.bins.size());
    // Strides of a side of 1 say nothing; the last tap's is that of a neighbour in both dense layouts.
    const bool taps_last = weight.is_contiguous();
    shape.weight_out = weight.size(1) * shape.taps();
    shape.weight_channel = taps_last ? shape.taps() : 1;
    shape.weight_tap = taps_last ? 1 : weight.size(1);
    shape.weight_level = options.first_level_channel;

    place_levels(options.bins);
    fill_row_taps(options);
    taps_ = at::empty({shape.width * shape.column_pitch + shape.columns * shape.width_pitch}, accumulator(y));
    type == ElementType::f64 ? fill_column_taps<double>(options) : fill_column_taps<float>(options);
    shape.level = levels_.data();
    shape.row_taps = row_taps_.data();
  }
  ConvGeometry(const ConvGeometry&) = delete;  // shape points into the tables

  int64_t scratch() const { return PSPNET_FAST_PER_ISA(conv_scratch, type, shape); }
  int64_t products(bool channels_last) const {
    return channels_last ? shape.batch * shape.positions * shape.out_pitch : shape.out_channels * shape.taps() * pitches_;
  }

  // levels [B, Ck, Σk²] as the products read them: [Ck, pitch] a level.
  at::Tensor pack_cells(const at::Tensor& levels) const {
    at::Tensor packed = at::empty({shape.level_channels * pitches_}, accumulator(levels));
    for (const ConvLevel& level : levels_) {
      const int64_t k2 = level.k * level.k;
      packed.as_strided({shape.batch, shape.level_channels, k2}, {k2, level.pitch, 1}, level.cells)
          .copy_(levels.narrow(2, level.cell, k2));
    }
    return packed;
  }

  // The same transposed: [B · k², level_pitch] a level.
  at::Tensor pack_cells_transposed(const at::Tensor& levels) const {
    const int64_t pitch = shape.level_pitch;
    at::Tensor packed = at::empty({shape.batch * shape.packed_cells * pitch}, accumulator(levels));
    for (const ConvLevel& level : levels_) {
      const int64_t k2 = level.k * level.k;
      packed.as_strided({shape.batch, shape.level_channels, k2}, {k2 * pitch, 1, pitch}, shape.batch * level.cell * pitch)
          .copy_(levels.narrow(2, level.cell, k2));
    }
    return packed;
  }

 private:
  int64_t whole_vectors(int64_t count) const { return (count + lanes_ - 1) / lanes_ * lanes_; }

  void place_levels(at::IntArrayRef bins) {
    for (const int64_t k : bins) {
      ConvLevel level{};
      level.k = k;
      level.cell = levels_.empty() ? 0 : levels_.back().cell + levels_.back().k * levels_.back().k;
      level.column = shape.columns;
      level.position = shape.positions;
      level.pitch = whole_vectors(shape.batch * k * k);
      level.products = shape.out_channels * shape.taps() * pitches_;
      level.cells = shape.level_channels * pitches_;
      shape.columns += shape.kernel_columns * k;
      shape.positions += shape.taps() * k * k;
      pitches_ += level.pitch;
      levels_.push_back(level);
    }
    shape.column_pitch = whole_vectors(shape.columns);
    shape.width_pitch = whole_vectors(shape.width);
    shape.out_pitch = whole_vectors(shape.out_channels);
    shape.level_pitch = whole_vectors(shape.level_channels);
  }

  void fill_row_taps(const ConvOptions& options) {
    for (int64_t h = 0; h < shape.height; ++h) {
      for (const int64_t k : options.bins) {
        for (int64_t dy = 0; dy < shape.kernel_rows; ++dy) {
          const Taps taps = bilinear_taps(h + dy - shape.kernel_rows / 2, k, shape.height, options.align_corners);
          row_taps_.push_back({taps.first, taps.second, taps.first_weight, taps.second_weight});
        }
      }
    }
  }

  template <typename Acc>
  void fill_column_taps(const ConvOptions& options) {
    taps_.zero_();
    Acc* table = taps_.mutable_data_ptr<Acc>();
    Acc* transposed = table + shape.width * shape.column_pitch;
    const auto put = [&](int64_t w, int64_t column, double weight) {
      table[w * shape.column_pitch + column] += static_cast<Acc>(weight);
      transposed[column * shape.width_pitch + w] += static_cast<Acc>(weight);
    };
    for (const ConvLevel& level : levels_) {
      for (int64_t w = 0; w < shape.width; ++w) {
        for (int64_t dx = 0; dx < shape.kernel_columns; ++dx) {
          const int64_t position = w + dx - shape.kernel_columns / 2;
          const Taps taps = bilinear_taps(position, level.k, shape.width, options.align_corners);
          put(w, level.column + dx * level.k + taps.first, taps.first_weight);
          put(w, level.column + dx * level.k + taps.second, taps.second_weight);
        }
      }
    }
    shape.column_taps = table;
    shape.column_taps_t = transposed;
  }

  int64_t lanes_, pitches_ = 0;
  std::vector<ConvLevel> levels_;
  std::vector<RowTap> row_taps_;
  at::Tensor taps_;
};

}  // namespace pspnet_fast
