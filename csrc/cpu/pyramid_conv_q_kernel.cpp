// Q: the products of a pyramid's levels with the weight, forward and both gradients. Compiled once per instruction set.
//
// A task is a block of channels of one level. It reads its part of the weight once, in the strides it has: no permuted
// copy of the weight, or of its gradient, is made.
#include "pyramid_levels_kernel.h"

namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE {
namespace {

#include "lanes.h"

#include "small_product.h"

// The part of a weight that a task reads, as numbers that can be multiplied: in place, or copied and widened.
template <typename Acc>
struct WeightPart {
  const Acc* base;
  int64_t out, channel, tap;  // strides
};

template <typename T, typename Acc>
WeightPart<Acc> read_weight(
    const ConvProblem& p, int64_t out, int64_t outs, int64_t channel, int64_t channels, Acc* scratch) {
  const T* from = static_cast<const T*>(p.weight) + out * p.weight_out + channel * p.weight_channel;
  if constexpr (__is_same(T, Acc)) {
    return {from, p.weight_out, p.weight_channel, p.weight_tap};
  } else {
    const int64_t taps = p.taps();
    for (int64_t o = 0; o < outs; ++o) {
      for (int64_t t = 0; t < taps; ++t) {
        Acc* to = scratch + (o * taps + t) * channels;
        const T* row = from + o * p.weight_out + t * p.weight_tap;
        for (int64_t c = 0; c < channels; ++c) to[c] = load(row[c * p.weight_channel]);
      }
    }
    return {scratch, taps * channels, 1, channels};
  }
}

// A panel of one level's bins; the last one may be narrow.
struct Panel {
  int64_t begin, width;
};

inline int64_t level_of(const ConvProblem& p, int64_t& run) {  // which becomes one of that level
  int64_t l = 0;
  while (run >= conv_runs(p, p.level[l])) run -= conv_runs(p, p.level[l++]);
  return l;
}

// Calls body(panel) for the panels of a run of a level.
template <typename Body>
inline void for_each_panel(const ConvProblem& p, const ConvLevel& level, int64_t run, Body body) {
  const int64_t last = smaller(level.pitch, (run + 1) * kConvPanels * p.panel);
  for (int64_t begin = run * kConvPanels * p.panel; begin < last; begin += p.panel) {
    body(Panel{begin, smaller(p.panel, level.pitch - begin)});
  }
}

// Products [outs · taps, panel] into [batch · positions, out_pitch]; the output channels are of one panel.
template <typename Acc>
void scatter_channels_last(
    const ConvProblem& p, const ConvLevel& level, const Panel& panel, const Acc* q, int64_t out, int64_t outs) {
  const int64_t taps = p.taps(), inside = out % p.panel, begin = out - inside;
  const int64_t pitch = smaller(p.panel, p.out_pitch - begin), bins = p.batch * level.area() - panel.begin;
  Acc* to = static_cast<Acc*>(p.result) + begin * p.batch * p.positions + inside;
  for (int64_t n = 0; n < smaller(bins, panel.width); ++n) {
    const int64_t bin = panel.begin + n, b = bin / level.area();
    const int64_t i = bin / level.width % level.height, j = bin % level.width;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t dy = t / p.kernel_columns, dx = t % p.kernel_columns;
      const int64_t row = (dy * level.height + i) * p.kernel_columns + dx;
      Acc* target = to + (b * p.positions + level.position + row * level.width + j) * pitch;
      const Acc* from = q + t * panel.width + n;
      for (int64_t o = 0; o < outs; ++o) target[o] = from[o * taps * panel.width];
    }
  }
}

// Scratch: products for channels_last, a copy of the weight.
template <typename T, typename Acc>
void products(const ConvProblem& p, Acc* scratch, int64_t task) {
  const int64_t taps = p.taps(), runs = conv_runs(p), out = task / runs * kConvOuts;
  const int64_t outs = smaller(kConvOuts, p.out_channels - out);
  int64_t run = task % runs;
  const int64_t l = level_of(p, run), channel = p.weight_level + l * p.level_channels;
  const ConvLevel& level = p.level[l];
  const auto part = read_weight<T>(p, out, outs, channel, p.level_channels, scratch + kConvOuts * taps * p.panel);
  const Acc* pooled = static_cast<const Acc*>(p.pooled) + level.pooled;
  Acc* q = static_cast<Acc*>(p.result) + level.q;
  for_each_panel(p, level, run, [&](const Panel& panel) {
    Acc* to = p.channels_last ? scratch : q + panel.begin * p.out_channels * taps + out * taps * panel.width;
    product(
        [&](int64_t m) { return part.base + m / taps * part.out + m % taps * part.tap; }, outs * taps,
        {1, 0, p.level_channels, part.channel}, pooled + panel.begin * p.level_channels, panel.width, panel.width, to,
        panel.width);
    // Of double in a short vector a panel of Q is narrower than a task.
    for (int64_t o = 0; p.channels_last && o < outs; o += p.panel) {
      scatter_channels_last(p, level, panel, to + o * taps * panel.width, out + o, smaller(p.panel, outs - o));
    }
  });
}

// The gradient [outs · taps, level_pitch] of one level's weight: a sum over bins, some panels of Q at a time.
template <typename T, typename Acc>
void weight_gradient(const ConvProblem& p, Acc* sums, int64_t task) {
  constexpr int64_t kPanels = 8;
  const int64_t taps = p.taps(), l = task % p.levels, out = task / p.levels * kConvOuts;
  const int64_t outs = smaller(kConvOuts, p.out_channels - out);
  const ConvLevel& level = p.level[l];
  const int64_t count = p.batch * level.area(), row_count = p.out_channels * taps;
  const Acc* pooled = static_cast<const Acc*>(p.pooled) + p.batch * level.first_bin * p.level_pitch;
  for (int64_t begin = 0, n; begin < count; begin += n) {
    // Whole panels, or the rest of the last one.
    const int64_t panels = smaller(kPanels, (count - begin) / p.panel), width = smaller(p.panel, level.pitch - begin);
    n = panels == 0 ? count - begin : panels * p.panel;
    const Summed summed = panels == 0 ? contiguous(n) : Summed{panels, p.panel * row_count, p.panel, 1};
    const Acc* left = static_cast<const Acc*>(p.q) + level.q + begin * row_count + out * taps * width;
    for (int64_t c = 0; c < p.level_pitch; c += p.panel) {
      const int64_t channels = smaller(p.panel, p.level_pitch - c);
      product(
          [&](int64_t m) { return left + m * width; }, outs * taps, summed, pooled + c * count + begin * channels,
          channels, channels, sums + c, p.level_pitch, begin > 0);
    }
  }
  T* part = static_cast<T*>(p.result) + out * p.weight_out + (p.weight_level + l * p.level_channels) * p.weight_channel;
  for (int64_t o = 0; o < outs; ++o, part += p.weight_out, sums += taps * p.level_pitch) {
    if (p.weight_channel == 1) {
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t c = 0; c < p.level_channels; ++c) store(part + t * p.weight_tap + c, sums[t * p.level_pitch + c]);
      }
    } else {
      for (int64_t c = 0; c < p.level_channels; ++c) {
        for (int64_t t = 0; t < taps; ++t) {
          store(part + c * p.weight_channel + t * p.weight_tap, sums[t * p.level_pitch + c]);
        }
      }
    }
  }
}

template <typename T, typename Acc>
void level_gradient(const ConvProblem& p, Acc* scratch, int64_t task) {
  const int64_t runs = conv_runs(p), first = task / runs * kConvChannels;
  const int64_t channels = smaller(kConvChannels, p.level_channels - first), rows = p.out_channels * p.taps();
  int64_t run = task % runs;
  const int64_t l = level_of(p, run), channel = p.weight_level + l * p.level_channels + first;
  const ConvLevel& level = p.level[l];
  const auto part = read_weight<T>(p, 0, p.out_channels, channel, channels, scratch);
  const Acc* q = static_cast<const Acc*>(p.q) + level.q;
  Acc* pooled = static_cast<Acc*>(p.result) + level.pooled;
  for_each_panel(p, level, run, [&](const Panel& panel) {
    product(
        [&](int64_t m) { return part.base + m * part.channel; }, channels,
        {p.out_channels, part.out, p.taps(), part.tap}, q + panel.begin * rows, panel.width, panel.width,
        pooled + panel.begin * p.level_channels + first * panel.width, panel.width, p.first_out > 0);
  });
}

}  // namespace

int64_t conv_lanes(ElementType type) { return type == ElementType::f64 ? kLanes<double> : kLanes<float>; }
int64_t conv_panel(ElementType type) { return conv_lanes(type) * kTileVectors; }

void conv_q(const ConvProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() {
    for (int64_t i = begin; i < end; ++i) products<T>(p, static_cast<Acc*>(scratch), i);
  });
}

void conv_weight_gradient(const ConvProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() {
    for (int64_t i = begin; i < end; ++i) weight_gradient<T>(p, static_cast<Acc*>(scratch), i);
  });
}

void conv_level_gradient(const ConvProblem& p, void* scratch, int64_t begin, int64_t end) {
  dispatch(p.type, [&]<typename T, typename Acc>() {
    for (int64_t i = begin; i < end; ++i) level_gradient<T>(p, static_cast<Acc*>(scratch), i);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
