// One pass of pyramid pooling, by atoms (see geometry.h), in channels_last: bands of rows with the channels innermost,
// then blocks of channels. Compiled once per instruction set.
#include "pyramid_pool_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "elements.h"
#include "pyramid_pool_levels.h"

template <typename T>
void atoms_forward(const PoolShape& s, const T* x, void* atoms, int64_t begin, int64_t end) {
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
void bins_forward(const PoolShape& s, const void* atoms, T* out, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  for (int64_t index = begin; index < end; ++index) {
    const Block block = block_at(s, index);
    const Acc* image =
        static_cast<const Acc*>(atoms) + block.b * s.row_intervals * s.column_intervals * s.channels + block.first;
    T* packed = out + (block.b * s.channels + block.first) * s.packed_bins;
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        for (int64_t j = 0; j < level.k; ++j) {
          Acc sum[kChannelBlock] = {};
          for (int64_t r = s.row_first[level.entry + i]; r < s.row_last[level.entry + i]; ++r) {
            for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) {
              add(sum, image + (r * s.column_intervals + c) * s.channels, block.count);
            }
          }
          const Acc pixels = Acc(row_count(s, level.entry + i) * column_count(s, level.entry + j));
          T* to = packed + level.first_bin + i * level.k + j;
          for (int64_t ch = 0; ch < block.count; ++ch) store(to + ch * s.packed_bins, sum[ch] / pixels);
        }
      }
    });
  }
}

template <typename T>
void bins_backward(const PoolShape& s, const T* grad, void* shares, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  for (int64_t index = begin; index < end; ++index) {
    const Block block = block_at(s, index);
    const T* packed = grad + (block.b * s.channels + block.first) * s.packed_bins;
    Acc* image = static_cast<Acc*>(shares) + block.b * s.packed_bins * s.channels + block.first;
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        for (int64_t j = 0; j < level.k; ++j) {
          const int64_t bin = level.first_bin + i * level.k + j;
          const Acc pixels = Acc(row_count(s, level.entry + i) * column_count(s, level.entry + j));
          for (int64_t ch = 0; ch < block.count; ++ch) {
            image[bin * s.channels + ch] = load(packed[ch * s.packed_bins + bin]) / pixels;
          }
        }
      }
    });
  }
}

template <bool kAdd, typename T>
void atoms_backward(
    const PoolShape& s, const void* shares, T* grad_x, void* scratch, int64_t begin, int64_t end) {
  using Acc = typename AccOf<T>::type;
  Acc* atoms = static_cast<Acc*>(scratch);  // [column_intervals, C] of this band
  for (int64_t band = begin; band < end; ++band) {
    const int64_t b = band / s.row_intervals, r = band % s.row_intervals;
    const Acc* image = static_cast<const Acc*>(shares) + b * s.packed_bins * s.channels;
    fill(atoms, s.column_intervals * s.channels, Acc(0));
    for_each_level(s, [&](const Level& level) {
      for (int64_t i = 0; i < level.k; ++i) {
        if (r < s.row_first[level.entry + i] || r >= s.row_last[level.entry + i]) continue;
        for (int64_t j = 0; j < level.k; ++j) {
          const Acc* share = image + (level.first_bin + i * level.k + j) * s.channels;
          for (int64_t c = s.column_first[level.entry + j]; c < s.column_last[level.entry + j]; ++c) {
            add(atoms + c * s.channels, share, s.channels);
          }
        }
      }
    });

    for (int64_t h = s.row_edge[r]; h < s.row_edge[r + 1]; ++h) {
      T* pixel = grad_x + (b * s.height + h) * s.width * s.channels;
      for (int64_t c = 0; c < s.column_intervals; ++c) {
        for (int64_t w = s.column_edge[c]; w < s.column_edge[c + 1]; ++w, pixel += s.channels) {
          write<kAdd>(pixel, atoms + c * s.channels, s.channels);
        }
      }
    }
  }
}

}  // namespace

void pool_nhwc_atoms_forward(
    ElementType type, const PoolShape& shape, const void* x, void* atoms, int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    atoms_forward(shape, static_cast<const T*>(x), atoms, begin, end);
  });
}

void pool_nhwc_bins_forward(
    ElementType type, const PoolShape& shape, const void* atoms, void* out, int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    bins_forward(shape, atoms, static_cast<T*>(out), begin, end);
  });
}

void pool_nhwc_bins_backward(
    ElementType type, const PoolShape& shape, const void* grad, void* shares, int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    bins_backward(shape, static_cast<const T*>(grad), shares, begin, end);
  });
}

void pool_nhwc_atoms_backward(
    ElementType type, bool add, const PoolShape& shape, const void* shares, void* grad_x, void* scratch, int64_t begin,
    int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    T* to = static_cast<T*>(grad_x);
    add ? atoms_backward<true>(shape, shares, to, scratch, begin, end)
        : atoms_backward<false>(shape, shares, to, scratch, begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
