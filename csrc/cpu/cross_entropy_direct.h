// The cross-entropy of a tile with an exponential per pixel and class: for logits too far apart for progressions, for
// small scale factors, and in double. Included by kernel files inside their namespace (see isa.h).

constexpr int kMaxUnroll = 8;  // columns whose running sums stay in registers

// Memory: nodes interpolated to one output row, [C, 2]; of each of its columns the label's own two, [columns, 2]; and the
// largest logit and grad_weight / sum, [columns] each. (Not the log-sum-exp: added to a large logit, the logarithm of the
// sum would lose its digits.)
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

// a · b + c, rounded once where the processor can: left to the compiler, a pixel's logit might differ between two loops.
static inline __attribute__((always_inline)) Lanes<float> multiply_add(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes<float>>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<Lanes<float>>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}
static inline __attribute__((always_inline)) Lanes<double> multiply_add(Lanes<double> a, Lanes<double> b, Lanes<double> c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes<double>>(_mm512_fmadd_pd(
      reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<Lanes<double>>(_mm256_fmadd_pd(
      reinterpret_cast<__m256d>(a), reinterpret_cast<__m256d>(b), reinterpret_cast<__m256d>(c)));
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
    const int64_t parts = (tile.columns + kMaxUnroll - 1) / kMaxUnroll;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = tile.columns * part / parts, columns = tile.columns * (part + 1) / parts - from;
      switch (columns) {
        case 1: loss += sum_columns_directly<1>(tile, row, from); break;
        case 2: loss += sum_columns_directly<2>(tile, row, from); break;
        case 3: loss += sum_columns_directly<3>(tile, row, from); break;
        case 4: loss += sum_columns_directly<4>(tile, row, from); break;
        case 5: loss += sum_columns_directly<5>(tile, row, from); break;
        case 6: loss += sum_columns_directly<6>(tile, row, from); break;
        case 7: loss += sum_columns_directly<7>(tile, row, from); break;
        default: loss += sum_columns_directly<8>(tile, row, from); break;
      }
    }
    total.add(loss);
    if (tile.gradient) gradient_of_row(tile, s, tile.add || row > 0);
  }
}
