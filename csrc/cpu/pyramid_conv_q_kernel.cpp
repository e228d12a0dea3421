// Q: the products of a pyramid's levels with the weight, forward and both gradients. Compiled once per instruction set.
//
// A task is a block of channels of one level. It reads its part of the weight once, in the strides it has: no permuted
// copy of the weight, or of its gradient, is made.
#include "pyramid_conv_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "elements.h"
#include "small_product.h"

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The part of a weight that a task reads, as numbers that can be multiplied: in place, or copied and widened.
template <typename Acc>
struct WeightPart {
  const Acc* base;
  int64_t out, channel, tap;  // strides
};

template <typename T, typename Acc>
WeightPart<Acc> read_weight(
    const ConvShape& s, const T* weight, int64_t out, int64_t outs, int64_t channel, int64_t channels, Acc* scratch) {
  const T* from = weight + out * s.weight_out + channel * s.weight_channel;
  if constexpr (__is_same(T, Acc)) {
    return {from, s.weight_out, s.weight_channel, s.weight_tap};
  } else {
    const int64_t taps = s.taps();
    for (int64_t o = 0; o < outs; ++o) {
      for (int64_t t = 0; t < taps; ++t) {
        Acc* to = scratch + (o * taps + t) * channels;
        const T* row = from + o * s.weight_out + t * s.weight_tap;
        for (int64_t c = 0; c < channels; ++c) to[c] = load(row[c * s.weight_channel]);
      }
    }
    return {scratch, taps * channels, 1, channels};
  }
}

// A panel of one level's bins; the last one may be narrow.
struct Panel {
  int64_t l, begin, width;
};

inline int64_t runs_of(const ConvShape& s, const ConvLevel& level) {
  const int64_t columns = s.panel * kConvPanels;
  return (level.pitch + columns - 1) / columns;
}

// Calls body(panel) for the panels of a run, which are one level's.
template <typename Body>
inline void for_each_panel(const ConvShape& s, int64_t run, Body body) {
  int64_t l = 0;
  while (run >= runs_of(s, s.level[l])) run -= runs_of(s, s.level[l++]);
  const int64_t pitch = s.level[l].pitch, last = smaller(pitch, (run + 1) * kConvPanels * s.panel);
  for (int64_t begin = run * kConvPanels * s.panel; begin < last; begin += s.panel) {
    body(Panel{l, begin, smaller(s.panel, pitch - begin)});
  }
}

// Products [outs · taps, panel] into [batch · positions, out_pitch]; the output channels are of one panel.
template <typename Acc>
void scatter_channels_last(const ConvShape& s, const Panel& panel, const Acc* q, int64_t out, int64_t outs, Acc* to) {
  const ConvLevel& level = s.level[panel.l];
  const int64_t taps = s.taps(), inside = out % s.panel, begin = out - inside;
  const int64_t pitch = smaller(s.panel, s.out_pitch - begin), bins = s.batch * level.area() - panel.begin;
  to += begin * s.batch * s.positions + inside;
  for (int64_t n = 0; n < smaller(bins, panel.width); ++n) {
    const int64_t bin = panel.begin + n, b = bin / level.area();
    const int64_t i = bin / level.width % level.height, j = bin % level.width;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t dy = t / s.kernel_columns, dx = t % s.kernel_columns;
      const int64_t row = (dy * level.height + i) * s.kernel_columns + dx;
      Acc* target = to + (b * s.positions + level.position + row * level.width + j) * pitch;
      const Acc* from = q + t * panel.width + n;
      for (int64_t o = 0; o < outs; ++o) target[o] = from[o * taps * panel.width];
    }
  }
}

template <typename T, typename Acc>
void q_of(
    bool channels_last, const ConvShape& s, const T* weight, const Acc* pooled, Acc* q, Acc* scratch,
    int64_t begin, int64_t end) {
  const int64_t taps = s.taps(), runs = conv_runs(s);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t out = task / runs * kConvOuts, outs = smaller(kConvOuts, s.out_channels - out);
    WeightPart<Acc> part{};
    for_each_panel(s, task % runs, [&](const Panel& panel) {
      const ConvLevel& level = s.level[panel.l];
      if (part.base == nullptr) {
        Acc* copy = scratch + kConvOuts * taps * s.panel;
        part = read_weight(s, weight, out, outs, s.weight_level + panel.l * s.level_channels, s.level_channels, copy);
      }
      Acc* result = channels_last ? scratch
                                  : q + level.q + panel.begin * s.out_channels * taps + out * taps * panel.width;
      product(
          [&](int64_t m) { return part.base + m / taps * part.out + m % taps * part.tap; }, outs * taps,
          {1, 0, s.level_channels, part.channel}, pooled + level.pooled + panel.begin * s.level_channels, panel.width,
          panel.width / kLanes<Acc>, result, panel.width);
      // Of double in a short vector a panel of Q is narrower than a task.
      for (int64_t o = 0; channels_last && o < outs; o += s.panel) {
        scatter_channels_last(s, panel, result + o * taps * panel.width, out + o, smaller(s.panel, outs - o), q);
      }
    });
  }
}

// The gradient [outs · taps, level_pitch] of one level's weight: a sum over bins, some panels of Q at a time.
template <typename Acc>
void sum_bins(const ConvShape& s, const ConvLevel& level, const Acc* q, int64_t rows, int64_t out_rows,
               const Acc* pooled, Acc* sums) {
  constexpr int64_t kPanels = 8;
  const int64_t count = s.batch * level.area(), row_count = s.out_channels * s.taps();
  for (int64_t begin = 0, n; begin < count; begin += n) {
    // Whole panels, or the rest of the last one.
    const int64_t panels = smaller(kPanels, (count - begin) / s.panel);
    const int64_t width = smaller(s.panel, level.pitch - begin);
    n = panels == 0 ? count - begin : panels * s.panel;
    const Summed summed = panels == 0 ? contiguous(n) : Summed{panels, s.panel * row_count, s.panel, 1};
    const Acc* left = q + begin * row_count + rows * width;
    for (int64_t c = 0; c < s.level_pitch; c += s.panel) {
      const int64_t channels = smaller(s.panel, s.level_pitch - c);
      product(
          [&](int64_t m) { return left + m * width; }, out_rows, summed, pooled + c * count + begin * channels, channels,
          channels / kLanes<Acc>, sums + c, s.level_pitch, begin > 0);
    }
  }
}

template <typename T, typename Acc>
void weight_gradient(
    const ConvShape& s, const Acc* q, const Acc* pooled, T* grad_weight, Acc* scratch, int64_t begin, int64_t end) {
  const int64_t taps = s.taps();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t l = task % s.levels, out = task / s.levels * kConvOuts;
    const int64_t outs = smaller(kConvOuts, s.out_channels - out);
    const ConvLevel& level = s.level[l];
    sum_bins(
        s, level, q + level.q, out * taps, outs * taps, pooled + s.batch * level.first_bin * s.level_pitch, scratch);

    T* part = grad_weight + out * s.weight_out + (s.weight_level + l * s.level_channels) * s.weight_channel;
    for (int64_t o = 0; o < outs; ++o) {
      const Acc* rows = scratch + o * taps * s.level_pitch;
      T* target = part + o * s.weight_out;
      if (s.weight_channel == 1) {
        for (int64_t t = 0; t < taps; ++t) {
          for (int64_t c = 0; c < s.level_channels; ++c) {
            store(target + t * s.weight_tap + c, rows[t * s.level_pitch + c]);
          }
        }
      } else {
        for (int64_t c = 0; c < s.level_channels; ++c) {
          for (int64_t t = 0; t < taps; ++t) {
            store(target + c * s.weight_channel + t * s.weight_tap, rows[t * s.level_pitch + c]);
          }
        }
      }
    }
  }
}

template <typename T, typename Acc>
void level_gradient(
    const ConvShape& s, bool add, const T* weight, const Acc* q, Acc* grad_bins, Acc* scratch, int64_t begin,
    int64_t end) {
  const int64_t runs = conv_runs(s);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task / runs * kConvChannels, channels = smaller(kConvChannels, s.level_channels - first);
    WeightPart<Acc> part{};
    for_each_panel(s, task % runs, [&](const Panel& panel) {
      const ConvLevel& level = s.level[panel.l];
      if (part.base == nullptr) {
        const int64_t channel = s.weight_level + panel.l * s.level_channels + first;
        part = read_weight(s, weight, 0, s.out_channels, channel, channels, scratch);
      }
      Acc* result = grad_bins + level.pooled + panel.begin * s.level_channels + first * panel.width;
      product(
          [&](int64_t m) { return part.base + m * part.channel; }, channels,
          {s.out_channels, part.out, s.taps(), part.tap}, q + level.q + panel.begin * s.out_channels * s.taps(),
          panel.width, panel.width / kLanes<Acc>, result, panel.width, add);
    });
  }
}

}  // namespace

int64_t conv_lanes(ElementType type) { return type == ElementType::f64 ? kLanes<double> : kLanes<float>; }
int64_t conv_panel(ElementType type) { return type == ElementType::f64 ? kPanel<double> : kPanel<float>; }

int64_t conv_runs(const ConvShape& s) {
  int64_t runs = 0;
  for (int64_t l = 0; l < s.levels; ++l) runs += runs_of(s, s.level[l]);
  return runs;
}

int64_t conv_q_scratch(const ConvShape& s) {
  const int64_t by_outs = kConvOuts * s.taps() * (s.panel + s.level_pitch);
  const int64_t by_channels = kConvChannels * s.out_channels * s.taps();
  return by_outs > by_channels ? by_outs : by_channels;
}

void conv_q(
    ElementType type, bool channels_last, const ConvShape& shape, const void* weight, const void* pooled, void* q,
    void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    q_of(
        channels_last, shape, static_cast<const T*>(weight), static_cast<const Acc*>(pooled),
        static_cast<Acc*>(q), static_cast<Acc*>(scratch), begin, end);
  });
}

void conv_weight_gradient(
    ElementType type, const ConvShape& shape, const void* q, const void* pooled, void* grad_weight, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    weight_gradient(
        shape, static_cast<const Acc*>(q), static_cast<const Acc*>(pooled), static_cast<T*>(grad_weight),
        static_cast<Acc*>(scratch), begin, end);
  });
}

void conv_level_gradient(
    ElementType type, const ConvShape& shape, bool add, const void* weight, const void* q, void* grad_bins,
    void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&]<typename T, typename Acc>() {
    level_gradient(
        shape, add, static_cast<const T*>(weight), static_cast<const Acc*>(q), static_cast<Acc*>(grad_bins),
        static_cast<Acc*>(scratch), begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
