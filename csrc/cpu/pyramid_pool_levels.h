// What the layouts of pyramid pooling share: writing, and the walk over levels. Included by kernel files inside their
// namespace (see isa.h), behind elements.h.

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

// The bins of one level along both axes, with the count of pixels each averages.
struct Level {
  int64_t k, first_bin, entry;  // side; first packed bin; first entry in row_first, column_first, …
};

template <typename Body>
inline void for_each_level(const PoolShape& s, Body body) {
  Level level{0, 0, 0};
  for (int64_t l = 0; l < s.levels; ++l) {
    level.k = s.bins[l];
    body(level);
    level.first_bin += level.k * level.k;
    level.entry += level.k;
  }
}

inline int64_t row_count(const PoolShape& s, int64_t entry) {
  return s.row_edge[s.row_last[entry]] - s.row_edge[s.row_first[entry]];
}
inline int64_t column_count(const PoolShape& s, int64_t entry) {
  return s.column_edge[s.column_last[entry]] - s.column_edge[s.column_first[entry]];
}
