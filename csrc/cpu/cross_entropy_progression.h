// The cross-entropy of a tile without exponentials per pixel. Included by kernel files inside their namespace (isa.h).
//
// Along an output row of a cell a class's exponentials are E · R^k; from one row to the next E is multiplied by D and
// R by S (docs/how.md has the derivation).
//
// Valid while exponentials neither overflow nor vanish: while every node's logits lie within kMaxRange of each other.
// Something is subtracted from the logits of each corner of a cell, the same from all classes; interpolation then
// takes the same amount from every class of a pixel, which softmax does not notice, and sums need no maximum of their
// own.
//
//   One label.   The label's logit, where that stays within kMaxRange: its term is 1 in every sum, and the loss is the
//                logarithm of the sum. What is left of 1 + others is exact where the label is nearly certain.
//   Several.     The corner's largest logit: the largest term is at least 2^-110. The labels' terms are computed once more,
//                pixel by pixel, and the loss is the logarithm of term / sum.
//
// Rounding of D, S and R grows with every product, most where they are all near 1, and there loss and logits are
// small. So where all logits of a tile lie within kNarrowRange, their distances from 1 are carried on instead.

constexpr float kLog2E = 1.44269504f;
constexpr float kMaxRange = 76.0f;         // 110 · ln 2
constexpr float kNarrowRange = 6.0f;
constexpr int kMaxProgression = 9;         // columns summed at once
constexpr int kRowsAtOnce = kVectorBytes == 64 ? 2 : 1;  // whose sums stay in registers: 32 of AVX-512, else 16
constexpr int64_t kAnchorRows = 8;  // then E and R are computed anew: rounding grows with every product

// What is subtracted at the corners of a tile's cells, and the lanes whose pixels have terms of their own.
struct Shift {
  Lanes<float> corner[4];
  bool mixed[kLanes<float>], any_mixed;
};

inline Shift choose_shift(
    const Tile<float>& tile, const float* top_peak, const float* bottom_peak, const float* top_range,
    const float* bottom_range) {
  using V = Lanes<float>;
  constexpr int64_t L = kLanes<float>;
  const V peak[4] = {get(top_peak), get(top_peak + 1), get(bottom_peak), get(bottom_peak + 1)};
  const V range[4] = {get(top_range), get(top_range + 1), get(bottom_range), get(bottom_range + 1)};
  float own[4][L];
  for (int64_t i = 0; i < L; ++i) {
    const int64_t at = tile.label[i] < 0 ? i : tile.label[i] * tile.padded + i;
    own[0][i] = tile.top[at], own[1][i] = tile.top[at + 1];
    own[2][i] = tile.bottom[at], own[3][i] = tile.bottom[at + 1];
  }
  V above{}, below{};  // the largest distances of other logits from the label's
  for (int j = 0; j < 4; ++j) {
    const V up = peak[j] - get(own[j]), down = range[j] - up;
    above = up > above ? up : above, below = down > below ? down : below;
  }
  Shift shift;
  shift.any_mixed = false;
  float spread[L];
  put(spread, above + below);
  IntLanes<float> one_label{};
  for (int64_t i = 0; i < L; ++i) {
    const bool fits = tile.label[i] >= 0 && spread[i] < kMaxRange;
    shift.mixed[i] = !fits && tile.label[i] != kNone, shift.any_mixed |= shift.mixed[i];
    one_label[i] = fits ? -1 : 0;
  }
  for (int j = 0; j < 4; ++j) shift.corner[j] = one_label ? get(own[j]) : peak[j];
  return shift;
}

inline int64_t row_units(int64_t rows) { return ceil_div(rows, kRowsAtOnce); }
inline int64_t progression_stride(int64_t rows) { return (2 + 2 * row_units(rows)) * kLanes<float>; }

// Memory for tiles of so many rows and columns: progressions of every class, and of each pixel a weight and its
// label's term.
inline int64_t progression_memory(int64_t classes, int64_t rows) {
  return classes * progression_stride(rows) + 2 * rows * kMaxProgression * kLanes<float>;
}

// One step of a progression whose ratio is kept as such, or as its distance from 1.
template <bool NARROW>
struct Ratio {
  static __attribute__((always_inline)) Lanes<float> exp(Lanes<float> z) {
    return NARROW ? exp2_minus_1(z, kLog2E) : exp2_bounded(z, kLog2E);
  }
  template <typename T>
  static __attribute__((always_inline)) T value(T ratio) { return NARROW ? 1.0f + ratio : ratio; }
  template <typename T>
  static __attribute__((always_inline)) T times(T line, T ratio) { return NARROW ? line + line * ratio : line * ratio; }
  template <typename T>
  static __attribute__((always_inline)) T ratio_times(T ratio, T other) {
    return NARROW ? ratio + (1.0f + ratio) * other : ratio * other;
  }
};

// Of each class: D and S, then E and R at every kRowsAtOnce-th row.
template <bool NARROW>
void start_progressions(const Tile<float>& tile, const Shift& shift, int64_t column) {
  using V = Lanes<float>;
  const int64_t anchors = ceil_div(tile.rows, kAnchorRows);
  const int64_t units = row_units(tile.rows), units_per_anchor = ceil_div(units, anchors);
  const V step = get(tile.step), t = get(tile.first) + static_cast<float>(column) * step;
  float* out = tile.memory;
  for (int64_t c = 0; c < tile.p.classes; ++c) {
    const float *above = tile.top + c * tile.padded, *below = tile.bottom + c * tile.padded;
    const V a = get(above) - shift.corner[0], right = (get(above + 1) - shift.corner[1]) - a;
    const V b = get(below) - shift.corner[2], cross = ((get(below + 1) - shift.corner[3]) - b) - right, down = b - a;
    const V logit = a + t * right, slope = down + t * cross;  // at the tile's column: logit + s · slope
    const V row_ratio = Ratio<NARROW>::exp(tile.row_step * slope);
    const V ratio_ratio = Ratio<NARROW>::exp(tile.row_step * step * cross);
    put(out, row_ratio), put(out + kLanes<float>, ratio_ratio);
    out += 2 * kLanes<float>;
    V value{}, ratio{};
    for (int64_t unit = 0; unit < units; ++unit, out += 2 * kLanes<float>) {
      if (unit % units_per_anchor == 0) {
        const float s = tile.row_start + static_cast<float>(unit * kRowsAtOnce) * tile.row_step;
        value = exp2_bounded(logit + s * slope, kLog2E);
        ratio = Ratio<NARROW>::exp(step * (right + s * cross));
      }
      put(out, value), put(out + kLanes<float>, ratio);
      for (int j = 0; j < kRowsAtOnce; ++j) {
        value = Ratio<NARROW>::times(value, row_ratio), ratio = Ratio<NARROW>::ratio_times(ratio, ratio_ratio);
      }
    }
  }
}

// The label's term in the sum of every pixel from `column` on, by the same products; 1 where a cell has one label.
template <bool NARROW>
void find_label_terms(const Tile<float>& tile, const Shift& shift, int64_t column, int64_t columns, float* terms) {
  constexpr int64_t L = kLanes<float>;
  const int64_t stride = progression_stride(tile.rows);
  for (int64_t i = 0; i < tile.rows * columns; ++i) put(terms + i * L, all(1.0f));
  for (int64_t lane = 0; lane < L; ++lane) {
    if (!shift.mixed[lane]) continue;
    const int64_t here = tile.p.columns.count[tile.cell + lane] - column, count = smaller(here, columns);
    for (int64_t row = 0; row < tile.rows; ++row) {
      int64_t labels[kMaxProgression];
      tile.read_labels(lane, row, column, count, labels);
      float* to = terms + row * columns * L + lane;
      for (int64_t k = 0; k < count;) {
        const int64_t begin = k, label = labels[k];
        do ++k;
        while (k < count && labels[k] == label);
        if (label < 0 || label >= tile.p.classes || label == tile.p.ignore_index) continue;
        const float* ratios = tile.memory + label * stride + lane;
        const float* start = ratios + (2 + row / kRowsAtOnce * 2) * L;
        float even = start[0], ratio = start[L];
        for (int64_t j = 0; j < row % kRowsAtOnce; ++j) {
          even = Ratio<NARROW>::times(even, ratios[0]), ratio = Ratio<NARROW>::ratio_times(ratio, ratios[L]);
        }
        ratio = Ratio<NARROW>::value(ratio);
        const float square = ratio * ratio;
        for (int64_t j = 0; j < begin / 2; ++j) even *= square;
        for (int64_t j = begin; j < k; ++j) {
          to[j * L] = j % 2 == 0 ? even : even * ratio;
          if (j % 2 == 1) even *= square;
        }
      }
    }
  }
}

// Sums of ROWS output rows from `row` on, and from them losses and the pixels' weights in the gradient.
template <bool NARROW, int COLUMNS, int ROWS>
void sum_rows(
    const Tile<float>& tile, int64_t column, int64_t row, const float* terms, float* weight, LossSum& total) {
  using V = Lanes<float>;
  constexpr int64_t L = kLanes<float>;
  V sum[ROWS][COLUMNS];
  for (auto& line : sum) {
    for (V& s : line) s = V{};
  }
  const int64_t stride = progression_stride(tile.rows);
  const float *ratios = tile.memory, *start = tile.memory + (2 + row / kRowsAtOnce * 2) * L;
  for (int64_t c = 0; c < tile.p.classes; ++c, ratios += stride, start += stride) {
    V line = get(start), kept = get(start + L);
#pragma GCC unroll 2
    for (int j = 0; j < ROWS; ++j) {
      const V ratio = Ratio<NARROW>::value(kept);
      // Two columns a step: half as long a chain of products, and half of the sums are fused multiply-adds.
      const V square = ratio * ratio;
      V value = line;
#pragma GCC unroll 9
      for (int k = 0; k < COLUMNS; ++k) {
        if (k % 2 == 0) {
          sum[j][k] += value;
        } else {
          sum[j][k] += value * ratio;
          if (k + 1 < COLUMNS) value *= square;
        }
      }
      if (j + 1 == ROWS) break;
      line = Ratio<NARROW>::times(line, get(ratios)), kept = Ratio<NARROW>::ratio_times(kept, get(ratios + L));
    }
  }

  // Loops over constants, so that the sums stay in registers; what differs between calls is decided outside of them.
  const auto grad_weight_of = [&](int j, int k) { return get(tile.grad_weight + tile.pixel_at(row + j, column + k)); };
  const auto each = [&](const auto& use) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int j = 0; j < ROWS; ++j) {
#pragma GCC unroll 9
      for (int k = 0; k < COLUMNS; ++k) use(j, k);
    }
  };
  // Sums become inverses, and then terms / sums where labels have terms of their own.
  each([&](int j, int k) {
    const V grad_weight = grad_weight_of(j, k);
    sum[j][k] = grad_weight != 0.0f || tile.loss ? sum[j][k] : all(1.0f);
    const V inverse = reciprocal(sum[j][k]);
    put(weight + (j * COLUMNS + k) * L, inverse * grad_weight);
    if (terms == nullptr) return;
    const V likelihood = inverse * get(terms + (j * COLUMNS + k) * L);
    sum[j][k] = likelihood < 1.0f ? likelihood : all(1.0f);
  });
  const float sign = terms ? -1.0f : 1.0f;
  if (tile.loss) {
    each([&](int j, int k) { put(tile.loss + tile.pixel_at(row + j, column + k), sign * log_positive(sum[j][k])); });
  } else if (tile.unit_grad_weights) {
    Log2Sum& log2s = terms ? total.likelihoods : total.sums;
    each([&](int j, int k) { log2s.multiply(sum[j][k]); });
    log2s.normalize();
  } else {
    V losses{};
    each([&](int j, int k) { losses += sign * grad_weight_of(j, k) * log_positive(sum[j][k]); });
    total.add(losses);
  }
}

template <bool NARROW, int COLUMNS>
void gradient_of_rows(const Tile<float>& tile, int64_t column, const float* weights, bool add) {
  using V = Lanes<float>;
  constexpr int64_t L = kLanes<float>;
  const V step = get(tile.step), t = get(tile.first) + static_cast<float>(column) * step;
  const float* state = tile.memory;
  for (int64_t c = 0; c < tile.p.classes; ++c) {
    const V row_ratio = get(state), ratio_ratio = get(state + L);
    const float* weight = weights;
    state += 2 * L;
    // Σ g and Σ g·k over the rows so far, and the sums of these sums.
    V sum{}, of_k{}, sums{}, sums_of_k{};
    for (int64_t row = 0; row < tile.rows; row += kRowsAtOnce, state += 2 * L) {
      V line = get(state), kept = get(state + L);
#pragma GCC unroll 2
      for (int j = 0; j < kRowsAtOnce; ++j, weight += COLUMNS * L) {
        if (row + j == tile.rows) break;
        const V ratio = Ratio<NARROW>::value(kept);
        V value = get(weight + (COLUMNS - 1) * L), derivative = value;
        value = value * ratio + get(weight + (COLUMNS - 2) * L);
#pragma GCC unroll 9
        for (int k = COLUMNS - 3; k >= 0; --k) {
          derivative = derivative * ratio + value;
          value = value * ratio + get(weight + k * L);
        }
        sum += line * value;
        of_k += line * ratio * derivative;
        sums += sum, sums_of_k += of_k;
        line = Ratio<NARROW>::times(line, row_ratio), kept = Ratio<NARROW>::ratio_times(kept, ratio_ratio);
      }
    }
    // Σ g·j of rows j = 0, 1, … is rows · Σ g less the sum of the running sums.
    const float rows = static_cast<float>(tile.rows);
    const V of_j = rows * sum - sums, of_jk = rows * of_k - sums_of_k;
    const V of_t = t * sum + step * of_k, of_jt = t * of_j + step * of_jk;
    put_corners(
        tile, c, add, sum, of_t, tile.row_start * sum + tile.row_step * of_j,
        tile.row_start * of_t + tile.row_step * of_jt);
  }
}

template <bool NARROW, int COLUMNS>
void sum_columns(const Tile<float>& tile, const Shift& shift, int64_t column, bool add, LossSum& total) {
  constexpr int64_t line = COLUMNS * kLanes<float>;
  start_progressions<NARROW>(tile, shift, column);
  float* weights = tile.memory + tile.p.classes * progression_stride(tile.rows);
  float* terms = shift.any_mixed ? weights + tile.rows * line : nullptr;
  if (terms) find_label_terms<NARROW>(tile, shift, column, COLUMNS, terms);
  const auto terms_of = [&](int64_t row) { return terms ? terms + row * line : nullptr; };
  int64_t row = 0;
  for (; row + kRowsAtOnce <= tile.rows; row += kRowsAtOnce) {
    sum_rows<NARROW, COLUMNS, kRowsAtOnce>(tile, column, row, terms_of(row), weights + row * line, total);
  }
  if (row < tile.rows) sum_rows<NARROW, COLUMNS, 1>(tile, column, row, terms_of(row), weights + row * line, total);
  if (tile.gradient) gradient_of_rows<NARROW, COLUMNS>(tile, column, weights, add);
}

// Adds grad_weight · loss of the tile's pixels to `total`.
template <bool NARROW>
void sum_by_progression(const Tile<float>& tile, const Shift& shift, LossSum& total) {
  for_equal_parts<kMaxProgression, 2>(tile.columns, [&]<int COLUMNS>(int64_t first) {
    sum_columns<NARROW, COLUMNS>(tile, shift, first, tile.add || first > 0, total);
  });
}
