// A tile: the output pixels of one vector of neighbouring cells, and how the two ways to sum them give and take.
// Included by kernel files inside their namespace (see isa.h).

// What a cell's scored pixels are labelled: a class, or one of these.
constexpr int32_t kNone = -1, kMixed = -2;

// The loss of a pixel is its label's distance behind the log-sum-exp, log(Σ_c exp(z_c - z_label)). Taken as the difference
// of two logarithms it would lose its digits where the label is nearly certain.
template <typename Real>
struct Tile {
  const CrossEntropyProblem& p;
  int64_t padded;
  const Real *top, *bottom;   // nodes above and below the tile's first cell; [C, padded]
  int64_t right;              // from a cell's left node to its right one: 1, or 0 where the columns are not upsampled
  const Real *first, *step;   // fraction of each cell's first column, and of the next one behind it
  int64_t cell_row, line;  // the tile's row of cells, and the number of its first line of pixels there
  Real row_start, row_step;
  int64_t rows, columns;
  const Real *grad_weight, *fraction, *exists;  // [rows, columns, padded], and of columns [columns, padded]
  bool unit_grad_weights;     // they are 1, or 0
  Real* memory;

  bool gradient, add;  // the gradient of the corners is written, or added, to corner
  Real* corner;        // [C, 4, padded]
  Real* loss;          // [rows, columns, padded] or null: the label's distance behind the log-sum-exp

  const int32_t* label;  // of each cell
  int64_t cell, pixel;   // number of the tile's first cell; the first pixel of its first line of pixels

  explicit Tile(const CrossEntropyProblem& problem) : p(problem) {}

  int64_t pixel_at(int64_t row, int64_t column) const { return (row * columns + column) * padded; }

  // The labels of `count` pixels of a line of the cell in a lane.
  void read_labels(int64_t lane, int64_t row, int64_t column, int64_t count, int64_t* to) const {
    const int64_t first = pixel + row * p.out_width + p.columns.begin[cell + lane] + column;
    const auto copy = [&](auto* labels) {
      for (int64_t k = 0; k < count; ++k) to[k] = labels[first + k];
    };
    switch (p.label_type) {
      case LabelType::i64: return copy(static_cast<const int64_t*>(p.target));
      case LabelType::i32: return copy(static_cast<const int32_t*>(p.target));
      case LabelType::u8: return copy(static_cast<const uint8_t*>(p.target));
    }
  }

  // The class of a pixel of the cell in a lane, or kNone.
  int64_t label_at(int64_t lane, int64_t row, int64_t column) const {
    const int64_t q = cell + lane;
    if (q >= p.columns.cells || column >= p.columns.count[q]) return kNone;
    const int64_t label = read_label(p.label_type, p.target, pixel + row * p.out_width + p.columns.begin[q] + column);
    return label == p.ignore_index || label < 0 || label >= p.classes ? kNone : label;
  }
};

// Losses of a row of cells, as the kernels sum them: each takes its total once a row.
struct LossSum {
  Log2Sum sums, likelihoods;  // of pixels of weight 1: a loss is the logarithm of a sum, or less that of a likelihood
  double rest = 0;

  // Losses of a few rows, one sum a lane: in float32 the sum over a whole row of cells would lose digits.
  template <typename V>
  void add(const V& losses) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(losses[0]); ++i) rest += static_cast<double>(losses[i]);
  }

  double total() const { return rest + (sums.total() - likelihoods.total()) * 0.69314718055994531; }
};

// One class's gradient of the four corners from Σ g, Σ g·t, Σ g·s and Σ g·s·t over the pixels of its cells.
template <typename Real>
inline __attribute__((always_inline)) void put_corners(
    const Tile<Real>& tile, int64_t c, bool add, Lanes<Real> sum, Lanes<Real> of_t, Lanes<Real> of_s, Lanes<Real> of_st) {
  // Where a side has one node, its share of the other is no zero if the gradient is not finite.
  if (tile.right == 0) of_t = of_st = Lanes<Real>{};
  if (tile.top == tile.bottom) of_s = of_st = Lanes<Real>{};
  Real* to = tile.corner + 4 * c * tile.padded;
  Lanes<Real> corner[4] = {sum - of_t - of_s + of_st, of_t - of_st, of_s - of_st, of_st};
  for (int i = 0; i < 4; ++i) {
    Real* out = to + i * tile.padded;
    put(out, add ? get(out) + corner[i] : corner[i]);
  }
}
