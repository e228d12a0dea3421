// Labels and nodes, as the kernels of the cross-entropy and of the arg-max read and write them.
// Included by kernel files inside their namespace (see isa.h).

#include "elements.h"
#include "lanes.h"

inline int64_t read_label(LabelType type, const void* labels, int64_t i) {
  switch (type) {
    case LabelType::i64: return static_cast<const int64_t*>(labels)[i];
    case LabelType::i32: return static_cast<const int32_t*>(labels)[i];
    default: return static_cast<const uint8_t*>(labels)[i];
  }
}
inline void write_label(LabelType type, void* labels, int64_t i, int64_t value) {
  switch (type) {
    case LabelType::i64: static_cast<int64_t*>(labels)[i] = value; break;
    case LabelType::i32: static_cast<int32_t*>(labels)[i] = static_cast<int32_t>(value); break;
    default: static_cast<uint8_t*>(labels)[i] = static_cast<uint8_t>(value);
  }
}

// Rows of nodes and of cells are padded to whole lanes plus one vector: a lane's right node is its neighbour.
template <typename Real>
int64_t padded_cells(const CellAxis& columns) {
  return (columns.cells + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real> + kLanes<Real>;
}

// Hands out pieces of a block of memory, or measures how much is needed.
template <typename Real>
struct Arena {
  Real* next;
  int64_t count = 0;

  Real* take(int64_t n) {
    const int64_t rounded = (n + 15) / 16 * 16;
    count += rounded;
    return next == nullptr ? nullptr : (next += rounded) - rounded;
  }
  int64_t bytes() const { return count * static_cast<int64_t>(sizeof(Real)); }
};

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
  switch (p.type) {
    case ElementType::f32: copy_nodes_as<float>(p, logits, b, h, padded, to); break;
    case ElementType::f64: copy_nodes_as<double>(p, logits, b, h, padded, to); break;
    case ElementType::f16: copy_nodes_as<_Float16>(p, logits, b, h, padded, to); break;
    case ElementType::bf16: copy_nodes_as<BFloat16>(p, logits, b, h, padded, to); break;
  }
}

// Every node's largest logit, and how far its smallest lies below (NaN where a logit is not finite).
template <typename Real>
void find_peaks(int64_t classes, int64_t padded, const Real* nodes, Real* peak, Real* range) {
  for (int64_t q = 0; q < padded; q += kLanes<Real>) {
    Lanes<Real> most = get(nodes + q), least = most, all_of_them = most;
    for (int64_t c = 1; c < classes; ++c) {
      const Lanes<Real> logit = get(nodes + c * padded + q);
      most = logit > most ? logit : most;
      least = logit < least ? logit : least;
      all_of_them += logit;
    }
    put(peak + q, most);
    put(range + q, most - least + Real(0) * all_of_them);
  }
}
