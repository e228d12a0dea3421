// A tile: the output pixels of one vector of neighbouring cells, and how the two ways to sum them give and take; the
// direct way, with an exponential per pixel and class: for logits too far apart for progressions, for small scale
// factors, and in double. Included by kernel files inside their namespace (see isa.h), behind upsampled_nodes.h.

// What a cell's scored pixels are labelled: a class, or one of these.
constexpr int32_t kNone = -1, kMixed = -2;

// The loss of a pixel is its label's distance behind the log-sum-exp, log(Σ_c exp(z_c - z_label)). Taken as the
// difference of two logarithms it would lose its digits where the label is nearly certain.
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
    dispatch_labels(p.label_type, [&]<typename Label>() {
      for (int64_t k = 0; k < count; ++k) to[k] = static_cast<const Label*>(p.target)[first + k];
    });
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
    const Tile<Real>& tile, int64_t c, bool add, Lanes<Real> sum, Lanes<Real> of_t, Lanes<Real> of_s,
    Lanes<Real> of_st) {
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

// ---- The direct way ------------------------------------------------------------------------------------------------

constexpr int kMaxUnroll = 8;  // columns whose running sums stay in registers

// Memory: nodes interpolated to one output row, [C, 2]; of each of its columns the label's own two, [columns, 2]; and
// the largest logit and grad_weight / sum, [columns] each. (Not the log-sum-exp: added to a large logit, the logarithm
// of the sum would lose its digits.)
template <typename Real>
int64_t direct_memory(int64_t classes, int64_t columns) {
  return (2 * classes + 4 * columns) * kLanes<Real>;
}
template <typename Real>
struct DirectRow {
  Real *nodes, *own, *largest, *share;

  explicit DirectRow(const Tile<Real>& tile) {
    nodes = tile.memory, own = nodes + 2 * tile.p.classes * kLanes<Real>;
    largest = own + 2 * tile.columns * kLanes<Real>, share = largest + tile.columns * kLanes<Real>;
  }
};

// a · b + c, rounded once where the processor can: left to the compiler, a pixel's logit might differ between two
// loops.
static inline __attribute__((always_inline)) Lanes<float> multiply_add(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
static inline __attribute__((always_inline)) Lanes<double> multiply_add(
    Lanes<double> a, Lanes<double> b, Lanes<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// (1 - t) · a + t · b, not a + t · (b - a): what an infinite logit gives must be what PyTorch gives.
template <typename Real>
inline __attribute__((always_inline)) Lanes<Real> mix(Lanes<Real> t, Lanes<Real> a, Lanes<Real> b) {
  return multiply_add(t, b, (Real(1) - t) * a);
}

template <typename Real>
void interpolate_row(const Tile<Real>& tile, Real s) {
  for (int64_t c = 0; c < tile.p.classes; ++c) {
    const Real *top = tile.top + c * tile.padded, *bottom = tile.bottom + c * tile.padded;
    Real* to = tile.memory + 2 * c * kLanes<Real>;
    put(to, mix<Real>(all(s), get(top), get(bottom)));
    put(to + kLanes<Real>, mix<Real>(all(s), get(top + tile.right), get(bottom + tile.right)));
  }
}

// The nodes of every column's label, of class 0 where a pixel has none.
template <typename Real>
void find_own_nodes(const Tile<Real>& tile, int64_t row) {
  constexpr int64_t L = kLanes<Real>;
  const DirectRow<Real> at(tile);
  const auto take = [&](int64_t lane, int64_t label, int64_t k) {
    const Real* nodes = at.nodes + 2 * (label < 0 ? 0 : label) * L + lane;
    at.own[2 * k * L + lane] = nodes[0], at.own[(2 * k + 1) * L + lane] = nodes[L];
  };
  for (int64_t lane = 0; lane < L; ++lane) take(lane, tile.label[lane], 0);
  for (int64_t k = 1; k < tile.columns; ++k) {
    put(at.own + 2 * k * L, get(at.own)), put(at.own + (2 * k + 1) * L, get(at.own + L));
  }
  for (int64_t lane = 0; lane < L; ++lane) {
    for (int64_t k = 0; tile.label[lane] == kMixed && k < tile.columns; ++k) take(lane, tile.label_at(lane, row, k), k);
  }
}

// Sums of UNROLL columns of the interpolated row; returns Σ grad_weight · loss.
template <int UNROLL, typename Real>
Lanes<Real> sum_columns_directly(const Tile<Real>& tile, int64_t row, int64_t column) {
  using V = Lanes<Real>;
  constexpr int64_t L = kLanes<Real>;
  const DirectRow<Real> at(tile);
  V t[UNROLL], most[UNROLL], sum[UNROLL];
  for (int k = 0; k < UNROLL; ++k) {
    t[k] = get(tile.fraction + (column + k) * tile.padded);
    most[k] = mix<Real>(t[k], get(at.nodes), get(at.nodes + L));
    sum[k] = V{};
  }
  for (int64_t c = 1; c < tile.p.classes; ++c) {
    const V left = get(at.nodes + 2 * c * L), right = get(at.nodes + (2 * c + 1) * L);
    for (int k = 0; k < UNROLL; ++k) {
      const V logit = mix<Real>(t[k], left, right);
      most[k] = logit > most[k] ? logit : most[k];
    }
  }
  for (int64_t c = 0; c < tile.p.classes; ++c) {
    const V left = get(at.nodes + 2 * c * L), right = get(at.nodes + (2 * c + 1) * L);
    for (int k = 0; k < UNROLL; ++k) sum[k] += exp_nonpositive(mix<Real>(t[k], left, right) - most[k]);
  }

  V total{};
  for (int k = 0; k < UNROLL; ++k) {
    const Real* own = at.own + 2 * (column + k) * L;
    const V grad_weight = get(tile.grad_weight + tile.pixel_at(row, column + k));
    const V loss = (most[k] - mix<Real>(t[k], get(own), get(own + L))) + log_positive(sum[k]);
    put(at.largest + (column + k) * L, most[k]);
    put(at.share + (column + k) * L, grad_weight / sum[k]);
    if (tile.loss) put(tile.loss + tile.pixel_at(row, column + k), loss);
    total += grad_weight != Real(0) ? grad_weight * loss : V{};
  }
  return total;
}

template <typename Real>
void gradient_of_row(const Tile<Real>& tile, Real s, bool add) {
  using V = Lanes<Real>;
  constexpr int64_t L = kLanes<Real>;
  const DirectRow<Real> at(tile);
  for (int64_t c = 0; c < tile.p.classes; ++c) {
    const V left = get(at.nodes + 2 * c * L), right = get(at.nodes + (2 * c + 1) * L);
    V sum{}, of_t{};
    for (int64_t k = 0; k < tile.columns; ++k) {
      const V t = get(tile.fraction + k * tile.padded);
      const V g = exp_nonpositive(mix<Real>(t, left, right) - get(at.largest + k * L)) * get(at.share + k * L);
      // A lane without this column may interpolate to NaN where no pixel does.
      const V here = get(tile.exists + k * tile.padded) != Real(0) ? g : V{};
      sum += here;
      of_t += t * here;
    }
    put_corners(tile, c, add, sum, of_t, s * sum, s * of_t);
  }
}

// Adds grad_weight · loss of the tile's pixels to `total`.
template <typename Real>
void sum_directly(const Tile<Real>& tile, LossSum& total) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    const Real s = static_cast<Real>(fraction_in(tile.p.rows, tile.cell_row, tile.line + row));
    interpolate_row(tile, s);
    find_own_nodes(tile, row);
    Lanes<Real> loss{};
    for_equal_parts<kMaxUnroll>(tile.columns, [&]<int UNROLL>(int64_t first) {
      loss += sum_columns_directly<UNROLL>(tile, row, first);
    });
    total.add(loss);
    if (tile.gradient) gradient_of_row(tile, s, tile.add || row > 0);
  }
}
