// The cross-entropy of a tile with an exponential per pixel and class: for logits too far apart for progressions, for
// small scale factors, and in double. Included by kernel files inside their namespace (see isa.h).

constexpr int kMaxUnroll = 8;  // columns whose running sums stay in registers

// Memory: nodes and peaks interpolated to one output row, and of each of its columns the largest logit and mass / sum.
// (Not their log-sum-exp: added to a large logit, the logarithm of the sum would lose its digits.)
template <typename Real>
int64_t direct_memory(int64_t classes, int64_t columns) {
  return (2 * classes + 2 + 2 * columns) * kLanes<Real>;
}

// (1 - t) · a + t · b, not a + t · (b - a): what an infinite logit gives must be what PyTorch gives.
template <typename Real>
inline __attribute__((always_inline)) Lanes<Real> mix(Lanes<Real> t, Lanes<Real> a, Lanes<Real> b) {
  return (Real(1) - t) * a + t * b;
}

template <typename Real>
void interpolate_row(const Tile<Real>& tile, Real s) {
  const auto row = [&](const Real* top, const Real* bottom, Real* to) {
    put(to, mix<Real>(all(s), get(top), get(bottom)));
    put(to + kLanes<Real>, mix<Real>(all(s), get(top + 1), get(bottom + 1)));
  };
  for (int64_t c = 0; c < tile.classes; ++c) {
    row(tile.top + c * tile.padded, tile.bottom + c * tile.padded, tile.memory + 2 * c * kLanes<Real>);
  }
  row(tile.top_peak, tile.bottom_peak, tile.memory + 2 * tile.classes * kLanes<Real>);
}

// Log-sum-exps of UNROLL columns of the interpolated row; returns Σ mass · (lse less the peaks).
template <int UNROLL, typename Real>
Lanes<Real> sum_columns_directly(const Tile<Real>& tile, int64_t row, int64_t column, Real* largest, Real* share) {
  using V = Lanes<Real>;
  constexpr int64_t L = kLanes<Real>;
  const Real *nodes = tile.memory, *peaks = nodes + 2 * tile.classes * L;
  V t[UNROLL], most[UNROLL], sum[UNROLL];
  for (int k = 0; k < UNROLL; ++k) {
    t[k] = get(tile.first) + static_cast<Real>(column + k) * tile.column_step;
    most[k] = mix<Real>(t[k], get(nodes), get(nodes + L));
    sum[k] = V{};
  }
  for (int64_t c = 1; c < tile.classes; ++c) {
    const V left = get(nodes + 2 * c * L), right = get(nodes + (2 * c + 1) * L);
    for (int k = 0; k < UNROLL; ++k) {
      const V logit = mix<Real>(t[k], left, right);
      most[k] = logit > most[k] ? logit : most[k];
    }
  }
  for (int64_t c = 0; c < tile.classes; ++c) {
    const V left = get(nodes + 2 * c * L), right = get(nodes + (2 * c + 1) * L);
    for (int k = 0; k < UNROLL; ++k) sum[k] += exp_nonpositive(mix<Real>(t[k], left, right) - most[k]);
  }

  V loss{};
  for (int k = 0; k < UNROLL; ++k) {
    const int64_t at = tile.mass_at(row, column + k);
    const V mass = get(tile.mass + at), value = log_positive(sum[k]);
    const V above_peaks = (most[k] - mix<Real>(t[k], get(peaks), get(peaks + L))) + value;
    put(largest + (column + k) * L, most[k]);
    put(share + (column + k) * L, mass / sum[k]);
    if (tile.lse) put(tile.lse + at, above_peaks);
    loss += mass != Real(0) ? mass * above_peaks : V{};
  }
  return loss;
}

template <typename Real>
void gradient_of_row(const Tile<Real>& tile, Real s, bool add, const Real* largest, const Real* share) {
  using V = Lanes<Real>;
  const V first = get(tile.first);
  for (int64_t c = 0; c < tile.classes; ++c) {
    const V left = get(tile.memory + 2 * c * kLanes<Real>), right = get(tile.memory + (2 * c + 1) * kLanes<Real>);
    V sum{}, of_t{};
    for (int64_t k = 0; k < tile.columns; ++k) {
      const V t = first + static_cast<Real>(k) * tile.column_step;
      const V g = exp_nonpositive(mix<Real>(t, left, right) - get(largest + k * kLanes<Real>)) * get(share + k * kLanes<Real>);
      // A lane without this column may interpolate to NaN where no pixel does.
      const V here = get(tile.exists + k * tile.padded) != Real(0) ? g : V{};
      sum += here;
      of_t += t * here;
    }
    put_corners(tile, c, add, sum, of_t, s * sum, s * of_t);
  }
}

// Adds mass · (log-sum-exp less the peaks) of the tile's pixels to `total`.
template <typename Real>
void sum_directly(const Tile<Real>& tile, LossSum& total) {
  Real* largest = tile.memory + (2 * tile.classes + 2) * kLanes<Real>;
  Real* share = largest + tile.columns * kLanes<Real>;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const Real s = tile.row_start + static_cast<Real>(row) * tile.row_step;
    interpolate_row(tile, s);
    Lanes<Real> loss{};
    const int64_t parts = (tile.columns + kMaxUnroll - 1) / kMaxUnroll;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = tile.columns * part / parts, columns = tile.columns * (part + 1) / parts - from;
      switch (columns) {
        case 1: loss += sum_columns_directly<1>(tile, row, from, largest, share); break;
        case 2: loss += sum_columns_directly<2>(tile, row, from, largest, share); break;
        case 3: loss += sum_columns_directly<3>(tile, row, from, largest, share); break;
        case 4: loss += sum_columns_directly<4>(tile, row, from, largest, share); break;
        case 5: loss += sum_columns_directly<5>(tile, row, from, largest, share); break;
        case 6: loss += sum_columns_directly<6>(tile, row, from, largest, share); break;
        case 7: loss += sum_columns_directly<7>(tile, row, from, largest, share); break;
        default: loss += sum_columns_directly<8>(tile, row, from, largest, share); break;
      }
    }
    for (int i = 0; i < kLanes<Real>; ++i) total.rest += static_cast<double>(loss[i]);
    if (tile.gradient) gradient_of_row(tile, s, tile.add || row > 0, largest, share);
  }
}
