// One pass of pyramid pooling, by atoms (see geometry.h). In NCHW a plane at a time between the map and its atoms, as
// many planes as a register has lanes between the atoms and the bins; in channels_last bands of rows with the channels
// innermost, then blocks of channels. Compiled once per instruction set.
#include "pyramid_pool_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

// ---- What the layouts share ----------------------------------------------------------------------------------------

// Writes a line to a row, or adds it: one rounding either way.
template <bool kAdd, typename T, typename Acc>
inline void write(T* __restrict__ row, const Acc* __restrict__ line, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(row + i, kAdd ? load(row[i]) + line[i] : line[i]);
}

// A bin of a level: its column there, its intervals of rows and columns, and the pixels that it averages.
struct Bin {
  int64_t index;  // in the packed bins
  int64_t j;
  int64_t row, row_end, column, column_end;
  int64_t pixels;
};

template <typename Body>
inline void for_each_bin(const PoolProblem& p, Body body) {
  const PoolAxis &rows = p.rows, &columns = p.columns;
  int64_t index = 0, first = 0;
  for (int64_t l = 0; l < p.levels; ++l) {
    const int64_t k = p.bins[l];
    for (int64_t i = first; i < first + k; ++i) {
      const int64_t row = rows.first[i], row_end = rows.last[i], height = rows.edge[row_end] - rows.edge[row];
      for (int64_t j = first; j < first + k; ++j) {
        const int64_t column = columns.first[j], column_end = columns.last[j];
        const int64_t pixels = height * (columns.edge[column_end] - columns.edge[column]);
        body(Bin{index++, j - first, row, row_end, column, column_end, pixels});
      }
    }
    first += k;
  }
}

// ---- NCHW ----------------------------------------------------------------------------------------------------------

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
    for (int64_t h = 0; h < rows; ++h, x += width) add(line, x, width);
    return;
  }
  for (int64_t begin = 0; begin < width; begin += 4 * n) {
    int64_t at[4];
    for (int v = 0; v < 4; ++v) at[v] = smaller(begin + v * n, width - n);
    Lanes<Acc> sum[4] = {};
    const T* row = x;
    for (int64_t h = 0; h < rows; ++h, row += width) {
      for (int v = 0; v < 4; ++v) sum[v] += widen(row + at[v]);
    }
    for (int v = 0; v < 4; ++v) put(line + at[v], sum[v]);
  }
}

// Lane `lane` of atoms [row intervals, column intervals, lanes] from lines [row intervals, width].
template <typename Acc>
void sum_columns(const PoolProblem& p, const Acc* lines, Acc* atoms, int64_t lane) {
  constexpr int64_t kRows = 4;  // sums that do not wait for one another; the last row is summed again to fill up
  const int64_t intervals = p.columns.intervals;
  for (int64_t r = 0; r < p.rows.intervals; r += kRows) {
    int64_t row[kRows];
    const Acc* line[kRows];
    for (int64_t i = 0; i < kRows; ++i) {
      row[i] = smaller(r + i, p.rows.intervals - 1);
      line[i] = lines + row[i] * p.columns.size;
    }
    for (int64_t c = 0; c < intervals; ++c) {
      Acc sum[kRows] = {};
      for (int64_t w = p.columns.edge[c]; w < p.columns.edge[c + 1]; ++w) {
        for (int64_t i = 0; i < kRows; ++i) sum[i] += line[i][w];
      }
      for (int64_t i = 0; i < kRows; ++i) atoms[(row[i] * intervals + c) * kLanes<Acc> + lane] = sum[i];
    }
  }
}

// Packed bins of `count` planes from their atoms.
template <typename T, typename Acc>
void average_bins(const PoolProblem& p, const Acc* atoms, Acc* merged, T* packed, int64_t count) {
  constexpr int64_t n = kLanes<Acc>;
  const int64_t row_of_atoms = p.columns.intervals * n;
  for_each_bin(p, [&](const Bin& bin) {
    if (bin.j == 0) {
      fill(merged, row_of_atoms, Acc(0));
      for (int64_t r = bin.row; r < bin.row_end; ++r) add(merged, atoms + r * row_of_atoms, row_of_atoms);
    }
    Lanes<Acc> sum = {};
    for (int64_t c = bin.column; c < bin.column_end; ++c) sum += get(merged + c * n);
    sum /= all(Acc(bin.pixels));
    for (int64_t i = 0; i < count; ++i) store(packed + i * p.packed_bins + bin.index, sum[i]);
  });
}

// The gradient on the atoms of `count` planes, [row intervals, column intervals, lanes].
template <typename T, typename Acc>
void spread_bins(const PoolProblem& p, const T* packed, Acc* atoms, int64_t count) {
  constexpr int64_t n = kLanes<Acc>;
  fill(atoms, p.rows.intervals * p.columns.intervals * n, Acc(0));
  for_each_bin(p, [&](const Bin& bin) {
    Lanes<Acc> share = {};
    for (int64_t i = 0; i < count; ++i) share[i] = load(packed[i * p.packed_bins + bin.index]);
    share /= all(Acc(bin.pixels));
    for (int64_t r = bin.row; r < bin.row_end; ++r) {
      for (int64_t c = bin.column; c < bin.column_end; ++c) {
        Acc* atom = atoms + (r * p.columns.intervals + c) * n;
        put(atom, get(atom) + share);
      }
    }
  });
}

// Scratch: lines [row intervals, width], atoms [row intervals, column intervals, lanes], a row of atoms.
template <typename T, typename Acc>
void nchw_forward(const PoolProblem& p, Acc* lines, int64_t begin, int64_t end) {
  constexpr int64_t n = kLanes<Acc>;
  const int64_t height = p.rows.size, width = p.columns.size, size = p.rows.intervals * p.columns.intervals * n;
  Acc *atoms = lines + p.rows.intervals * width, *merged = atoms + size;
  fill(atoms, size, Acc(0));
  for (int64_t first = begin; first < end; first += n) {
    const int64_t count = smaller(n, end - first);
    for (int64_t i = 0; i < count; ++i) {
      const T* plane = static_cast<const T*>(p.from) + (first + i) * height * width;
      for (int64_t r = 0; r < p.rows.intervals; ++r) {
        sum_rows(plane + p.rows.edge[r] * width, p.rows.edge[r + 1] - p.rows.edge[r], width, lines + r * width);
      }
      sum_columns(p, lines, atoms, i);
    }
    average_bins(p, atoms, merged, static_cast<T*>(p.to) + first * p.packed_bins, count);
  }
}

template <bool kAdd, typename T, typename Acc>
void nchw_backward(const PoolProblem& p, Acc* line, int64_t begin, int64_t end) {
  constexpr int64_t n = kLanes<Acc>;
  const int64_t height = p.rows.size, width = p.columns.size;
  Acc* atoms = line + p.rows.intervals * width;
  for (int64_t first = begin; first < end; first += n) {
    const int64_t count = smaller(n, end - first);
    spread_bins(p, static_cast<const T*>(p.from) + first * p.packed_bins, atoms, count);
    for (int64_t i = 0; i < count; ++i) {
      T* plane = static_cast<T*>(p.to) + (first + i) * height * width;
      for (int64_t r = 0; r < p.rows.intervals; ++r) {
        for (int64_t c = 0; c < p.columns.intervals; ++c) {
          const Acc value = atoms[(r * p.columns.intervals + c) * n + i];
          fill(line + p.columns.edge[c], p.columns.edge[c + 1] - p.columns.edge[c], value);
        }
        for (int64_t h = p.rows.edge[r]; h < p.rows.edge[r + 1]; ++h) write<kAdd>(plane + h * width, line, width);
      }
    }
  }
}

// ---- channels_last -------------------------------------------------------------------------------------------------

template <typename T, typename Acc>
void atoms_forward(const PoolProblem& p, int64_t begin, int64_t end) {
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / p.rows.intervals, r = band % p.rows.intervals;
    Acc* sums = static_cast<Acc*>(p.to) + band * p.columns.intervals * p.channels;
    fill(sums, p.columns.intervals * p.channels, Acc(0));
    for (int64_t h = p.rows.edge[r]; h < p.rows.edge[r + 1]; ++h) {
      const T* pixel = static_cast<const T*>(p.from) + (b * p.rows.size + h) * p.columns.size * p.channels;
      for (int64_t c = 0; c < p.columns.intervals; ++c) {
        Acc* __restrict__ sum = sums + c * p.channels;
        for (int64_t w = p.columns.edge[c]; w < p.columns.edge[c + 1]; ++w, pixel += p.channels) {
          for (int64_t i = 0; i < p.channels; ++i) sum[i] += load(pixel[i]);
        }
      }
    }
  }
}

// Calls body(b, first channel, count) for blocks of channels.
template <typename Body>
inline void for_each_block(const PoolProblem& p, int64_t begin, int64_t end, Body body) {
  const int64_t per_image = ceil_div(p.channels, kChannelBlock);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block % per_image * kChannelBlock;
    body(block / per_image, first, smaller(kChannelBlock, p.channels - first));
  }
}

template <typename T, typename Acc>
void bins_forward(const PoolProblem& p, int64_t begin, int64_t end) {
  for_each_block(p, begin, end, [&](int64_t b, int64_t first, int64_t count) {
    const int64_t atoms = p.rows.intervals * p.columns.intervals;
    const Acc* image = static_cast<const Acc*>(p.from) + b * atoms * p.channels + first;
    T* packed = static_cast<T*>(p.to) + (b * p.channels + first) * p.packed_bins;
    for_each_bin(p, [&](const Bin& bin) {
      Acc sum[kChannelBlock] = {};
      for (int64_t r = bin.row; r < bin.row_end; ++r) {
        for (int64_t c = bin.column; c < bin.column_end; ++c) {
          add(sum, image + (r * p.columns.intervals + c) * p.channels, count);
        }
      }
      for (int64_t i = 0; i < count; ++i) store(packed + i * p.packed_bins + bin.index, sum[i] / Acc(bin.pixels));
    });
  });
}

template <typename T, typename Acc>
void bins_backward(const PoolProblem& p, int64_t begin, int64_t end) {
  for_each_block(p, begin, end, [&](int64_t b, int64_t first, int64_t count) {
    const T* packed = static_cast<const T*>(p.from) + (b * p.channels + first) * p.packed_bins;
    Acc* image = static_cast<Acc*>(p.to) + b * p.packed_bins * p.channels + first;
    for_each_bin(p, [&](const Bin& bin) {
      Acc* shares = image + bin.index * p.channels;
      for (int64_t i = 0; i < count; ++i) shares[i] = load(packed[i * p.packed_bins + bin.index]) / Acc(bin.pixels);
    });
  });
}

template <typename T, typename Acc>
void atoms_backward(const PoolProblem& p, Acc* atoms, int64_t begin, int64_t end) {
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / p.rows.intervals, r = band % p.rows.intervals;
    const Acc* shares = static_cast<const Acc*>(p.from) + b * p.packed_bins * p.channels;
    fill(atoms, p.columns.intervals * p.channels, Acc(0));
    for_each_bin(p, [&](const Bin& bin) {
      if (r < bin.row || r >= bin.row_end) return;
      for (int64_t c = bin.column; c < bin.column_end; ++c) {
        add(atoms + c * p.channels, shares + bin.index * p.channels, p.channels);
      }
    });
    for (int64_t h = p.rows.edge[r]; h < p.rows.edge[r + 1]; ++h) {
      T* pixel = static_cast<T*>(p.to) + (b * p.rows.size + h) * p.columns.size * p.channels;
      for (int64_t c = 0; c < p.columns.intervals; ++c) {
        const Acc* atom = atoms + c * p.channels;
        for (int64_t w = p.columns.edge[c]; w < p.columns.edge[c + 1]; ++w, pixel += p.channels) {
          p.add ? write<true>(pixel, atom, p.channels) : write<false>(pixel, atom, p.channels);
        }
      }
    }
  }
}

}  // namespace

int64_t pool_nchw_scratch(const PoolProblem& p) {
  const int64_t lanes = p.type == ElementType::f64 ? kLanes<double> : kLanes<float>;
  const int64_t count = p.rows.intervals * p.columns.size + (p.rows.intervals + 1) * p.columns.intervals * lanes;
  return count * kVectorBytes / lanes;
}

void pool_nchw_forward(const PoolProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { nchw_forward<T>(p, static_cast<Acc*>(scratch), begin, end); });
}

void pool_nchw_backward(const PoolProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() {
    p.add ? nchw_backward<true, T>(p, static_cast<Acc*>(scratch), begin, end)
          : nchw_backward<false, T>(p, static_cast<Acc*>(scratch), begin, end);
  });
}

void pool_nhwc_atoms_forward(const PoolProblem& p, void*, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { atoms_forward<T, Acc>(p, begin, end); });
}

void pool_nhwc_bins_forward(const PoolProblem& p, void*, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { bins_forward<T, Acc>(p, begin, end); });
}

void pool_nhwc_bins_backward(const PoolProblem& p, void*, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { bins_backward<T, Acc>(p, begin, end); });
}

void pool_nhwc_atoms_backward(const PoolProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { atoms_backward<T>(p, static_cast<Acc*>(scratch), begin, end); });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
