// One pass of pyramid pooling, by atoms (see geometry.h), in NCHW: a plane at a time. Compiled once per instruction set.
#include "pyramid_pool_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "pyramid_pool_levels.h"

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

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
