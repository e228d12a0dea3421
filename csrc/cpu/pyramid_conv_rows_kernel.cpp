// Between the products of a pyramid's levels and the convolution's output: rows interpolated from the products, then all
// levels' columns in one small product, added into y; and backward the transpose. Compiled once per instruction set.
#include "intrinsics.h"
#include "pyramid_conv_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "elements.h"
#include "small_product.h"

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls body(column, position, first, second, weights) for what row h reads: entries [column, column + n) of R are the
// sum over taps of weighted entries [first, first + n) and [second, second + n) of a channel's positions.
template <typename Acc, typename Body>
inline void for_each_row_tap(const ConvShape& s, int64_t h, Body body) {
  for (int64_t l = 0; l < s.levels; ++l) {
    const ConvLevel& level = s.level[l];
    const int64_t n = s.kernel_columns * level.k;
    for (int64_t dy = 0; dy < s.kernel_rows; ++dy) {
      const RowTap& tap = s.row_taps[(h * s.levels + l) * s.kernel_rows + dy];
      const int64_t row = level.position + dy * level.k * n;
      body(level.column, n, row + tap.first * n, row + tap.second * n, Acc(tap.first_weight), Acc(tap.second_weight));
    }
  }
}

// Calls body(place in Z, position, count) for every run of cells of image b and channel o that is contiguous in both.
template <typename Body>
inline void for_each_run(const ConvShape& s, int64_t b, int64_t o, Body body) {
  for (int64_t l = 0; l < s.levels; ++l) {
    const ConvLevel& level = s.level[l];
    const int64_t k = level.k;
    for (int64_t t = 0; t < s.taps(); ++t) {
      const int64_t dy = t / s.kernel_columns, dx = t % s.kernel_columns;
      const int64_t from = level.products + (o * s.taps() + t) * level.pitch + b * k * k;
      for (int64_t i = 0; i < k; ++i) {
        body(from + i * k, level.position + ((dy * k + i) * s.kernel_columns + dx) * k, k);
      }
    }
  }
}

template <typename T, typename Acc>
inline void finish(T* y, const Acc* sum, int64_t n, Acc factor, Acc summand) {
  for (int64_t i = 0; i < n; ++i) {
    const Acc v = (load(y[i]) + sum[i]) * factor + summand;
    store(y + i, v < 0 ? Acc(0) : v);  // a NaN stays
  }
}
template <typename T, typename Acc>
inline void finish(T* __restrict__ y, const Acc* __restrict__ sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(y + i, load(y[i]) + sum[i]);
}
template <typename T, typename Acc>
inline void finish_pixel(
    T* __restrict__ y, const Acc* __restrict__ sum, int64_t n, const Acc* __restrict__ factor,
    const Acc* __restrict__ summand) {
  for (int64_t i = 0; i < n; ++i) {
    const Acc v = (load(y[i]) + sum[i]) * factor[i] + summand[i];
    store(y + i, v < 0 ? Acc(0) : v);
  }
}

// ---- NCHW: a task is a plane ----------------------------------------------------------------------------------------

// Scratch: positions, R [height, columns] or its gradient [height, column_pitch], a plane [height, width_pitch].
template <typename T, typename Acc>
void add_planes(
    const ConvShape& s, const Acc* products, T* y, ConvEpilogue epilogue, Acc* scratch, int64_t begin, int64_t end) {
  Acc* own = scratch;
  Acc* rows = own + s.positions;
  Acc* sums = rows + s.height * s.columns;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / s.out_channels, o = plane % s.out_channels;
    for_each_run(s, b, o, [&](int64_t from, int64_t position, int64_t n) {
      for (int64_t i = 0; i < n; ++i) own[position + i] = products[from + i];
    });
    fill(rows, s.height * s.columns, Acc(0));
    for (int64_t h = 0; h < s.height; ++h) {
      Acc* row = rows + h * s.columns;
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) row[column + i] += u * own[first + i] + v * own[second + i];
      });
    }
    product(
        [&](int64_t h) { return static_cast<const Acc*>(rows + h * s.columns); }, s.height, contiguous(s.columns),
        static_cast<const Acc*>(s.column_taps_t), s.width_pitch, s.width_pitch / kLanes<Acc>, sums, s.width_pitch);

    T* target = y + plane * s.height * s.width;
    for (int64_t h = 0; h < s.height; ++h, target += s.width) {
      if (epilogue.factor == nullptr) {
        finish(target, sums + h * s.width_pitch, s.width);
      } else {
        const Acc factor = static_cast<const Acc*>(epilogue.factor)[o];
        finish(target, sums + h * s.width_pitch, s.width, factor, static_cast<const Acc*>(epilogue.summand)[o]);
      }
    }
  }
}

template <typename T, typename Acc>
void gather_planes(const ConvShape& s, const T* grad, Acc* products, Acc* scratch, int64_t begin, int64_t end) {
  Acc* own = scratch;
  Acc* rows = own + s.positions;
  Acc* copy = rows + s.height * s.column_pitch;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t b = plane / s.out_channels, o = plane % s.out_channels;
    const T* pixels = grad + plane * s.height * s.width;
    const Acc* numbers;
    if constexpr (__is_same(T, Acc)) {
      numbers = pixels;
    } else {
      for (int64_t i = 0; i < s.height * s.width; ++i) copy[i] = load(pixels[i]);
      numbers = copy;
    }
    product(
        [&](int64_t h) { return numbers + h * s.width; }, s.height, contiguous(s.width),
        static_cast<const Acc*>(s.column_taps), s.column_pitch, s.column_pitch / kLanes<Acc>, rows, s.column_pitch);

    fill(own, s.positions, Acc(0));
    for (int64_t h = 0; h < s.height; ++h) {
      const Acc* row = rows + h * s.column_pitch;
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) own[first + i] += u * row[column + i];
        for (int64_t i = 0; i < n; ++i) own[second + i] += v * row[column + i];
      });
    }
    for_each_run(s, b, o, [&](int64_t to, int64_t position, int64_t n) {
      for (int64_t i = 0; i < n; ++i) products[to + i] = own[position + i];
    });
  }
}

// ---- channels_last: blocks of kBlock channels -----------------------------------------------------------------------

template <typename Acc>
constexpr int64_t kBlock = kTileVectors * kLanes<Acc>;

// A task is a row of an image. Scratch: R [columns, kBlock], a row of pixels [width, kBlock].
template <typename T, typename Acc>
void add_bands(
    const ConvShape& s, const Acc* products, T* y, ConvEpilogue epilogue, Acc* scratch, int64_t begin, int64_t end) {
  constexpr int64_t block = kBlock<Acc>;
  Acc* rows = scratch;
  Acc* sums = rows + s.columns * block;
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / s.height, h = band % s.height;
    for (int64_t out = 0; out < s.out_channels; out += block) {
      const int64_t lanes = smaller(block, s.out_pitch - out), outs = smaller(block, s.out_channels - out);
      const Acc* own = products + b * s.positions * s.out_pitch + out;
      fill(rows, s.columns * block, Acc(0));
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        if (u == 0 && v == 0) return;
        for (int64_t i = 0; i < n; ++i) {
          const Acc *upper = own + (first + i) * s.out_pitch, *lower = own + (second + i) * s.out_pitch;
          Acc* __restrict__ row = rows + (column + i) * block;
          for (int64_t o = 0; o < lanes; ++o) row[o] += u * upper[o] + v * lower[o];
        }
      });
      const Acc* taps = static_cast<const Acc*>(s.column_taps);
      product(
          [&](int64_t w) { return taps + w * s.column_pitch; }, s.width, contiguous(s.columns),
          static_cast<const Acc*>(rows), block, lanes / kLanes<Acc>, sums, block);

      T* pixel = y + band * s.width * s.out_channels + out;
      for (int64_t w = 0; w < s.width; ++w, pixel += s.out_channels) {
        if (epilogue.factor == nullptr) {
          finish(pixel, sums + w * block, outs);
        } else {
          const Acc* factor = static_cast<const Acc*>(epilogue.factor) + out;
          finish_pixel(pixel, sums + w * block, outs, factor, static_cast<const Acc*>(epilogue.summand) + out);
        }
      }
    }
  }
}

// A task is a block of channels of an image. Scratch: positions [positions, kBlock], the gradient of R [columns, kBlock],
// a row of pixels [width, kBlock].
template <typename T, typename Acc>
void gather_bands(const ConvShape& s, const T* grad, Acc* products, Acc* scratch, int64_t begin, int64_t end) {
  constexpr int64_t block = kBlock<Acc>;
  const int64_t blocks = (s.out_channels + block - 1) / block;
  Acc* own = scratch;
  Acc* rows = own + s.positions * block;
  Acc* copy = rows + s.columns * block;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, out = task % blocks * block;
    const int64_t outs = smaller(block, s.out_channels - out), lanes = smaller(block, s.out_pitch - out);
    fill(own, s.positions * block, Acc(0));
    if (outs < block) fill(copy, s.width * block, Acc(0));
    for (int64_t h = 0; h < s.height; ++h) {
      const T* pixels = grad + (b * s.height + h) * s.width * s.out_channels + out;
      const Acc* numbers = copy;
      int64_t pitch = block;
      if constexpr (__is_same(T, Acc)) {
        if (outs == block) numbers = pixels, pitch = s.out_channels;
      }
      if (numbers == copy) {
        for (int64_t w = 0; w < s.width; ++w) {
          for (int64_t o = 0; o < outs; ++o) copy[w * block + o] = load(pixels[w * s.out_channels + o]);
        }
      }
      const Acc* taps = static_cast<const Acc*>(s.column_taps_t);
      product(
          [&](int64_t column) { return taps + column * s.width_pitch; }, s.columns, contiguous(s.width), numbers, pitch,
          lanes / kLanes<Acc>, rows, block);
      for_each_row_tap<Acc>(s, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        if (u == 0 && v == 0) return;
        for (int64_t i = 0; i < n; ++i) {
          const Acc* row = rows + (column + i) * block;
          Acc *upper = own + (first + i) * block, *lower = own + (second + i) * block;
          for (int64_t o = 0; o < lanes; ++o) upper[o] += u * row[o];
          for (int64_t o = 0; o < lanes; ++o) lower[o] += v * row[o];
        }
      });
    }
    for (int64_t o = 0; o < outs; ++o) {
      for_each_run(s, b, out + o, [&](int64_t to, int64_t position, int64_t n) {
        for (int64_t i = 0; i < n; ++i) products[to + i] = own[(position + i) * block + o];
      });
    }
  }
}

}  // namespace

int64_t conv_lanes(ElementType type) { return type == ElementType::f64 ? kLanes<double> : kLanes<float>; }

int64_t conv_scratch(ElementType type, const ConvShape& s) {
  const int64_t block = type == ElementType::f64 ? kBlock<double> : kBlock<float>;
  const int64_t planes = s.positions + s.height * s.column_pitch + s.height * s.width_pitch;
  const int64_t bands = (s.positions + s.columns + s.width) * block;
  int64_t pitch = 0;
  for (int64_t l = 0; l < s.levels; ++l) pitch = s.level[l].pitch > pitch ? s.level[l].pitch : pitch;
  const int64_t products = kConvOuts * s.taps() * (pitch + s.level_channels);
  const int64_t weights = kConvOuts * s.taps() * s.level_pitch;
  const int64_t levels = kConvChannels * (pitch + s.out_channels * s.taps());
  const int64_t sizes[] = {planes, bands, products, weights, levels};
  int64_t most = 0;
  for (int64_t size : sizes) most = size > most ? size : most;
  return most;
}

void conv_add(
    ElementType type, bool channels_last, const ConvShape& shape, const void* products, void* y, ConvEpilogue epilogue,
    void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    using Acc = typename AccOf<T>::type;
    const Acc* from = static_cast<const Acc*>(products);
    channels_last ? add_bands(shape, from, static_cast<T*>(y), epilogue, static_cast<Acc*>(scratch), begin, end)
                  : add_planes(shape, from, static_cast<T*>(y), epilogue, static_cast<Acc*>(scratch), begin, end);
  });
}

int64_t conv_gather_tasks(ElementType type, bool channels_last, const ConvShape& s) {
  if (!channels_last) return s.batch * s.out_channels;
  const int64_t block = type == ElementType::f64 ? kBlock<double> : kBlock<float>;
  return s.batch * ((s.out_channels + block - 1) / block);
}

void conv_gather(
    ElementType type, bool channels_last, const ConvShape& shape, const void* grad, void* products, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    using Acc = typename AccOf<T>::type;
    Acc* to = static_cast<Acc*>(products);
    channels_last ? gather_bands(shape, static_cast<const T*>(grad), to, static_cast<Acc*>(scratch), begin, end)
                  : gather_planes(shape, static_cast<const T*>(grad), to, static_cast<Acc*>(scratch), begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
