// What the layouts of a convolution over a pyramid share between Q and map: taps of rows, runs of bins, and how
// sums are brought into y. Included by kernel files inside their namespace (see isa.h), behind elements.h.

// Calls body(column, position, first, second, weights) for what row h reads: entries [column, column + n) of R are the
// sum over taps of weighted entries [first, first + n) and [second, second + n) of a channel's positions. Rows in the
// padding read nothing.
template <typename Acc, typename Body>
inline void for_each_row_tap(const ConvShape& s, int64_t h, Body body) {
  for (int64_t l = 0; l < s.levels; ++l) {
    const ConvLevel& level = s.level[l];
    const int64_t n = s.kernel_columns * level.width;
    for (int64_t dy = 0; dy < s.kernel_rows; ++dy) {
      const AxisTap& tap = s.row_taps[(h * s.levels + l) * s.kernel_rows + dy];
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
inline void for_each_column_read(const ConvShape& s, Body body) {
  const AxisTap* tap = s.column_reads;
  for (int64_t w = 0; w < s.width; ++w) {
    for (int64_t l = 0; l < s.levels; ++l) {
      for (int64_t dx = 0; dx < s.kernel_columns; ++dx, ++tap) {
        if (tap->in_padding()) continue;
        const int64_t column = s.level[l].column + dx * s.level[l].width;
        body(w, column + tap->first, Acc(tap->first_weight));
        body(w, column + tap->second, Acc(tap->second_weight));
      }
    }
  }
}

// Whether the first `n` of `rows` rows that lie `pitch` apart are all finite.
template <typename Acc>
inline bool all_finite(const Acc* p, int64_t n, int64_t rows = 1, int64_t pitch = 0) {
  int special = 0;
  for (int64_t r = 0; r < rows; ++r, p += pitch) {
    for (int64_t i = 0; i < n; ++i) special |= !(p[i] - p[i] == 0);
  }
  return special == 0;
}

// Calls body(place in Q, its stride between channels, position, count) for every run of bins of image b that is
// contiguous in both; the place is that of channel 0.
template <typename Body>
inline void for_each_run(const ConvShape& s, int64_t b, Body body) {
  const int64_t taps = s.taps(), rows = s.out_channels * taps;
  for (int64_t l = 0; l < s.levels; ++l) {
    const ConvLevel& level = s.level[l];
    for (int64_t i = 0; i < level.height; ++i) {
      int64_t bin = (b * level.height + i) * level.width;
      for (int64_t j = 0, n; j < level.width; j += n, bin += n) {
        const int64_t inside = bin % s.panel, begin = bin - inside;
        const int64_t width = level.pitch - begin < s.panel ? level.pitch - begin : s.panel;
        n = level.width - j < width - inside ? level.width - j : width - inside;
        const int64_t from = level.q + begin * rows + inside;
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t dy = t / s.kernel_columns, dx = t % s.kernel_columns;
          const int64_t row = (dy * level.height + i) * s.kernel_columns + dx;
          body(from + t * width, taps * width, level.position + row * level.width + j, n);
        }
      }
    }
  }
}

// y[i] from y[i] and sum[i], for channels of their own factors (kFactors = 1) or one channel (0).
template <int64_t kFactors, typename T, typename Acc>
inline void apply_epilogue(
    T* __restrict__ y, const Acc* __restrict__ sum, int64_t n, const ConvEpilogue& epilogue, int64_t channel) {
  if (epilogue.write == ConvWrite::add) {
    for (int64_t i = 0; i < n; ++i) store(y + i, load(y[i]) + sum[i]);
  } else if (epilogue.write == ConvWrite::store) {
    for (int64_t i = 0; i < n; ++i) store(y + i, sum[i]);
  } else {
    const Acc* __restrict__ factor = static_cast<const Acc*>(epilogue.factor) + channel;
    const Acc* __restrict__ summand = static_cast<const Acc*>(epilogue.summand) + channel;
    for (int64_t i = 0; i < n; ++i) {
      const Acc v = (load(y[i]) + sum[i]) * factor[kFactors * i] + summand[kFactors * i];
      store(y + i, v < 0 ? Acc(0) : v);  // a NaN stays
    }
  }
}
