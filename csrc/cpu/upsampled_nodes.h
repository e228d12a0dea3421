// What the kernels on upsampled logits share: labels, rows of nodes, and one row of the upsampled map.
// Included by kernel files inside their namespace (see isa.h), behind lanes.h.

// Calls `body`, a template of the type of labels.
template <typename Body>
inline auto dispatch_labels(LabelType type, const Body& body) {
  switch (type) {
    case LabelType::i64: return body.template operator()<int64_t>();
    case LabelType::i32: return body.template operator()<int32_t>();
    default: return body.template operator()<uint8_t>();
  }
}
inline int64_t read_label(LabelType type, const void* labels, int64_t i) {
  return dispatch_labels(type, [&]<typename Label>() -> int64_t { return static_cast<const Label*>(labels)[i]; });
}

// Rows of nodes and of cells are padded to whole lanes plus one vector: a lane's right node is its neighbour.
template <typename Real>
int64_t padded_cells(const CellAxis& columns) {
  return (ceil_div(columns.cells, kLanes<Real>) + 1) * kLanes<Real>;
}

// Hands out pieces of a block of memory, or measures how much is needed.
template <typename Real>
struct Arena {
  Real* next;
  int64_t count = 0;

  Real* take(int64_t n) {
    const int64_t rounded = ceil_div(n, 16) * 16;
    count += rounded;
    return next == nullptr ? nullptr : (next += rounded) - rounded;
  }
  int64_t bytes() const { return count * static_cast<int64_t>(sizeof(Real)); }
};

// The bytes of an arena that State<Real> takes, double for f64, else float.
template <template <typename> typename State, typename Problem>
int64_t bytes_of(const Problem& p) {
  const auto measure = [&]<typename Real>() {
    Arena<Real> arena{nullptr};
    const State<Real> state(p, arena);
    return arena.bytes();
  };
  return p.type == ElementType::f64 ? measure.template operator()<double>() : measure.template operator()<float>();
}

// Calls block(i) at 0, n, 2n, … and so that the last block ends at `size`: it overlaps the one before.
template <typename Block>
void for_overlapping_blocks(int64_t size, int64_t n, const Block& block) {
  for (int64_t i = 0; i + n <= size; i += n) block(i);
  if (size % n != 0) block(size - n);
}

// Copy row h of nodes of image b to [C, padded]; beyond the map stands what node_at() tells.
template <typename T, typename Problem, typename Real>
void copy_nodes_as(const Problem& p, const void* logits, int64_t b, int64_t h, int64_t padded, Real* to) {
  const T* from = static_cast<const T*>(logits) + b * p.stride_b + h * p.stride_h;
  const int64_t width = p.columns.nodes, before = -p.columns.first_node;
  constexpr int64_t n = kLanes<Real>;
  if (p.stride_w != 1 && p.classes >= n && width >= n) {  // channels_last: a strided copy would be a load per number
    for_overlapping_blocks(p.classes, n, [&](int64_t c0) {
      for_overlapping_blocks(width, n, [&](int64_t w0) {
        Lanes<Real> block[n];
        for (int64_t i = 0; i < n; ++i) {
          Real node[n];
          for (int64_t j = 0; j < n; ++j) node[j] = static_cast<Real>(load(from[(w0 + i) * p.stride_w + c0 + j]));
          block[i] = get(node);
        }
        transpose<Real>(block);
        for (int64_t i = 0; i < n; ++i) put(to + (c0 + i) * padded + before + w0, block[i]);
      });
    });
  } else {
    for (int64_t c = 0; c < p.classes; ++c) {
      Real* row = to + c * padded + before;
      const T* line = from + c * p.stride_c;
      if (p.stride_w == 1) {
        for (int64_t w = 0; w < width; ++w) row[w] = static_cast<Real>(load(line[w]));
      } else {
        for (int64_t w = 0; w < width; ++w) row[w] = static_cast<Real>(load(line[w * p.stride_w]));
      }
    }
  }
  for (int64_t c = 0; c < p.classes; ++c) {
    Real* row = to + c * padded;
    for (int64_t q = 0; q < before; ++q) row[q] = row[before + node_at(p.columns, q)];
    for (int64_t q = before + width; q < padded; ++q) row[q] = row[before + width - 1];
  }
}

template <typename Problem, typename Real>
void copy_nodes(const Problem& p, const void* logits, int64_t b, int64_t h, int64_t padded, Real* to) {
  dispatch(p.type, [&]<typename T, typename Acc>() { copy_nodes_as<T>(p, logits, b, h, padded, to); });
}

// Output rows of a problem, one at a time: nodes interpolated to it, from which lanes take each a cell's columns.
template <typename Real, typename Problem>
struct UpsampledRow {
  const Problem& p;
  int64_t padded, map;  // cells of a row in whole lanes and one vector more; C · padded
  int64_t next;         // from a column's left node to its right one: 0 at equal sizes, else 1 (see bilinear_taps)
  Real* nodes[2];       // [C, padded] rows of nodes above and below
  Real* row;            // [C, padded] nodes interpolated to one output row
  Real* first;          // [padded] fraction of each cell's first column

  // With an arena that measures nothing is written.
  UpsampledRow(const Problem& problem, Arena<Real>& arena) : p(problem) {
    padded = padded_cells<Real>(p.columns), map = p.classes * padded;
    next = p.columns.nodes == p.out_width ? 0 : 1;
    for (Real*& side : nodes) side = arena.take(map);
    row = arena.take(map), first = arena.take(padded);
    for (int64_t q = 0; first != nullptr && q < padded; ++q) {
      first[q] = q < p.columns.cells ? static_cast<Real>(fraction_in(p.columns, q, 0)) : Real(0);
    }
  }

  // The nodes above cell row r of image b.
  void stage(int64_t b, int64_t r) { copy_nodes(p, p.logits, b, node_at(p.rows, r), padded, nodes[r & 1]); }

  // The j-th output row of cell row r, whose nodes above and below are staged.
  void interpolate(int64_t r, int64_t j) {
    const Real s = static_cast<Real>(fraction_in(p.rows, r, j));
    const Real *above = nodes[r & 1], *below = p.rows.nodes == p.out_height ? above : nodes[(r & 1) ^ 1];
    for (int64_t i = 0; i < map; i += kLanes<Real>) put(row + i, (1 - s) * get(above + i) + s * get(below + i));
  }

  // The share of the right node in a column of the cells from q on.
  Lanes<Real> share(int64_t q, int64_t column) const {
    const Lanes<Real> t = get(first + q) + static_cast<Real>(column) * static_cast<Real>(p.columns.step);
    return t < Real(1) ? t : all(Real(1));
  }
};
