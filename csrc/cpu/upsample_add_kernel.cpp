// Sums of upsampled maps and their gradient: columns at low resolution, rows along whole lines of pixels. Compiled once
// per instruction set.
#include "pyramid_levels_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

// A row of bins, its columns interpolated to a line.
template <typename T, typename Acc>
void expand(const UpsampleProblem& p, const UpsampleLevel& level, const T* bins, Acc* __restrict__ line) {
  for (int64_t w = 0; w < p.width; ++w) {
    const AxisTap& tap = level.columns[w];
    const T *first = bins + tap.first * p.unit, *second = bins + tap.second * p.unit;
    const Acc u = static_cast<Acc>(tap.first_weight), v = static_cast<Acc>(tap.second_weight);
    for (int64_t c = 0; c < p.unit; ++c) line[w * p.unit + c] = u * load(first[c]) + v * load(second[c]);
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
void forward(const UpsampleProblem& p, Acc* sums, int64_t begin, int64_t end) {
  const int64_t most = upsample_add_rows(p), runs = ceil_div(p.height, most), line = p.line();
  const T* base = static_cast<const T*>(p.base);
  T* y = static_cast<T*>(p.to);
  Acc* lines = sums + most * line;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / runs, first = task % runs * most, rows = smaller(most, p.height - first);
    for (int64_t l = 0; l < p.levels; ++l) {
      const UpsampleLevel& level = p.level[l];
      const T* bins = static_cast<const T*>(p.from) + (plane * p.packed_bins + level.first_bin) * p.unit;
      // The rows that a row reads are neighbours or the same: one line for the even ones, one for the odd.
      int64_t held[2] = {-1, -1};
      const auto expanded = [&](int64_t row) {
        Acc* to = lines + row % 2 * line;
        if (held[row % 2] != row) expand(p, level, bins + row * level.width * p.unit, to);
        held[row % 2] = row;
        return to;
      };
      for (int64_t r = 0; r < rows; ++r) {
        const AxisTap& tap = level.rows[first + r];
        const Acc *top = expanded(tap.first), *bottom = expanded(tap.second);
        interpolate(
            l > 0, top, bottom, static_cast<Acc>(tap.first_weight), static_cast<Acc>(tap.second_weight), line,
            sums + r * line);
      }
    }
    const int64_t at = (plane * p.height + first) * line, n = rows * line;
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
void backward(const UpsampleProblem& p, Acc* sum, int64_t begin, int64_t end) {
  const int64_t line = p.line();
  Acc* bins = sum + line;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / p.rows;
    int64_t l = 0;
    while (l + 1 < p.levels && p.level[l + 1].first_row <= task % p.rows) ++l;
    const UpsampleLevel& level = p.level[l];
    const int64_t row = task % p.rows - level.first_row;

    fill(sum, line, Acc(0));
    for (int64_t h = level.first_reader[row]; h < level.last[row]; ++h) {
      const T* pixels = static_cast<const T*>(p.from) + (plane * p.height + h) * line;
      const AxisTap& tap = level.rows[h];
      // Where both are this row, as behind the last one, both count: a weight of 0 too, which makes NaN of an infinity.
      if (tap.first == row) accumulate(pixels, static_cast<Acc>(tap.first_weight), line, sum);
      if (tap.second == row) accumulate(pixels, static_cast<Acc>(tap.second_weight), line, sum);
    }

    fill(bins, level.width * p.unit, Acc(0));
    for (int64_t w = 0; w < p.width; ++w) {
      const AxisTap& tap = level.columns[w];
      const Acc u = static_cast<Acc>(tap.first_weight), v = static_cast<Acc>(tap.second_weight);
      const Acc* pixel = sum + w * p.unit;
      Acc *first = bins + tap.first * p.unit, *second = bins + tap.second * p.unit;
      for (int64_t c = 0; c < p.unit; ++c) first[c] += u * pixel[c];
      for (int64_t c = 0; c < p.unit; ++c) second[c] += v * pixel[c];
    }
    T* to = static_cast<T*>(p.to) + (plane * p.packed_bins + level.first_bin + row * level.width) * p.unit;
    for (int64_t i = 0; i < level.width * p.unit; ++i) store(to + i, bins[i]);
  }
}

}  // namespace

void upsample_add(const UpsampleProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { forward<T>(p, static_cast<Acc*>(scratch), begin, end); });
}

void upsample_add_backward(const UpsampleProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() { backward<T>(p, static_cast<Acc*>(scratch), begin, end); });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
