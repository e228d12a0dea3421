// Between Q of a pyramid's levels and a channels_last map, by blocks of channels: rows interpolated from
// Q, then all levels' columns in one small product; and backward the transpose. Compiled once per instruction set.
#include "pyramid_conv_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "elements.h"
#include "pyramid_conv_rows.h"
#include "small_product.h"

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename Acc>
constexpr int64_t kBlock = kPanel<Acc>;

// A task is a row of an image. Scratch: R [columns, kBlock], a row of pixels [width, kBlock].
template <typename T, typename Acc>
void add_nhwc(
    const ConvShape& s, const Acc* q, T* y, ConvEpilogue epilogue, Acc* scratch, int64_t begin, int64_t end) {
  constexpr int64_t block = kBlock<Acc>;
  Acc* rows = scratch;
  Acc* sums = rows + s.columns * block;
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / s.height, h = band % s.height;
    for (int64_t out = 0; out < s.out_channels; out += block) {
      const int64_t lanes = smaller(block, s.out_pitch - out), outs = smaller(block, s.out_channels - out);
      const Acc* own = q + out * s.batch * s.positions + b * s.positions * lanes;
      fill(rows, s.columns * block, Acc(0));
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) {
          const Acc *top = own + (first + i) * lanes, *bottom = own + (second + i) * lanes;
          Acc* __restrict__ row = rows + (column + i) * block;
          for (int64_t o = 0; o < lanes; ++o) row[o] += u * top[o] + v * bottom[o];
        }
      });
      const Acc* taps = static_cast<const Acc*>(s.column_taps);
      if (all_finite(rows, outs, s.columns, block)) {
        product(
            [&](int64_t w) { return taps + w * s.column_pitch; }, s.width, contiguous(s.columns),
            static_cast<const Acc*>(rows), block, lanes / kLanes<Acc>, sums, block);
      } else {
        fill(sums, s.width * block, Acc(0));
        for_each_column_read<Acc>(s, [&](int64_t w, int64_t column, Acc weight) {
          for (int64_t o = 0; o < outs; ++o) sums[w * block + o] += weight * rows[column * block + o];
        });
      }

      T* pixel = y + b * s.image_stride + h * s.width * s.pixel_stride + out;
      for (int64_t w = 0; w < s.width; ++w, pixel += s.pixel_stride) {
        apply_epilogue<1>(pixel, sums + w * block, outs, epilogue, out);
      }
    }
  }
}

// A task is a block of channels of an image. Scratch: positions [positions, kBlock], the gradient of R [columns, kBlock],
// a row of pixels [width, kBlock].
template <typename T, typename Acc>
struct GatherTask {
  static constexpr int64_t block = kBlock<Acc>;
  const ConvShape& s;
  const T* pixels;          // of the image, from this block's channels on
  int64_t outs, lanes;      // channels that exist, and those that are summed
  Acc *own, *rows, *copy;

  // The gradient of R from row h, by the matrix of weights or by what columns read.
  void sum_columns(int64_t h, bool by_reads) {
    const T* line = pixels + h * s.width * s.pixel_stride;
    const Acc* numbers = copy;
    int64_t pitch = block;
    if constexpr (__is_same(T, Acc)) {
      if (outs == block) numbers = line, pitch = s.pixel_stride;
    }
    if (numbers == copy) {
      for (int64_t w = 0; w < s.width; ++w) {
        for (int64_t o = 0; o < outs; ++o) copy[w * block + o] = load(line[w * s.pixel_stride + o]);
      }
    }
    if (by_reads) {
      fill(rows, s.columns * block, Acc(0));
      for_each_column_read<Acc>(s, [&](int64_t w, int64_t column, Acc weight) {
        for (int64_t o = 0; o < outs; ++o) rows[column * block + o] += weight * numbers[w * pitch + o];
      });
      return;
    }
    const Acc* taps = static_cast<const Acc*>(s.column_taps_t);
    product(
        [&](int64_t column) { return taps + column * s.width_pitch; }, s.columns, contiguous(s.width), numbers, pitch,
        lanes / kLanes<Acc>, rows, block);
  }

  void sum_positions(bool by_reads) {
    fill(own, s.positions * block, Acc(0));
    if (outs < block) fill(copy, s.width * block, Acc(0));
    for (int64_t h = 0; h < s.height; ++h) {
      sum_columns(h, by_reads);
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) {
          const Acc* row = rows + (column + i) * block;
          Acc *top = own + (first + i) * block, *bottom = own + (second + i) * block;
          for (int64_t o = 0; o < lanes; ++o) top[o] += u * row[o];
          for (int64_t o = 0; o < lanes; ++o) bottom[o] += v * row[o];
        }
      });
    }
  }
};

template <typename T, typename Acc>
void gather_nhwc(const ConvShape& s, const T* grad, Acc* q, Acc* scratch, int64_t begin, int64_t end) {
  constexpr int64_t block = kBlock<Acc>;
  const int64_t blocks = (s.out_channels + block - 1) / block;
  Acc* own = scratch;
  Acc* rows = own + s.positions * block;
  Acc* copy = rows + s.columns * block;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, out = task % blocks * block;
    const int64_t outs = smaller(block, s.out_channels - out), lanes = smaller(block, s.out_pitch - out);
    GatherTask<T, Acc> gather{s, grad + b * s.image_stride + out, outs, lanes, own, rows, copy};
    gather.sum_positions(/*by_reads=*/false);
    if (!all_finite(own, outs, s.positions, block)) gather.sum_positions(/*by_reads=*/true);
    for_each_run(s, b, [&](int64_t to, int64_t stride, int64_t position, int64_t n) {
      for (int64_t o = 0; o < outs; ++o) {
        for (int64_t i = 0; i < n; ++i) q[to + (out + o) * stride + i] = own[(position + i) * block + o];
      }
    });
  }
}

int64_t block_of(ElementType type) { return type == ElementType::f64 ? kBlock<double> : kBlock<float>; }

}  // namespace

void conv_add_nhwc(
    ElementType type, const ConvShape& shape, const void* q, void* y, ConvEpilogue epilogue, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    add_nhwc(
        shape, static_cast<const Acc*>(q), static_cast<T*>(y), epilogue, static_cast<Acc*>(scratch), begin, end);
  });
}

int64_t conv_nhwc_blocks(ElementType type, const ConvShape& s) {
  return (s.out_channels + block_of(type) - 1) / block_of(type);
}

void conv_gather_nhwc(
    ElementType type, const ConvShape& shape, const void* grad, void* q, void* scratch, int64_t begin,
    int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    gather_nhwc(
        shape, static_cast<const T*>(grad), static_cast<Acc*>(q), static_cast<Acc*>(scratch), begin, end);
  });
}

int64_t conv_nhwc_scratch(ElementType type, const ConvShape& s) {
  return (s.positions + s.columns + s.width) * block_of(type);
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
