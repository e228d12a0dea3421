// Between Q of a pyramid's levels and an NCHW map, a plane at a time: rows interpolated from Q, then
// all levels' columns in one small product; and backward the transpose. Compiled once per instruction set.
#include "pyramid_conv_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "elements.h"
#include "pyramid_conv_rows.h"
#include "small_product.h"

// Scratch: positions, R [height, columns] or its gradient [height, column_pitch], a plane [height, width_pitch].
template <typename T, typename Acc>
void add_nchw(
    const ConvShape& s, const Acc* q, T* y, ConvEpilogue epilogue, Acc* scratch, int64_t begin, int64_t end) {
  Acc* own = scratch;
  Acc* rows = own + s.positions;
  Acc* sums = rows + s.height * s.columns;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / s.out_channels, o = plane % s.out_channels;
    for_each_run(s, b, [&](int64_t from, int64_t stride, int64_t position, int64_t n) {
      for (int64_t i = 0; i < n; ++i) own[position + i] = q[from + o * stride + i];
    });
    fill(rows, s.height * s.columns, Acc(0));
    for (int64_t h = 0; h < s.height; ++h) {
      Acc* row = rows + h * s.columns;
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) row[column + i] += u * own[first + i] + v * own[second + i];
      });
    }
    if (all_finite(own, s.positions)) {
      product(
          [&](int64_t h) { return static_cast<const Acc*>(rows + h * s.columns); }, s.height, contiguous(s.columns),
          static_cast<const Acc*>(s.column_taps_t), s.width_pitch, s.width_pitch / kLanes<Acc>, sums, s.width_pitch);
    } else {
      fill(sums, s.height * s.width_pitch, Acc(0));
      for_each_column_read<Acc>(s, [&](int64_t w, int64_t column, Acc weight) {
        for (int64_t h = 0; h < s.height; ++h) sums[h * s.width_pitch + w] += weight * rows[h * s.columns + column];
      });
    }

    T* target = y + b * s.image_stride + o * s.height * s.width;
    for (int64_t h = 0; h < s.height; ++h, target += s.width) {
      apply_epilogue<0>(target, sums + h * s.width_pitch, s.width, epilogue, o);
    }
  }
}

template <typename T, typename Acc>
void gather_nchw(const ConvShape& s, const T* grad, Acc* q, Acc* scratch, int64_t begin, int64_t end) {
  Acc* own = scratch;
  Acc* rows = own + s.positions;
  Acc* copy = rows + s.height * s.column_pitch;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / s.out_channels, o = plane % s.out_channels;
    const T* pixels = grad + b * s.image_stride + o * s.height * s.width;
    const Acc* numbers;
    if constexpr (__is_same(T, Acc)) {
      numbers = pixels;
    } else {
      for (int64_t i = 0; i < s.height * s.width; ++i) copy[i] = load(pixels[i]);
      numbers = copy;
    }
    const auto gather_rows = [&] {
      fill(own, s.positions, Acc(0));
      for (int64_t h = 0; h < s.height; ++h) {
        const Acc* row = rows + h * s.column_pitch;
        for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
          for (int64_t i = 0; i < n; ++i) own[first + i] += u * row[column + i];
          for (int64_t i = 0; i < n; ++i) own[second + i] += v * row[column + i];
        });
      }
    };
    product(
        [&](int64_t h) { return numbers + h * s.width; }, s.height, contiguous(s.width),
        static_cast<const Acc*>(s.column_taps), s.column_pitch, s.column_pitch / kLanes<Acc>, rows, s.column_pitch);
    gather_rows();
    if (!all_finite(own, s.positions)) {
      fill(rows, s.height * s.column_pitch, Acc(0));
      for_each_column_read<Acc>(s, [&](int64_t w, int64_t column, Acc weight) {
        for (int64_t h = 0; h < s.height; ++h) rows[h * s.column_pitch + column] += weight * numbers[h * s.width + w];
      });
      gather_rows();
    }
    for_each_run(s, b, [&](int64_t to, int64_t stride, int64_t position, int64_t n) {
      for (int64_t i = 0; i < n; ++i) q[to + o * stride + i] = own[position + i];
    });
  }
}

}  // namespace

void conv_add_nchw(
    ElementType type, const ConvShape& shape, const void* q, void* y, ConvEpilogue epilogue, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    add_nchw(
        shape, static_cast<const Acc*>(q), static_cast<T*>(y), epilogue, static_cast<Acc*>(scratch), begin, end);
  });
}

void conv_gather_nchw(
    ElementType type, const ConvShape& shape, const void* grad, void* q, void* scratch, int64_t begin,
    int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    gather_nchw(
        shape, static_cast<const T*>(grad), static_cast<Acc*>(q), static_cast<Acc*>(scratch), begin, end);
  });
}

int64_t conv_nchw_scratch(const ConvShape& s) {
  return s.positions + s.height * (s.column_pitch + s.width_pitch);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
