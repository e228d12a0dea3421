// What the operators on a pyramid's upsampled levels share on CPU tensors: the geometry that kernels take (tables of
// taps, pitches, packed levels), and the way between Q of the levels and a map, on all threads.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "../geometry.h"
#include "pyramid_levels_kernel.h"
#include "tasks.h"

namespace pspnet_fast {

struct ConvGeometry {
  ConvProblem problem{};

  // `map` is the convolution's output or its gradient, dense, or a run of channels of such a map.
  ConvGeometry(
      const at::Tensor& map, bool channels_last, int64_t level_channels, at::IntArrayRef kernel, at::IntArrayRef sizes,
      bool align_corners) {
    problem.type = element_type("map", map), problem.channels_last = channels_last;
    problem.batch = map.size(0), problem.height = map.size(2), problem.width = map.size(3);
    // The stride of a side of 1 says nothing: along a single column the next pixel is in the next row.
    problem.image_stride = map.stride(0);
    problem.pixel_stride = channels_last ? map.stride(problem.width > 1 ? 3 : 2) : 1;
    problem.level_channels = level_channels;
    problem.kernel_rows = kernel[0], problem.kernel_columns = kernel[1];
    problem.panel = PSPNET_FAST_PER_ISA(conv_panel)(problem.type);
    lanes_ = PSPNET_FAST_PER_ISA(conv_lanes)(problem.type);

    place_levels(sizes);
    take_outputs(0, map.size(1));
    fill_axis(row_taps_, problem.height, problem.kernel_rows, &ConvLevel::height, align_corners);
    fill_axis(column_reads_, problem.width, problem.kernel_columns, &ConvLevel::width, align_corners);
    taps_ = at::empty({problem.width * problem.column_pitch + problem.columns * problem.width_pitch}, accumulator(map));
    problem.type == ElementType::f64 ? fill_column_taps<double>() : fill_column_taps<float>();
    problem.level = levels_.data();
    problem.row_taps = row_taps_.data();
    problem.column_reads = column_reads_.data();
  }
  ConvGeometry(const ConvGeometry&) = delete;  // problem points into the tables

  // That of a convolution by a dense weight.
  ConvGeometry(const at::Tensor& map, const at::Tensor& levels, const at::Tensor& weight, const ConvOptions& options)
      : ConvGeometry(
            map, is_channels_last(map), levels.size(1), weight.sizes().slice(2), options.sizes, options.align_corners) {
    // Strides of a side of 1 say nothing: they are worked out from the layout.
    const bool taps_last = weight.is_contiguous();
    problem.weight_out = weight.size(1) * problem.taps();
    problem.weight_channel = taps_last ? problem.taps() : 1;
    problem.weight_tap = taps_last ? 1 : weight.size(1);
    problem.weight_level = options.first_level_channel;
  }

  // Q is that of output channels [first, first + count) from now on.
  void take_outputs(int64_t first, int64_t count) {
    problem.first_out = first, problem.out_channels = count;
    problem.out_pitch = whole_vectors(count);
    int64_t pitches = 0;
    for (ConvLevel& level : levels_) {
      level.q = count * problem.taps() * pitches;
      pitches += level.pitch;
    }
  }

  // Runs a kernel with so many numbers of scratch.
  void run(Kernel<ConvProblem>* kernel, int64_t tasks, int64_t scratch) const {
    run_tasks(kernel, problem, tasks, scratch * taps_.element_size());
  }

  // Memory for Q, as conv_q writes it in this layout, or as NCHW has it.
  at::Tensor empty_q(bool channels_last) const {
    const int64_t size = channels_last ? problem.batch * problem.positions * problem.out_pitch
                                       : problem.out_channels * problem.taps() * pitches_;
    return at::empty({size}, taps_.options());
  }

  // p, as conv_q reads it.
  at::Tensor empty_bins() const { return at::empty({problem.level_channels * pitches_}, taps_.options()); }

  // p from levels [B, Ck, Σhw].
  at::Tensor pack_bins(const at::Tensor& levels) const {
    const at::Tensor packed = empty_bins();
    for (const ConvLevel& level : levels_) {
      copy_panels(true, packed, bins_of(levels, level).transpose(0, 1).flatten(1), level.pooled, level.pitch);
    }
    return packed;
  }

  // The same transposed: [B · hw, level_pitch] a level.
  at::Tensor pack_bins_transposed(const at::Tensor& levels) const {
    const int64_t pitch = problem.level_pitch;
    const at::Tensor packed = at::empty({problem.batch * problem.packed_bins * pitch}, taps_.options());
    for (const ConvLevel& level : levels_) {
      const at::Tensor matrix = bins_of(levels, level).transpose(1, 2).flatten(0, 1);
      copy_panels(true, packed, matrix, problem.batch * level.first_bin * pitch, pitch);
    }
    return packed;
  }

  // levels [B, Ck, Σhw] from p.
  void unpack_bins(const at::Tensor& packed, const at::Tensor& levels) const {
    for (const ConvLevel& level : levels_) {
      const at::Tensor matrix = at::empty({problem.level_channels, problem.batch * level.area()}, taps_.options());
      copy_panels(false, packed, matrix, level.pooled, level.pitch);
      bins_of(levels, level).copy_(matrix.unflatten(1, {problem.batch, level.area()}).transpose(0, 1));
    }
  }

 private:
  int64_t whole_vectors(int64_t count) const { return ceil_div(count, lanes_) * lanes_; }

  at::Tensor bins_of(const at::Tensor& levels, const ConvLevel& level) const {
    return levels.narrow(2, level.first_bin, level.area());
  }

  // Copies a matrix to the panels that begin at `begin` of `packed`, or back from there.
  void copy_panels(bool pack, const at::Tensor& packed, const at::Tensor& matrix, int64_t begin, int64_t pitch) const {
    const int64_t rows = matrix.size(0), columns = matrix.size(1);
    for (int64_t first = 0; first < columns; first += problem.panel) {
      const int64_t width = std::min(problem.panel, pitch - first), count = std::min(width, columns - first);
      const at::Tensor panel = packed.as_strided({rows, count}, {width, 1}, begin + first * rows);
      const at::Tensor part = matrix.narrow(1, first, count);
      pack ? panel.copy_(part) : part.copy_(panel);
    }
  }

  void place_levels(at::IntArrayRef sizes) {
    problem.levels = static_cast<int64_t>(sizes.size()) / 2;
    for (int64_t l = 0; l < problem.levels; ++l) {
      ConvLevel level{};
      level.height = sizes[2 * l], level.width = sizes[2 * l + 1];
      level.first_bin = problem.packed_bins;
      level.column = problem.columns;
      level.position = problem.positions;
      level.pitch = whole_vectors(problem.batch * level.area());
      level.pooled = problem.level_channels * pitches_;
      problem.packed_bins += level.area();
      problem.columns += problem.kernel_columns * level.width;
      problem.positions += problem.taps() * level.area();
      pitches_ += level.pitch;
      levels_.push_back(level);
    }
    problem.column_pitch = whole_vectors(problem.columns);
    problem.width_pitch = whole_vectors(problem.width);
    problem.level_pitch = whole_vectors(problem.level_channels);
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
    Acc* transposed = table + problem.width * problem.column_pitch;
    const auto put = [&](int64_t w, int64_t column, double weight) {
      table[w * problem.column_pitch + column] += static_cast<Acc>(weight);
      transposed[column * problem.width_pitch + w] += static_cast<Acc>(weight);
    };
    const AxisTap* tap = column_reads_.data();
    for (int64_t w = 0; w < problem.width; ++w) {
      for (const ConvLevel& level : levels_) {
        for (int64_t dx = 0; dx < problem.kernel_columns; ++dx, ++tap) {
          put(w, level.column + dx * level.width + tap->first, tap->first_weight);
          put(w, level.column + dx * level.width + tap->second, tap->second_weight);
        }
      }
    }
    problem.column_taps = table;
    problem.column_taps_t = transposed;
  }

  int64_t lanes_, pitches_ = 0;
  std::vector<ConvLevel> levels_;
  std::vector<AxisTap> row_taps_, column_reads_;
  at::Tensor taps_;
};

// y from interpolated Q, as problem.write says.
inline void q_to_map(ConvGeometry& geometry, const at::Tensor& q, const at::Tensor& y) {
  ConvProblem& p = geometry.problem;
  p.q = q.const_data_ptr(), p.result = y.mutable_data_ptr();
  const int64_t tasks = p.batch * (p.channels_last ? p.height : p.out_channels);
  geometry.run(PSPNET_FAST_PER_ISA(conv_q_to_map), tasks, conv_map_scratch(p));
}

// The gradient of Q, as NCHW has it, from that of the map.
inline at::Tensor map_to_q(ConvGeometry& geometry, const at::Tensor& grad) {
  ConvProblem& p = geometry.problem;
  const at::Tensor q = geometry.empty_q(/*channels_last=*/false);
  p.map = grad.const_data_ptr(), p.result = q.mutable_data_ptr();
  const int64_t tasks = p.batch * (p.channels_last ? ceil_div(p.out_channels, p.panel) : p.out_channels);
  geometry.run(PSPNET_FAST_PER_ISA(conv_map_to_q), tasks, conv_map_scratch(p));
  return q;
}

}  // namespace pspnet_fast
