// The cross-entropy of a tile without exponentials per pixel. Included by kernel files inside their namespace (isa.h).
//
// Along an output row of a cell a class's logits are l_k = a + k·δ, so their exponentials are a geometric progression
// E · R^k; from one row to the next E is multiplied by D and R by S, which are the same for the whole cell. So a cell
// takes four exponentials a class, however many pixels it has:
//
//   Forward.   Σ_classes E·R^k by one multiplication or fused multiply-add a pixel and class.
//   Gradient.  With w_k = mass / sum, Horner's rule gives Σ_k w_k R^k and Σ_k k·w_k R^k, the moments along the row; sums of
//              sums over the rows give those across it; and four moments give the four corners.
//
// Valid while exponentials neither overflow nor vanish: while every node's logits lie within kMaxRange of each other.
// Logits are taken less their node's largest, its peak. Interpolation then takes the same amount from every class of a
// pixel, which softmax does not notice; no pixel's logit lies above 0, and its sum needs no maximum of its own: the
// largest term is at least 2^-110.

constexpr float kMaxRange = 76.0f;         // 110 · ln 2
constexpr int kMaxProgression = 9;         // columns summed at once
constexpr int kRowsAtOnce = kVectorBytes == 64 ? 2 : 1;  // whose sums stay in registers: 32 of AVX-512, else 16
constexpr int64_t kAnchorRows = 8;  // then E and R are computed anew: rounding grows with every product

inline int64_t row_units(int64_t rows) { return (rows + kRowsAtOnce - 1) / kRowsAtOnce; }
inline int64_t progression_stride(int64_t rows) { return (2 + 2 * row_units(rows)) * kLanes<float>; }

// Memory for tiles of so many rows and columns: progressions of every class, and a weight for each pixel.
inline int64_t progression_memory(int64_t classes, int64_t rows) {
  return classes * progression_stride(rows) + rows * kMaxProgression * kLanes<float>;
}

// Of each class: D and S, then E and R at every kRowsAtOnce-th row.
inline void start_progressions(const Tile<float>& tile, int64_t column) {
  using V = Lanes<float>;
  constexpr float kLog2E = 1.44269504f;
  const int64_t anchors = (tile.rows + kAnchorRows - 1) / kAnchorRows;
  const int64_t units = row_units(tile.rows), units_per_anchor = (units + anchors - 1) / anchors;
  const V t = get(tile.first) + static_cast<float>(column) * tile.column_step;
  const float to_column = kLog2E * tile.column_step, to_row = kLog2E * tile.row_step;
  const V peak[4] = {get(tile.top_peak), get(tile.top_peak + 1), get(tile.bottom_peak), get(tile.bottom_peak + 1)};
  float* out = tile.memory;
  for (int64_t c = 0; c < tile.classes; ++c) {
    const float *above = tile.top + c * tile.padded, *below = tile.bottom + c * tile.padded;
    const V a = get(above) - peak[0], right = (get(above + 1) - peak[1]) - a;
    const V b = get(below) - peak[2], cross = ((get(below + 1) - peak[3]) - b) - right, down = b - a;
    const V logit = a + t * right, slope = down + t * cross;  // at the tile's column: logit + s · slope
    const V row_ratio = exp2_bounded(to_row * slope), ratio_ratio = exp2_bounded(to_row * tile.column_step * cross);
    put(out, row_ratio), put(out + kLanes<float>, ratio_ratio);
    out += 2 * kLanes<float>;
    V value{}, ratio{};
    for (int64_t unit = 0; unit < units; ++unit, out += 2 * kLanes<float>) {
      if (unit % units_per_anchor == 0) {
        const float s = tile.row_start + static_cast<float>(unit * kRowsAtOnce) * tile.row_step;
        value = exp2_bounded(kLog2E * (logit + s * slope));
        ratio = exp2_bounded(to_column * (right + s * cross));
      }
      put(out, value), put(out + kLanes<float>, ratio);
      for (int j = 0; j < kRowsAtOnce; ++j) value *= row_ratio, ratio *= ratio_ratio;
    }
  }
}

// Sums of ROWS output rows from `row` on, and from them losses and the pixels' weights in the gradient.
template <int COLUMNS, int ROWS>
void sum_rows(const Tile<float>& tile, int64_t column, int64_t row, float* weight, LossSum& total) {
  using V = Lanes<float>;
  constexpr int64_t L = kLanes<float>;
  V sum[ROWS][COLUMNS];
  for (auto& line : sum) {
    for (V& s : line) s = V{};
  }
  const int64_t stride = progression_stride(tile.rows);
  const float *ratios = tile.memory, *start = tile.memory + (2 + row / kRowsAtOnce * 2) * L;
  for (int64_t c = 0; c < tile.classes; ++c, ratios += stride, start += stride) {
    V line = get(start), ratio = get(start + L);
#pragma GCC unroll 2
    for (int j = 0; j < ROWS; ++j) {
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
      if (j + 1 < ROWS) line *= get(ratios), ratio *= get(ratios + L);
    }
  }

  // Loops over constants, so that the sums stay in registers; what differs between calls is asked outside of them.
  const auto mass_of = [&](int j, int k) { return get(tile.mass + tile.mass_at(row + j, column + k)); };
  const auto each = [&](const auto& use) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int j = 0; j < ROWS; ++j) {
#pragma GCC unroll 9
      for (int k = 0; k < COLUMNS; ++k) use(j, k);
    }
  };
  if (tile.lse) {
    each([&](int j, int k) { put(tile.lse + tile.mass_at(row + j, column + k), log_positive(sum[j][k])); });
    return;
  }
  each([&](int j, int k) {
    const V mass = mass_of(j, k);
    sum[j][k] = mass != 0.0f ? sum[j][k] : all(1.0f);
    put(weight + (j * COLUMNS + k) * L, reciprocal(sum[j][k]) * mass);
  });
  if (tile.masses_are_one) {
    each([&](int j, int k) { total.log2s.multiply(sum[j][k]); });
    total.log2s.normalize();
  } else {
    each([&](int j, int k) { total.losses += mass_of(j, k) * log_positive(sum[j][k]); });
  }
}

template <int COLUMNS>
void gradient_of_rows(const Tile<float>& tile, int64_t column, const float* weights, bool add) {
  using V = Lanes<float>;
  constexpr int64_t L = kLanes<float>;
  const V t = get(tile.first) + static_cast<float>(column) * tile.column_step;
  const float* state = tile.memory;
  for (int64_t c = 0; c < tile.classes; ++c) {
    const V row_ratio = get(state), ratio_ratio = get(state + L);
    const float* weight = weights;
    state += 2 * L;
    // Σ g and Σ g·k over the rows so far, and the sums of these sums.
    V sum{}, of_k{}, sums{}, sums_of_k{};
    for (int64_t row = 0; row < tile.rows; row += kRowsAtOnce, state += 2 * L) {
      V line = get(state), ratio = get(state + L);
#pragma GCC unroll 2
      for (int j = 0; j < kRowsAtOnce; ++j, weight += COLUMNS * L) {
        if (row + j == tile.rows) break;
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
        line *= row_ratio, ratio *= ratio_ratio;
      }
    }
    // Σ g·j of rows j = 0, 1, … is rows · Σ g less the sum of the running sums.
    const float rows = static_cast<float>(tile.rows);
    const V of_j = rows * sum - sums, of_jk = rows * of_k - sums_of_k;
    const V of_t = t * sum + tile.column_step * of_k, of_jt = t * of_j + tile.column_step * of_jk;
    put_corners(
        tile, c, add, sum, of_t, tile.row_start * sum + tile.row_step * of_j,
        tile.row_start * of_t + tile.row_step * of_jt);
  }
}

template <int COLUMNS>
void sum_columns(const Tile<float>& tile, int64_t column, bool add, LossSum& total) {
  start_progressions(tile, column);
  float* weights = tile.memory + tile.classes * progression_stride(tile.rows);
  int64_t row = 0;
  for (; row + kRowsAtOnce <= tile.rows; row += kRowsAtOnce) {
    sum_rows<COLUMNS, kRowsAtOnce>(tile, column, row, weights + row * COLUMNS * kLanes<float>, total);
  }
  if (row < tile.rows) {
    sum_rows<COLUMNS, 1>(tile, column, row, weights + row * COLUMNS * kLanes<float>, total);
  }
  if (tile.gradient) gradient_of_rows<COLUMNS>(tile, column, weights, add);
}

// Adds mass · (log-sum-exp less the peaks) of the tile's pixels to `total`.
inline void sum_by_progression(const Tile<float>& tile, LossSum& total) {
  // Equal shares of the columns: 12 of them as 6 + 6, not 9 + 3.
  const int64_t parts = (tile.columns + kMaxProgression - 1) / kMaxProgression;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = tile.columns * part / parts, columns = tile.columns * (part + 1) / parts - from;
    const bool add = tile.add || part > 0;
    switch (columns) {
      case 2: sum_columns<2>(tile, from, add, total); break;
      case 3: sum_columns<3>(tile, from, add, total); break;
      case 4: sum_columns<4>(tile, from, add, total); break;
      case 5: sum_columns<5>(tile, from, add, total); break;
      case 6: sum_columns<6>(tile, from, add, total); break;
      case 7: sum_columns<7>(tile, from, add, total); break;
      case 8: sum_columns<8>(tile, from, add, total); break;
      default: sum_columns<9>(tile, from, add, total); break;
    }
  }
}
