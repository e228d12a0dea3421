// Between Q of a pyramid's levels and a map: rows interpolated from Q, then all levels' columns in one small product;
// and backward the transpose. A plane at a time in NCHW, by blocks of channels in channels_last. Compiled once per
// instruction set.
#include "pyramid_levels_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "small_product.h"

// ---- What the layouts share ----------------------------------------------------------------------------------------

// Calls body(column, position, first, second, weights) for what row h reads: entries [column, column + n) of R are the
// sum over taps of weighted entries [first, first + n) and [second, second + n) of a channel's positions. Rows in the
// padding read nothing.
template <typename Acc, typename Body>
inline void for_each_row_tap(const ConvProblem& p, int64_t h, Body body) {
  for (int64_t l = 0; l < p.levels; ++l) {
    const ConvLevel& level = p.level[l];
    const int64_t n = p.kernel_columns * level.width;
    for (int64_t dy = 0; dy < p.kernel_rows; ++dy) {
      const AxisTap& tap = p.row_taps[(h * p.levels + l) * p.kernel_rows + dy];
      if (tap.in_padding()) continue;
      const int64_t row = level.position + dy * level.height * n;
      body(level.column, n, row + tap.first * n, row + tap.second * n, Acc(tap.first_weight), Acc(tap.second_weight));
    }
  }
}

// Calls body(w, column of R, weight) for what each column of the map reads, be the weight 0.
//
// The product of R by the matrix of these weights multiplies every entry by zeros, too, which an infinite or NaN one
// turns into NaN all along its row. Where R has such an entry, the sum is taken over these instead.
template <typename Acc, typename Body>
inline void for_each_column_read(const ConvProblem& p, Body body) {
  const AxisTap* tap = p.column_reads;
  for (int64_t w = 0; w < p.width; ++w) {
    for (int64_t l = 0; l < p.levels; ++l) {
      for (int64_t dx = 0; dx < p.kernel_columns; ++dx, ++tap) {
        if (tap->in_padding()) continue;
        const int64_t column = p.level[l].column + dx * p.level[l].width;
        body(w, column + tap->first, Acc(tap->first_weight));
        body(w, column + tap->second, Acc(tap->second_weight));
      }
    }
  }
}

// Whether the first `n` of `rows` rows that lie `pitch` apart are all finite.
template <typename Acc>
inline bool all_finite(const Acc* at, int64_t n, int64_t rows = 1, int64_t pitch = 0) {
  int special = 0;
  for (int64_t r = 0; r < rows; ++r, at += pitch) {
    for (int64_t i = 0; i < n; ++i) special |= !(at[i] - at[i] == 0);
  }
  return special == 0;
}

// Calls body(place in Q, its stride between channels, position, count) for every run of bins of image b that is
// contiguous in both; the place is that of channel 0.
template <typename Body>
inline void for_each_run(const ConvProblem& p, int64_t b, Body body) {
  const int64_t taps = p.taps(), rows = p.out_channels * taps;
  for (int64_t l = 0; l < p.levels; ++l) {
    const ConvLevel& level = p.level[l];
    for (int64_t i = 0; i < level.height; ++i) {
      int64_t bin = (b * level.height + i) * level.width;
      for (int64_t j = 0, n; j < level.width; j += n, bin += n) {
        const int64_t inside = bin % p.panel, begin = bin - inside, width = smaller(level.pitch - begin, p.panel);
        n = smaller(level.width - j, width - inside);
        const int64_t from = level.q + begin * rows + inside;
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t dy = t / p.kernel_columns, dx = t % p.kernel_columns;
          const int64_t row = (dy * level.height + i) * p.kernel_columns + dx;
          body(from + t * width, taps * width, level.position + row * level.width + j, n);
        }
      }
    }
  }
}

// y[i] from y[i] and sum[i], for channels of their own factors from `channel` on (kFactors = 1) or one channel (0).
template <int64_t kFactors, typename T, typename Acc>
inline void write(const ConvProblem& p, T* __restrict__ y, const Acc* __restrict__ sum, int64_t n, int64_t channel) {
  if (p.write == ConvWrite::add) {
    for (int64_t i = 0; i < n; ++i) store(y + i, load(y[i]) + sum[i]);
  } else if (p.write == ConvWrite::store) {
    for (int64_t i = 0; i < n; ++i) store(y + i, sum[i]);
  } else {
    const Acc* __restrict__ factor = static_cast<const Acc*>(p.factor) + p.first_out + channel;
    const Acc* __restrict__ summand = static_cast<const Acc*>(p.summand) + p.first_out + channel;
    for (int64_t i = 0; i < n; ++i) {
      const Acc v = (load(y[i]) + sum[i]) * factor[kFactors * i] + summand[kFactors * i];
      store(y + i, v < 0 ? Acc(0) : v);  // a NaN stays
    }
  }
}

// ---- NCHW. Scratch: positions, R [height, columns] or its gradient [height, column_pitch], a plane. ----------------

template <typename T, typename Acc>
void q_to_plane(const ConvProblem& p, Acc* own, int64_t plane) {
  Acc *rows = own + p.positions, *sums = rows + p.height * p.columns;
  const int64_t b = plane / p.out_channels, o = plane % p.out_channels;
  const Acc* q = static_cast<const Acc*>(p.q);
  for_each_run(p, b, [&](int64_t from, int64_t stride, int64_t position, int64_t n) {
    for (int64_t i = 0; i < n; ++i) own[position + i] = q[from + o * stride + i];
  });
  fill(rows, p.height * p.columns, Acc(0));
  for (int64_t h = 0; h < p.height; ++h) {
    Acc* row = rows + h * p.columns;
    for_each_row_tap<Acc>(p, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
      for (int64_t i = 0; i < n; ++i) row[column + i] += u * own[first + i] + v * own[second + i];
    });
  }
  if (all_finite(own, p.positions)) {
    product(
        [&](int64_t h) { return rows + h * p.columns; }, p.height, contiguous(p.columns),
        static_cast<const Acc*>(p.column_taps_t), p.width_pitch, p.width_pitch, sums, p.width_pitch);
  } else {
    fill(sums, p.height * p.width_pitch, Acc(0));
    for_each_column_read<Acc>(p, [&](int64_t w, int64_t column, Acc weight) {
      for (int64_t h = 0; h < p.height; ++h) sums[h * p.width_pitch + w] += weight * rows[h * p.columns + column];
    });
  }
  T* y = static_cast<T*>(p.result) + b * p.image_stride + o * p.height * p.width;
  for (int64_t h = 0; h < p.height; ++h) write<0>(p, y + h * p.width, sums + h * p.width_pitch, p.width, o);
}

template <typename T, typename Acc>
void plane_to_q(const ConvProblem& p, Acc* own, int64_t plane) {
  Acc *rows = own + p.positions, *copy = rows + p.height * p.column_pitch;
  const int64_t b = plane / p.out_channels, o = plane % p.out_channels;
  const T* pixels = static_cast<const T*>(p.map) + b * p.image_stride + o * p.height * p.width;
  const Acc* numbers = copy;
  if constexpr (__is_same(T, Acc)) {
    numbers = pixels;
  } else {
    for (int64_t i = 0; i < p.height * p.width; ++i) copy[i] = load(pixels[i]);
  }
  const auto gather_rows = [&] {
    fill(own, p.positions, Acc(0));
    for (int64_t h = 0; h < p.height; ++h) {
      const Acc* row = rows + h * p.column_pitch;
      for_each_row_tap<Acc>(p, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) own[first + i] += u * row[column + i];
        for (int64_t i = 0; i < n; ++i) own[second + i] += v * row[column + i];
      });
    }
  };
  product(
      [&](int64_t h) { return numbers + h * p.width; }, p.height, contiguous(p.width),
      static_cast<const Acc*>(p.column_taps), p.column_pitch, p.column_pitch, rows, p.column_pitch);
  gather_rows();
  if (!all_finite(own, p.positions)) {
    fill(rows, p.height * p.column_pitch, Acc(0));
    for_each_column_read<Acc>(p, [&](int64_t w, int64_t column, Acc weight) {
      for (int64_t h = 0; h < p.height; ++h) rows[h * p.column_pitch + column] += weight * numbers[h * p.width + w];
    });
    gather_rows();
  }
  Acc* q = static_cast<Acc*>(p.result);
  for_each_run(p, b, [&](int64_t to, int64_t stride, int64_t position, int64_t n) {
    for (int64_t i = 0; i < n; ++i) q[to + o * stride + i] = own[position + i];
  });
}

// ---- channels_last. Scratch: positions, R or its gradient, a row of pixels; a panel of channels of each. -----------

template <typename T, typename Acc>
void q_to_row(const ConvProblem& p, Acc* rows, int64_t task) {
  constexpr int64_t block = kPanel<Acc>;
  Acc* sums = rows + p.columns * block;
  const int64_t b = task / p.height, h = task % p.height;
  for (int64_t out = 0; out < p.out_channels; out += block) {
    const int64_t lanes = smaller(block, p.out_pitch - out), outs = smaller(block, p.out_channels - out);
    const Acc* own = static_cast<const Acc*>(p.q) + out * p.batch * p.positions + b * p.positions * lanes;
    fill(rows, p.columns * block, Acc(0));
    for_each_row_tap<Acc>(p, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
      for (int64_t i = 0; i < n; ++i) {
        const Acc *top = own + (first + i) * lanes, *bottom = own + (second + i) * lanes;
        Acc* __restrict__ row = rows + (column + i) * block;
        for (int64_t o = 0; o < lanes; ++o) row[o] += u * top[o] + v * bottom[o];
      }
    });
    if (all_finite(rows, outs, p.columns, block)) {
      const Acc* taps = static_cast<const Acc*>(p.column_taps);
      product(
          [&](int64_t w) { return taps + w * p.column_pitch; }, p.width, contiguous(p.columns), rows, block, lanes,
          sums, block);
    } else {
      fill(sums, p.width * block, Acc(0));
      for_each_column_read<Acc>(p, [&](int64_t w, int64_t column, Acc weight) {
        for (int64_t o = 0; o < outs; ++o) sums[w * block + o] += weight * rows[column * block + o];
      });
    }
    T* pixel = static_cast<T*>(p.result) + b * p.image_stride + h * p.width * p.pixel_stride + out;
    for (int64_t w = 0; w < p.width; ++w, pixel += p.pixel_stride) write<1>(p, pixel, sums + w * block, outs, out);
  }
}

template <typename T, typename Acc>
void block_to_q(const ConvProblem& p, Acc* own, int64_t task) {
  constexpr int64_t block = kPanel<Acc>;
  const int64_t blocks = ceil_div(p.out_channels, block), b = task / blocks, out = task % blocks * block;
  const int64_t outs = smaller(block, p.out_channels - out), lanes = smaller(block, p.out_pitch - out);
  Acc *rows = own + p.positions * block, *copy = rows + p.columns * block;
  const T* image = static_cast<const T*>(p.map) + b * p.image_stride + out;

  // The gradient of R from row h, by the matrix of weights or by what columns read.
  const auto sum_columns = [&](int64_t h, bool by_reads) {
    const T* pixels = image + h * p.width * p.pixel_stride;
    const Acc* numbers = copy;
    int64_t pitch = block;
    if constexpr (__is_same(T, Acc)) {
      if (outs == block) numbers = pixels, pitch = p.pixel_stride;
    }
    for (int64_t w = 0; numbers == copy && w < p.width; ++w) {
      for (int64_t o = 0; o < outs; ++o) copy[w * block + o] = load(pixels[w * p.pixel_stride + o]);
    }
    if (by_reads) {
      fill(rows, p.columns * block, Acc(0));
      for_each_column_read<Acc>(p, [&](int64_t w, int64_t column, Acc weight) {
        for (int64_t o = 0; o < outs; ++o) rows[column * block + o] += weight * numbers[w * pitch + o];
      });
    } else {
      const Acc* taps = static_cast<const Acc*>(p.column_taps_t);
      product(
          [&](int64_t column) { return taps + column * p.width_pitch; }, p.columns, contiguous(p.width), numbers, pitch,
          lanes, rows, block);
    }
  };
  const auto sum_positions = [&](bool by_reads) {
    fill(own, p.positions * block, Acc(0));
    if (outs < block) fill(copy, p.width * block, Acc(0));
    for (int64_t h = 0; h < p.height; ++h) {
      sum_columns(h, by_reads);
      for_each_row_tap<Acc>(p, h, [&](int64_t column, int64_t n, int64_t first, int64_t second, Acc u, Acc v) {
        for (int64_t i = 0; i < n; ++i) {
          const Acc* row = rows + (column + i) * block;
          Acc *top = own + (first + i) * block, *bottom = own + (second + i) * block;
          for (int64_t o = 0; o < lanes; ++o) top[o] += u * row[o];
          for (int64_t o = 0; o < lanes; ++o) bottom[o] += v * row[o];
        }
      });
    }
  };
  sum_positions(/*by_reads=*/false);
  if (!all_finite(own, outs, p.positions, block)) sum_positions(/*by_reads=*/true);
  Acc* q = static_cast<Acc*>(p.result);
  for_each_run(p, b, [&](int64_t to, int64_t stride, int64_t position, int64_t n) {
    for (int64_t o = 0; o < outs; ++o) {
      for (int64_t i = 0; i < n; ++i) q[to + (out + o) * stride + i] = own[(position + i) * block + o];
    }
  });
}

}  // namespace

void conv_q_to_map(const ConvProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() {
    const auto task = p.channels_last ? q_to_row<T, Acc> : q_to_plane<T, Acc>;
    for (int64_t i = begin; i < end; ++i) task(p, static_cast<Acc*>(scratch), i);
  });
}

void conv_map_to_q(const ConvProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() {
    const auto task = p.channels_last ? block_to_q<T, Acc> : plane_to_q<T, Acc>;
    for (int64_t i = begin; i < end; ++i) task(p, static_cast<Acc*>(scratch), i);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
