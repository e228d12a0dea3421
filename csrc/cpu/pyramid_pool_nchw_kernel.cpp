// One pass of pyramid pooling, by atoms (see geometry.h), in NCHW: a plane at a time between the map and its atoms, as
// many planes as a register has lanes between the atoms and the bins. Compiled once per instruction set.
#include "pyramid_pool_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "elements.h"
#include "pyramid_pool_levels.h"

// Vectors of a storage type, widened to the type that sums are taken in.
inline Lanes<float> widen(const float* p) { return get(p); }
inline Lanes<double> widen(const double* p) { return get(p); }
inline Lanes<float> widen(const _Float16* p) {
  Lanes<float> v;
  for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = load(p[i]);
  return v;
}
inline Lanes<float> widen(const BFloat16* p) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  return reinterpret_cast<Lanes<float>>(__builtin_convertvector(*reinterpret_cast<const Bits*>(p), Wide) << 16);
}

// line[w] = Σ over `rows` rows of x. Four vectors at a time stay in registers; the last ones of a row are moved back to
// end with it, and write some sums twice.
template <typename T, typename Acc>
void sum_rows(const T* x, int64_t rows, int64_t width, Acc* line) {
  constexpr int64_t n = kLanes<Acc>;
  if (width < n) {
    fill(line, width, Acc(0));
    for (int64_t h = 0; h < rows; ++h, x += width) {
      for (int64_t w = 0; w < width; ++w) line[w] += load(x[w]);
    }
    return;
  }
  for (int64_t begin = 0; begin < width; begin += 4 * n) {
    int64_t at[4];
    for (int v = 0; v < 4; ++v) at[v] = begin + v * n < width - n ? begin + v * n : width - n;
    Lanes<Acc> sum[4] = {};
    const T* row = x;
    for (int64_t h = 0; h < rows; ++h, row += width) {
      for (int v = 0; v < 4; ++v) sum[v] += widen(row + at[v]);
    }
    for (int v = 0; v < 4; ++v) put(line + at[v], sum[v]);
  }
}

// Lane `lane` of atoms [row_intervals, column_intervals, lanes] from lines [row_intervals, width].
template <typename Acc>
void sum_columns(const PoolShape& s, const Acc* lines, Acc* atoms, int64_t lane) {
  constexpr int64_t kRows = 4;  // sums that do not wait for one another; the last row is summed again to fill up
  for (int64_t r = 0; r < s.row_intervals; r += kRows) {
    int64_t row[kRows];
    for (int64_t i = 0; i < kRows; ++i) row[i] = r + i < s.row_intervals ? r + i : s.row_intervals - 1;
    for (int64_t c = 0; c < s.column_intervals; ++c) {
      Acc sum[kRows] = {};
      for (int64_t w = s.column_edge[c]; w < s.column_edge[c + 1]; ++w) {
        for (int64_t i = 0; i < kRows; ++i) sum[i] += lines[row[i] * s.width + w];
      }
      for (int64_t i = 0; i < kRows; ++i) atoms[(row[i] * s.column_intervals + c) * kLanes<Acc> + lane] = sum[i];
    }
  }
}

// Packed bins of `count` planes from their atoms.
template <typename T, typename Acc>
void average_bins(const PoolShape& s, const Acc* atoms, Acc* merged, T* packed, int64_t count) {
  constexpr int64_t n = kLanes<Acc>;
  for_each_level(s, [&](const Level& level) {
    for (int64_t i = 0; i < level.k; ++i) {
      fill(merged, s.column_intervals * n, Acc(0));
      for (int64_t r = s.row_first[level.entry + i]; r < s.row_last[level.entry + i]; ++r) {
        add(merged, atoms + r * s.column_intervals * n, s.column_intervals * n);
      }
      const int64_t rows = row_count(s, level.entry + i);
      for (int64_t j = 0; j < level.k; ++j) {
        Lanes<Acc> sum = {};
        for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) {
          sum += get(merged + c * n);
        }
        sum /= all(Acc(rows * column_count(s, level.entry + j)));
        T* bin = packed + level.first_bin + i * level.k + j;
        for (int64_t p = 0; p < count; ++p) store(bin + p * s.packed_bins, sum[p]);
      }
    }
  });
}

template <typename T>
void nchw_forward(const PoolShape& s, const T* x, T* out, void* scratch, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  constexpr int64_t n = kLanes<Acc>;
  Acc* lines = static_cast<Acc*>(scratch);
  Acc* atoms = lines + s.row_intervals * s.width;
  Acc* merged = atoms + s.row_intervals * s.column_intervals * n;
  fill(atoms, s.row_intervals * s.column_intervals * n, Acc(0));

  for (int64_t first = begin; first < end; first += n) {
    const int64_t count = end - first < n ? end - first : n;
    for (int64_t p = 0; p < count; ++p) {
      const T* plane = x + (first + p) * s.height * s.width;
      for (int64_t r = 0; r < s.row_intervals; ++r) {
        sum_rows(plane + s.row_edge[r] * s.width, s.row_edge[r + 1] - s.row_edge[r], s.width, lines + r * s.width);
      }
      sum_columns(s, lines, atoms, p);
    }
    average_bins(s, atoms, merged, out + first * s.packed_bins, count);
  }
}

// The gradient on the atoms of `count` planes, [row_intervals, column_intervals, lanes].
template <typename T, typename Acc>
void spread_bins(const PoolShape& s, const T* packed, Acc* atoms, int64_t count) {
  constexpr int64_t n = kLanes<Acc>;
  fill(atoms, s.row_intervals * s.column_intervals * n, Acc(0));
  for_each_level(s, [&](const Level& level) {
    for (int64_t i = 0; i < level.k; ++i) {
      const int64_t rows = row_count(s, level.entry + i);
      for (int64_t j = 0; j < level.k; ++j) {
        const T* bin = packed + level.first_bin + i * level.k + j;
        Lanes<Acc> share = {};
        for (int64_t p = 0; p < count; ++p) share[p] = load(bin[p * s.packed_bins]);
        share /= all(Acc(rows * column_count(s, level.entry + j)));
        for (int64_t r = s.row_first[level.entry + i]; r < s.row_last[level.entry + i]; ++r) {
          for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) {
            Acc* atom = atoms + (r * s.column_intervals + c) * n;
            put(atom, get(atom) + share);
          }
        }
      }
    }
  });
}

template <bool kAdd, typename T>
void nchw_backward(const PoolShape& s, const T* grad, T* grad_x, void* scratch, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  constexpr int64_t n = kLanes<Acc>;
  Acc* line = static_cast<Acc*>(scratch);
  Acc* atoms = line + s.row_intervals * s.width;

  for (int64_t first = begin; first < end; first += n) {
    const int64_t count = end - first < n ? end - first : n;
    spread_bins(s, grad + first * s.packed_bins, atoms, count);
    for (int64_t p = 0; p < count; ++p) {
      T* plane = grad_x + (first + p) * s.height * s.width;
      for (int64_t r = 0; r < s.row_intervals; ++r) {
        for (int64_t c = 0; c < s.column_intervals; ++c) {
          const Acc value = atoms[(r * s.column_intervals + c) * n + p];
          fill(line + s.column_edge[c], s.column_edge[c + 1] - s.column_edge[c], value);
        }
        for (int64_t h = s.row_edge[r]; h < s.row_edge[r + 1]; ++h) write<kAdd>(plane + h * s.width, line, s.width);
      }
    }
  }
}

}  // namespace

int64_t pool_nchw_scratch(ElementType type, const PoolShape& s) {
  const int64_t lanes = type == ElementType::f64 ? kLanes<double> : kLanes<float>;
  return s.row_intervals * s.width + (s.row_intervals + 1) * s.column_intervals * lanes;
}

void pool_nchw_forward(
    ElementType type, const PoolShape& shape, const void* x, void* out, void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    nchw_forward(shape, static_cast<const T*>(x), static_cast<T*>(out), scratch, begin, end);
  });
}

void pool_nchw_backward(
    ElementType type, bool add, const PoolShape& shape, const void* grad, void* grad_x, void* scratch, int64_t begin,
    int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    const T* from = static_cast<const T*>(grad);
    T* to = static_cast<T*>(grad_x);
    add ? nchw_backward<true>(shape, from, to, scratch, begin, end)
        : nchw_backward<false>(shape, from, to, scratch, begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
