// A tile: the output pixels of one vector of neighbouring cells, and how the two ways to sum them give and take.
// Included by kernel files inside their namespace (see isa.h).

template <typename Real>
struct Tile {
  int64_t classes, padded;
  const Real *top, *bottom;            // nodes above and below the tile's first cell; [C, padded]
  const Real *top_peak, *bottom_peak;  // their largest logits
  const Real* first;         // fraction of each cell's first column
  Real column_step, row_start, row_step;
  int64_t rows, columns;
  const Real *mass, *exists;  // [rows, columns, padded], [columns, padded]
  bool masses_are_one;        // or zero
  Real* memory;

  bool gradient, add;  // the gradient of the corners is written, or added, to corner
  Real* corner;        // [C, 4, padded]
  Real* lse;           // [rows, columns, padded] or null: log-sum-exp less the peaks interpolated

  int64_t mass_at(int64_t row, int64_t column) const { return (row * columns + column) * padded; }
};

// Losses of a row of cells, as the kernels sum them: each takes its total once a row.
struct LossSum {
  Log2Sum log2s;
  Lanes<float> losses{};
  double rest = 0;

  double total() const {
    double sum = rest + log2s.total() * 0.69314718055994531;
    for (int i = 0; i < kLanes<float>; ++i) sum += static_cast<double>(losses[i]);
    return sum;
  }
};

// One class's gradient of the four corners from Σ g, Σ g·t, Σ g·s and Σ g·s·t over the pixels of its cells.
template <typename Real>
inline __attribute__((always_inline)) void put_corners(
    const Tile<Real>& tile, int64_t c, bool add, Lanes<Real> sum, Lanes<Real> of_t, Lanes<Real> of_s, Lanes<Real> of_st) {
  Real* to = tile.corner + 4 * c * tile.padded;
  Lanes<Real> corner[4] = {sum - of_t - of_s + of_st, of_t - of_st, of_s - of_st, of_st};
  for (int i = 0; i < 4; ++i) {
    Real* out = to + i * tile.padded;
    put(out, add ? get(out) + corner[i] : corner[i]);
  }
}
