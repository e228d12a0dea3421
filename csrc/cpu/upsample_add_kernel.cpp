// Sums of upsampled maps and their gradient: columns at low resolution, rows along whole lines of pixels. Compiled once
// per instruction set.
#include "upsample_add_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "elements.h"

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A row of bins, its columns interpolated to a line.
template <typename T, typename Acc>
void expand(const UpsampleShape& s, const UpsampleLevel& level, const T* bins, Acc* __restrict__ line) {
  const UpsampleAxis& columns = level.columns;
  for (int64_t w = 0; w < s.width; ++w) {
    const T *first = bins + columns.first[w] * s.unit, *second = bins + columns.second[w] * s.unit;
    const Acc u = static_cast<Acc>(columns.first_weight[w]), v = static_cast<Acc>(columns.second_weight[w]);
    for (int64_t c = 0; c < s.unit; ++c) line[w * s.unit + c] = u * load(first[c]) + v * load(second[c]);
  }
}

template <typename Acc>
inline void interpolate(
    bool add, const Acc* __restrict__ top, const Acc* __restrict__ bottom, Acc u, Acc v, int64_t n,
    Acc* __restrict__ to) {
  if (add) {
    for (int64_t i = 0; i < n; ++i) to[i] += u * top[i] + v * bottom[i];
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = u * top[i] + v * bottom[i];
  }
}

// Scratch: sums [rows, line], two lines of a level.
template <typename T, typename Acc>
void forward(
    const UpsampleShape& s, const T* levels, const T* base, T* y, Acc* scratch, int64_t begin, int64_t end) {
  const int64_t most = upsample_add_rows(s), runs = (s.height + most - 1) / most, line = s.line();
  Acc *sums = scratch, *lines = sums + most * line;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / runs, first = task % runs * most, rows = smaller(most, s.height - first);
    for (int64_t l = 0; l < s.levels; ++l) {
      const UpsampleLevel& level = s.level[l];
      const T* bins = levels + (plane * s.packed_bins + level.first_bin) * s.unit;
      // The rows that a row reads are neighbours or the same: one line for the even ones, one for the odd.
      int64_t held[2] = {-1, -1};
      const auto expanded = [&](int64_t row) {
        Acc* to = lines + row % 2 * line;
        if (held[row % 2] != row) expand(s, level, bins + row * level.width * s.unit, to);
        held[row % 2] = row;
        return to;
      };
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t h = first + r;
        const Acc *top = expanded(level.rows.first[h]), *bottom = expanded(level.rows.second[h]);
        interpolate(
            l > 0, top, bottom, static_cast<Acc>(level.rows.first_weight[h]),
            static_cast<Acc>(level.rows.second_weight[h]), line, sums + r * line);
      }
    }
    const int64_t at = (plane * s.height + first) * line, n = rows * line;
    if (base == nullptr) {
      for (int64_t i = 0; i < n; ++i) store(y + at + i, sums[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) store(y + at + i, load(base[at + i]) + sums[i]);
    }
  }
}

template <typename T, typename Acc>
inline void accumulate(const T* __restrict__ pixels, Acc weight, int64_t n, Acc* __restrict__ sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * load(pixels[i]);
}

// Scratch: a line of the gradient, a row of bins.
template <typename T, typename Acc>
void backward(const UpsampleShape& s, const T* grad, T* grad_levels, Acc* scratch, int64_t begin, int64_t end) {
  const int64_t line = s.line();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / s.rows;
    int64_t l = 0;
    while (l + 1 < s.levels && s.level[l + 1].first_row <= task % s.rows) ++l;
    const UpsampleLevel& level = s.level[l];
    const int64_t row = task % s.rows - level.first_row;

    Acc* sum = scratch;
    fill(sum, line, Acc(0));
    const UpsampleAxis& rows = level.rows;
    for (int64_t h = level.first_reader[row]; h < level.last[row]; ++h) {
      const T* pixels = grad + (plane * s.height + h) * line;
      // Where both are this row, as behind the last one, both count: a weight of 0 too, which makes NaN of an infinity.
      if (rows.first[h] == row) accumulate(pixels, static_cast<Acc>(rows.first_weight[h]), line, sum);
      if (rows.second[h] == row) accumulate(pixels, static_cast<Acc>(rows.second_weight[h]), line, sum);
    }

    Acc* bins = scratch + line;
    fill(bins, level.width * s.unit, Acc(0));
    const UpsampleAxis& columns = level.columns;
    for (int64_t w = 0; w < s.width; ++w) {
      const Acc u = static_cast<Acc>(columns.first_weight[w]), v = static_cast<Acc>(columns.second_weight[w]);
      const Acc* pixel = sum + w * s.unit;
      Acc *first = bins + columns.first[w] * s.unit, *second = bins + columns.second[w] * s.unit;
      for (int64_t c = 0; c < s.unit; ++c) first[c] += u * pixel[c];
      for (int64_t c = 0; c < s.unit; ++c) second[c] += v * pixel[c];
    }
    T* to = grad_levels + (plane * s.packed_bins + level.first_bin + row * level.width) * s.unit;
    for (int64_t i = 0; i < level.width * s.unit; ++i) store(to + i, bins[i]);
  }
}

}  // namespace

// As much as a processor's second-level cache holds besides the two lines.
int64_t upsample_add_rows(const UpsampleShape& s) {
  const int64_t rows = 65536 / s.line();
  return rows < 4 ? 4 : rows < s.height ? rows : s.height;
}

int64_t upsample_add_scratch(const UpsampleShape& s) {
  int64_t widest = 0;
  for (int64_t l = 0; l < s.levels; ++l) widest = s.level[l].width > widest ? s.level[l].width : widest;
  const int64_t forward = (upsample_add_rows(s) + 2) * s.line(), backward = s.line() + widest * s.unit;
  return forward > backward ? forward : backward;
}

void upsample_add(
    ElementType type, const UpsampleShape& shape, const void* levels, const void* base, void* y, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    forward(
        shape, static_cast<const T*>(levels), static_cast<const T*>(base), static_cast<T*>(y),
        static_cast<Acc*>(scratch), begin, end);
  });
}

void upsample_add_backward(
    ElementType type, const UpsampleShape& shape, const void* grad, void* grad_levels, void* scratch, int64_t begin,
    int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    backward(
        shape, static_cast<const T*>(grad), static_cast<T*>(grad_levels), static_cast<Acc*>(scratch), begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
