// One pass of pyramid pooling, by atoms (see geometry.h). Compiled once per instruction set (see isa.h); the inner loops
// run over contiguous memory and are left to the compiler to vectorise.
#include "pyramid_pool_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

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

// ---- NCHW: a plane at a time ----------------------------------------------------------------------------------------

template <typename T, typename Acc>
void sum_rows(const T* __restrict__ x, int64_t rows, int64_t width, Acc* __restrict__ line) {
  // Four rows at once: one load and store of the running line for four of x.
  fill(line, width, Acc(0));
  int64_t h = 0;
  for (; h + 4 <= rows; h += 4, x += 4 * width) {
    for (int64_t w = 0; w < width; ++w) {
      line[w] += (load(x[w]) + load(x[w + width])) + (load(x[w + 2 * width]) + load(x[w + 3 * width]));
    }
  }
  for (; h < rows; ++h, x += width) {
    for (int64_t w = 0; w < width; ++w) line[w] += load(x[w]);
  }
}

template <typename T>
void planes_forward(const PoolShape& s, const T* x, T* out, void* scratch, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  Acc* line = static_cast<Acc*>(scratch);
  Acc* atoms = line + s.width;  // [row_intervals, column_intervals]
  Acc* merged = atoms + s.row_intervals * s.column_intervals;

  for (int64_t p = begin; p < end; ++p) {
    const T* plane = x + p * s.height * s.width;
    for (int64_t r = 0; r < s.row_intervals; ++r) {
      sum_rows(plane + s.row_edge[r] * s.width, s.row_edge[r + 1] - s.row_edge[r], s.width, line);
      for (int64_t c = 0; c < s.column_intervals; ++c) {
        Acc sum = 0;
        for (int64_t w = s.column_edge[c]; w < s.column_edge[c + 1]; ++w) sum += line[w];
        atoms[r * s.column_intervals + c] = sum;
      }
    }

    T* packed = out + p * s.cells;
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        fill(merged, s.column_intervals, Acc(0));
        for (int64_t r = s.row_first[level.entry + i]; r < s.row_last[level.entry + i]; ++r) {
          add(merged, atoms + r * s.column_intervals, s.column_intervals);
        }
        const int64_t rows = row_count(s, level.entry + i);
        for (int64_t j = 0; j < level.k; ++j) {
          Acc sum = 0;
          for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) sum += merged[c];
          store(packed + level.cell + i * level.k + j, sum / Acc(rows * column_count(s, level.entry + j)));
        }
      }
    });
  }
}

template <typename T>
void planes_backward(const PoolShape& s, const T* grad, T* grad_x, void* scratch, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  Acc* line = static_cast<Acc*>(scratch);
  Acc* atoms = line + s.width;

  for (int64_t p = begin; p < end; ++p) {
    const T* packed = grad + p * s.cells;
    fill(atoms, s.row_intervals * s.column_intervals, Acc(0));
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        const int64_t rows = row_count(s, level.entry + i);
        for (int64_t j = 0; j < level.k; ++j) {
          const int64_t first = s.column_first[level.entry + j], last = s.column_last[level.entry + j];
          const Acc share =
              load(packed[level.cell + i * level.k + j]) / Acc(rows * column_count(s, level.entry + j));
          for (int64_t r = s.row_first[level.entry + i]; r < s.row_last[level.entry + i]; ++r) {
            for (int64_t c = first; c < last; ++c) atoms[r * s.column_intervals + c] += share;
          }
        }
      }
    });

    T* plane = grad_x + p * s.height * s.width;
    for (int64_t r = 0; r < s.row_intervals; ++r) {
      for (int64_t c = 0; c < s.column_intervals; ++c) {
        fill(line + s.column_edge[c], s.column_edge[c + 1] - s.column_edge[c], atoms[r * s.column_intervals + c]);
      }
      for (int64_t h = s.row_edge[r]; h < s.row_edge[r + 1]; ++h) {
        T* row = plane + h * s.width;
        for (int64_t w = 0; w < s.width; ++w) store(row + w, line[w]);
      }
    }
  }
}

// ---- channels_last: bands of rows with the channels innermost, then blocks of channels ------------------------------

template <typename T>
void bands_forward(const PoolShape& s, const T* x, void* atoms, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / s.row_intervals, r = band % s.row_intervals;
    Acc* sums = static_cast<Acc*>(atoms) + band * s.column_intervals * s.channels;
    fill(sums, s.column_intervals * s.channels, Acc(0));
    for (int64_t h = s.row_edge[r]; h < s.row_edge[r + 1]; ++h) {
      const T* pixel = x + (b * s.height + h) * s.width * s.channels;
      for (int64_t c = 0; c < s.column_intervals; ++c) {
        Acc* __restrict__ sum = sums + c * s.channels;
        for (int64_t w = s.column_edge[c]; w < s.column_edge[c + 1]; ++w, pixel += s.channels) {
          for (int64_t ch = 0; ch < s.channels; ++ch) sum[ch] += load(pixel[ch]);
        }
      }
    }
  }
}

// The channels of block `index` of image `b`.
struct Block {
  int64_t b, first, count;
};
inline Block block_at(const PoolShape& s, int64_t index) {
  const int64_t per_image = (s.channels + kChannelBlock - 1) / kChannelBlock;
  const int64_t first = index % per_image * kChannelBlock;
  const int64_t left = s.channels - first;
  return {index / per_image, first, left < kChannelBlock ? left : kChannelBlock};
}

template <typename T>
void blocks_forward(const PoolShape& s, const void* atoms, T* out, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  for (int64_t index = begin; index < end; ++index) {
    const Block block = block_at(s, index);
    const Acc* image =
        static_cast<const Acc*>(atoms) + block.b * s.row_intervals * s.column_intervals * s.channels + block.first;
    T* packed = out + (block.b * s.channels + block.first) * s.cells;
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        for (int64_t j = 0; j < level.k; ++j) {
          Acc sum[kChannelBlock] = {};
          for (int64_t r = s.row_first[level.entry + i]; r < s.row_last[level.entry + i]; ++r) {
            for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) {
              add(sum, image + (r * s.column_intervals + c) * s.channels, block.count);
            }
          }
          const Acc cells = Acc(row_count(s, level.entry + i) * column_count(s, level.entry + j));
          T* to = packed + level.cell + i * level.k + j;
          for (int64_t ch = 0; ch < block.count; ++ch) store(to + ch * s.cells, sum[ch] / cells);
        }
      }
    });
  }
}

template <typename T>
void blocks_backward(const PoolShape& s, const T* grad, void* shares, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  for (int64_t index = begin; index < end; ++index) {
    const Block block = block_at(s, index);
    const T* packed = grad + (block.b * s.channels + block.first) * s.cells;
    Acc* image = static_cast<Acc*>(shares) + block.b * s.cells * s.channels + block.first;
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        for (int64_t j = 0; j < level.k; ++j) {
          const int64_t cell = level.cell + i * level.k + j;
          const Acc cells = Acc(row_count(s, level.entry + i) * column_count(s, level.entry + j));
          for (int64_t ch = 0; ch < block.count; ++ch) {
            image[cell * s.channels + ch] = load(packed[ch * s.cells + cell]) / cells;
          }
        }
      }
    });
  }
}

template <typename T>
void bands_backward(
    const PoolShape& s, const void* shares, T* grad_x, void* scratch, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  Acc* atoms = static_cast<Acc*>(scratch);  // [column_intervals, C] of this band
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / s.row_intervals, r = band % s.row_intervals;
    const Acc* image = static_cast<const Acc*>(shares) + b * s.cells * s.channels;
    fill(atoms, s.column_intervals * s.channels, Acc(0));
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        if (r < s.row_first[level.entry + i] || r >= s.row_last[level.entry + i]) continue;
        for (int64_t j = 0; j < level.k; ++j) {
          const Acc* share = image + (level.cell + i * level.k + j) * s.channels;
          for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) {
            add(atoms + c * s.channels, share, s.channels);
          }
        }
      }
    });

    for (int64_t h = s.row_edge[r]; h < s.row_edge[r + 1]; ++h) {
      T* pixel = grad_x + (b * s.height + h) * s.width * s.channels;
      for (int64_t c = 0; c < s.column_intervals; ++c) {
        const Acc* __restrict__ value = atoms + c * s.channels;
        for (int64_t w = s.column_edge[c]; w < s.column_edge[c + 1]; ++w, pixel += s.channels) {
          for (int64_t ch = 0; ch < s.channels; ++ch) store(pixel + ch, value[ch]);
        }
      }
    }
  }
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

}  // namespace

void pool_planes_forward(
    PoolType type, const PoolShape& shape, const void* x, void* out, void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    planes_forward(shape, static_cast<const T*>(x), static_cast<T*>(out), scratch, begin, end);
  });
}

void pool_planes_backward(
    PoolType type, const PoolShape& shape, const void* grad, void* grad_x, void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    planes_backward(shape, static_cast<const T*>(grad), static_cast<T*>(grad_x), scratch, begin, end);
  });
}

void pool_bands_forward(
    PoolType type, const PoolShape& shape, const void* x, void* atoms, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    bands_forward(shape, static_cast<const T*>(x), atoms, begin, end);
  });
}

void pool_blocks_forward(
    PoolType type, const PoolShape& shape, const void* atoms, void* out, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    blocks_forward(shape, atoms, static_cast<T*>(out), begin, end);
  });
}

void pool_blocks_backward(
    PoolType type, const PoolShape& shape, const void* grad, void* shares, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    blocks_backward(shape, static_cast<const T*>(grad), shares, begin, end);
  });
}

void pool_bands_backward(
    PoolType type, const PoolShape& shape, const void* shares, void* grad_x, void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    bands_backward(shape, shares, static_cast<T*>(grad_x), scratch, begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
