// What the layouts share: element types, and the walk over levels. Included by kernel files inside their namespace (see
// isa.h). The inner loops run over contiguous memory and are left to the compiler to vectorise.

#include "half.h"

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

// The T of a T*.
template <typename P>
struct Pointee;
template <typename T>
struct Pointee<T*> {
  using type = T;
};
template <typename P>
using Element = typename Pointee<P>::type;

template <typename Acc>
inline void fill(Acc* p, int64_t n, Acc value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

template <typename Acc>
inline void add(Acc* __restrict__ to, const Acc* __restrict__ from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Writes a line to a row, or adds it: one rounding either way.
template <bool kAdd, typename T, typename Acc>
inline void write(T* __restrict__ row, const Acc* __restrict__ line, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (kAdd) {
      store(row + i, load(row[i]) + line[i]);
    } else {
      store(row + i, line[i]);
    }
  }
}

// The bins of one level along both axes, with the count of cells each averages.
struct Level {
  int64_t k, cell, entry;  // side; first packed cell; first entry in row_first, column_first, …
};

template <typename Body>
inline void for_each_level(const PoolShape& s, Body body) {
  Level level{0, 0, 0};
  for (int64_t l = 0; l < s.levels; ++l) {
    level.k = s.bins[l];
    body(level);
    level.cell += level.k * level.k;
    level.entry += level.k;
  }
}

inline int64_t row_count(const PoolShape& s, int64_t entry) {
  return s.row_edge[s.row_last[entry]] - s.row_edge[s.row_first[entry]];
}
inline int64_t column_count(const PoolShape& s, int64_t entry) {
  return s.column_edge[s.column_last[entry]] - s.column_edge[s.column_first[entry]];
}

// Calls `body` with a null pointer of the element type.
template <typename Body>
void dispatch(PoolType type, Body body) {
  switch (type) {
    case PoolType::f32: return body(static_cast<float*>(nullptr));
    case PoolType::f64: return body(static_cast<double*>(nullptr));
    case PoolType::f16: return body(static_cast<_Float16*>(nullptr));
    case PoolType::bf16: return body(static_cast<BFloat16*>(nullptr));
  }
}
