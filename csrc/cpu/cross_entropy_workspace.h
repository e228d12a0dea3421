// What one thread holds of the cell rows of a task, and how it reads the labels of one cell row.
// Included by kernel files inside their namespace (see isa.h), behind cross_entropy_tile.h.

template <typename Real>
struct Workspace {
  const CrossEntropyProblem& p;
  int64_t padded, map;        // cells of a row in whole lanes and one vector more; C · padded
  int64_t right;              // from a cell's left node to its right one, see Tile
  Real *first, *step;         // [padded] fraction of each cell's first column, and of the next one behind it
  Real *fraction, *exists;    // [most columns, padded] of every column; 1 where a cell has it
  Real* nodes[2][2];          // of each head, the rows of nodes above and below: [C, padded]
  Real *peak[2][2], *range[2][2];  // [padded] a node's largest logit, and how far its smallest lies below
  Real* carry[2][2];          // of each head, gradient of those rows of nodes: [C, padded]
  Real* corner;               // [C, 4, padded] gradient of the cells' corners: top left, top right, bottom left, right
  Real* label_share[2];       // [C, padded] pixels of a label, by their weights at the nodes above and below
  Real* smooth_share[2];      // [padded] the same of all labels
  Real* grad_weight;          // [most rows, most columns, padded] what a pixel's softmax weighs in the gradient
  Real* loss;                 // as grad_weight: how far labels lie behind log-sum-exps; null unless per pixel
  Real* tile;                 // memory of the kernel that fills `corner`
  uint8_t* present;           // [C] whether label_share holds the class
  int32_t* label;             // [padded] of a cell's scored pixels, see Tile
  bool uniform;               // every labelled pixel weighs 1
  Real own, smooth, class_sum;  // 1 - ε, ε / C and, if it matters, Σ_c w_c

  // With an arena that measures nothing is written.
  Workspace(const CrossEntropyProblem& problem, Arena<Real>& arena) : p(problem) {
    padded = padded_cells<Real>(p.columns), map = p.classes * padded, right = p.columns.nodes == p.out_width ? 0 : 1;
    uniform = p.class_weight == nullptr && p.pixel_weight == nullptr;
    own = static_cast<Real>(1.0 - p.smoothing);
    smooth = static_cast<Real>(p.smoothing / static_cast<double>(p.classes));
    const int64_t columns = p.columns.most * padded, pixels = p.rows.most * columns;
    first = arena.take(padded), step = arena.take(padded), fraction = arena.take(columns), exists = arena.take(columns);
    for (int64_t i = 0; i < p.heads; ++i) {
      for (int side = 0; side < 2; ++side) nodes[i][side] = arena.take(map);
      for (int side = 0; side < 2; ++side) peak[i][side] = arena.take(padded), range[i][side] = arena.take(padded);
      for (int side = 0; side < 2; ++side) carry[i][side] = arena.take(map);
    }
    corner = arena.take(4 * map);
    for (int side = 0; side < 2; ++side) label_share[side] = arena.take(map), smooth_share[side] = arena.take(padded);
    grad_weight = arena.take(pixels);
    loss = p.head[0].loss ? arena.take(pixels) : nullptr;
    tile = arena.take(tile_memory(p));
    present = reinterpret_cast<uint8_t*>(arena.take(p.classes));
    label = reinterpret_cast<int32_t*>(arena.take(padded));
    if (first == nullptr) return;

    for (int64_t i = 0; i < columns; ++i) fraction[i] = exists[i] = 0;
    for (int64_t q = 0; q < padded; ++q) first[q] = 0, step[q] = static_cast<Real>(step_in(p.columns, q));
    for (int64_t q = 0; q < p.columns.cells; ++q) {
      first[q] = static_cast<Real>(fraction_in(p.columns, q, 0));
      for (int64_t k = 0; k < p.columns.count[q]; ++k) {
        fraction[k * padded + q] = static_cast<Real>(fraction_in(p.columns, q, k)), exists[k * padded + q] = 1;
      }
    }
    class_sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) class_sum += class_weight(c);
    // No cell writes the last vector of a plane of corners; it is the left neighbour of the next plane's first cell.
    for (int64_t plane = 1; plane <= 4 * p.classes; ++plane) put(corner + plane * padded - kLanes<Real>, Lanes<Real>{});
  }

  Real class_weight(int64_t c) const { return p.class_weight ? static_cast<const Real*>(p.class_weight)[c] : Real(1); }
};

// Reads the labels of cell row r of image b: weights in the gradient, and the shares of labels and smoothing.
template <typename Label, typename Real>
struct LabelReader {
  Workspace<Real>& ws;
  const CrossEntropyProblem& p = ws.p;
  double divisor = 0;
  int64_t bad_label = kNoLabel;

  void read_row(int64_t b, int64_t r) {
    for (int64_t c = 0; c < p.classes; ++c) ws.present[c] = 0;
    for (Real* share : ws.smooth_share) fill(share, ws.padded, Real(0));
    for (int64_t q = 0; q < ws.padded; ++q) ws.label[q] = kNone;

    const int64_t row = p.columns.most * ws.padded;
    for (int64_t j = 0; j < p.rows.count[r]; ++j) {
      for (int64_t i = 0; i < row; ++i) ws.grad_weight[j * row + i] = ws.exists[i];
    }
    for (int64_t q = 0; q < p.columns.cells; ++q) {
      if (p.columns.count[q] > 0) read_cell(b, r, q);
    }
  }

 private:
  // Labels are patches: the lines of a cell mostly have one label, the same in all of them, and are one update.
  void read_cell(int64_t b, int64_t r, int64_t q) {
    const int64_t n = p.columns.count[q], rows = p.rows.count[r];
    const Label* labels = static_cast<const Label*>(p.target) + at(b, r, 0) + p.columns.begin[q];
    const Real right = column_fractions(q, 0, n);
    // Cells walk down lines that lie far apart, which the processor does not foresee. (Beyond the end it does no harm.)
    for (int64_t j = 0; j < rows; ++j) __builtin_prefetch(labels + (rows + j) * p.out_width);
    for (int64_t j = 0; j < rows;) {
      if (p.pixel_weight != nullptr || !alike(labels + j * p.out_width, n)) {
        read_line(labels + j * p.out_width, q, j, row_fraction(r, j), pixel_weights(b, r, q, j)), ++j;
        continue;
      }
      const Label label = labels[j * p.out_width];
      const int64_t begin = j;
      Real below = 0;  // Σ s over the lines
      do {
        below += row_fraction(r, j++);
      } while (j < rows && labels[j * p.out_width] == label && alike(labels + j * p.out_width, n));
      const Real lines = static_cast<Real>(j - begin), left = static_cast<Real>(n) - right;
      if (!score(label, q, begin, j, 0, n, 1)) continue;
      share(label, q, 1, (lines - below) * left, (lines - below) * right, below * left, below * right);
    }
  }

  // A line of a cell: pixels of one label and weight are one update.
  void read_line(const Label* labels, int64_t q, int64_t j, Real s, const Real* weights) {
    for (int64_t k = 0, n = p.columns.count[q]; k < n;) {
      const int64_t begin = k;
      const Label label = labels[k];
      do ++k;
      while (k < n && weights == nullptr && labels[k] == label);
      const Real weight = weights ? weights[begin] : Real(1);
      if (!score(label, q, j, j + 1, begin, k, weight)) continue;
      const Real right = column_fractions(q, begin, k), left = static_cast<Real>(k - begin) - right;
      share(label, q, weight, (1 - s) * left, (1 - s) * right, s * left, s * right);
    }
  }

  int64_t at(int64_t b, int64_t r, int64_t j) const { return (b * p.out_height + p.rows.begin[r] + j) * p.out_width; }
  Real row_fraction(int64_t r, int64_t j) const { return static_cast<Real>(fraction_in(p.rows, r, j)); }
  Real column_fractions(int64_t q, int64_t k, int64_t k_end) const {  // Σ t over columns [k, k_end)
    return static_cast<Real>(k_end - k) * (ws.first[q] + ws.step[q] * (static_cast<Real>(k + k_end - 1) / 2));
  }
  const Real* pixel_weights(int64_t b, int64_t r, int64_t q, int64_t j) const {
    return p.pixel_weight ? static_cast<const Real*>(p.pixel_weight) + at(b, r, j) + p.columns.begin[q] : nullptr;
  }

  // Whether n labels are one, by blocks of constant length without branches.
  template <int N>
  static bool all_equal(const Label* labels, Label label) {
    Label different = 0;
    for (int i = 0; i < N; ++i) different |= labels[i] ^ label;
    return different == 0;
  }
  static bool alike(const Label* labels, int64_t n) {
    if (n >= 8) {
      bool equal = all_equal<8>(labels + n - 8, labels[0]);
      for (int64_t i = 0; equal && i + 8 < n; i += 8) equal = all_equal<8>(labels + i, labels[0]);
      return equal;
    }
    if (n >= 4) return all_equal<4>(labels, labels[0]) && all_equal<4>(labels + n - 4, labels[0]);
    return labels[0] == labels[n - 1] && labels[0] == labels[n / 2];
  }

  // Lines [j, j_end) and columns [k, k_end) of cell q have one label and weight: fills in grad_weight; false if
  // ignored.
  bool score(int64_t label, int64_t q, int64_t j, int64_t j_end, int64_t k, int64_t k_end, Real weight) {
    Real* grad_weight = ws.grad_weight + j * p.columns.most * ws.padded + q;
    const auto weigh = [&](Real value) {
      for (int64_t line = j; line < j_end; ++line, grad_weight += p.columns.most * ws.padded) {
        for (int64_t i = k; i < k_end; ++i) grad_weight[i * ws.padded] = value;
      }
    };
    if (label == p.ignore_index || label < 0 || label >= p.classes) {
      if (label != p.ignore_index && bad_label == kNoLabel) bad_label = label;
      weigh(0);
      return false;
    }
    const Real of_class = ws.class_weight(label);
    divisor += static_cast<double>((j_end - j) * (k_end - k)) * of_class * weight;
    if (!ws.uniform) weigh(weight * (ws.own * of_class + ws.smooth * ws.class_sum));
    int32_t& cell = ws.label[q];
    cell = cell == kNone || cell == label ? static_cast<int32_t>(label) : kMixed;
    return true;
  }

  // Adds pixels of one label and weight, by the sums of their bilinear weights at the corners.
  void share(int64_t label, int64_t q, Real weight, Real top_left, Real top_right, Real bottom_left, Real bottom_right) {
    if (!ws.present[label]) {
      ws.present[label] = 1;
      for (Real* share : ws.label_share) fill(share + label * ws.padded, ws.padded, Real(0));
    }
    const auto add = [&](Real* const* to, int64_t i, Real factor) {
      to[0][i] += factor * top_left, to[0][i + 1] += factor * top_right;
      to[1][i] += factor * bottom_left, to[1][i + 1] += factor * bottom_right;
    };
    add(ws.label_share, label * ws.padded + q, weight);
    if (p.smoothing > 0) add(ws.smooth_share, q, weight);
  }
};
