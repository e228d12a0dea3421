// Q: the products of a pyramid's levels with the weight, forward and both gradients. Compiled once per instruction set.
//
// A task is a block of channels of one level. It reads its part of the weight once, in the strides it has: no permuted
// copy of the weight, or of its gradient, is made.
#include "intrinsics.h"
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

// Products [outs · taps, pitch] of one level, into [batch, positions, out_pitch].
template <typename Acc>
void scatter_channels_last(
    const ConvShape& s, const ConvLevel& level, const Acc* q, int64_t out, int64_t outs, Acc* to) {
  const int64_t k = level.k, taps = s.taps();
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t dy = t / s.kernel_columns, dx = t % s.kernel_columns;
      for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t position = level.position + ((dy * k + i) * s.kernel_columns + dx) * k + j;
          Acc* target = to + (b * s.positions + position) * s.out_pitch + out;
          const Acc* from = q + t * level.pitch + (b * k + i) * k + j;
          for (int64_t o = 0; o < outs; ++o) target[o] = from[o * taps * level.pitch];
        }
      }
    }
  }
}

template <typename T, typename Acc>
void q_of(
    bool channels_last, const ConvShape& s, const T* weight, const Acc* pooled, Acc* q, Acc* scratch,
    int64_t begin, int64_t end) {
  const int64_t taps = s.taps();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t l = task % s.levels, out = task / s.levels * kConvOuts;
    const int64_t outs = smaller(kConvOuts, s.out_channels - out);
    const ConvLevel& level = s.level[l];
    Acc* result = channels_last ? scratch : q + level.q + out * taps * level.pitch;
    Acc* copy = scratch + (channels_last ? kConvOuts * taps * level.pitch : 0);
    const int64_t channel = s.weight_level + l * s.level_channels;
    const WeightPart<Acc> part = read_weight(s, weight, out, outs, channel, s.level_channels, copy);
    product(
        [&](int64_t m) { return part.base + m / taps * part.out + m % taps * part.tap; }, outs * taps,
        {1, 0, s.level_channels, part.channel}, pooled + level.pooled, level.pitch, level.pitch / kLanes<Acc>, result,
        level.pitch);
    if (channels_last) scatter_channels_last(s, level, result, out, outs, q);
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
    const Acc* left = q + level.q + out * taps * level.pitch;
    product(
        [&](int64_t m) { return left + m * level.pitch; }, outs * taps, contiguous(s.batch * level.k * level.k),
        pooled + s.batch * level.first_bin * s.level_pitch, s.level_pitch, s.level_pitch / kLanes<Acc>, scratch,
        s.level_pitch);

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
    const ConvShape& s, const T* weight, const Acc* q, T* grad_levels, Acc* scratch, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t l = task % s.levels, first = task / s.levels * kConvChannels;
    const int64_t channels = smaller(kConvChannels, s.level_channels - first);
    const ConvLevel& level = s.level[l];
    Acc* copy = scratch + kConvChannels * level.pitch;
    const int64_t channel = s.weight_level + l * s.level_channels + first;
    const WeightPart<Acc> part = read_weight(s, weight, 0, s.out_channels, channel, channels, copy);
    product(
        [&](int64_t m) { return part.base + m * part.channel; }, channels,
        {s.out_channels, part.out, s.taps(), part.tap}, q + level.q, level.pitch,
        level.pitch / kLanes<Acc>, scratch, level.pitch);

    const int64_t bins = level.k * level.k;
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t c = 0; c < channels; ++c) {
        T* target = grad_levels + (b * s.level_channels + first + c) * s.packed_bins + level.first_bin;
        const Acc* row = scratch + c * level.pitch + b * bins;
        for (int64_t bin = 0; bin < bins; ++bin) store(target + bin, row[bin]);
      }
    }
  }
}

}  // namespace

int64_t conv_lanes(ElementType type) { return type == ElementType::f64 ? kLanes<double> : kLanes<float>; }

int64_t conv_q_scratch(const ConvShape& s) {
  int64_t pitch = 0;
  for (int64_t l = 0; l < s.levels; ++l) pitch = s.level[l].pitch > pitch ? s.level[l].pitch : pitch;
  const int64_t by_outs = kConvOuts * s.taps() * (pitch + s.level_pitch);
  const int64_t by_channels = kConvChannels * (pitch + s.out_channels * s.taps());
  return by_outs > by_channels ? by_outs : by_channels;
}

void conv_q(
    ElementType type, bool channels_last, const ConvShape& shape, const void* weight, const void* pooled, void* q,
    void* scratch, int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    using Acc = typename AccOf<T>::type;
    q_of(
        channels_last, shape, static_cast<const T*>(weight), static_cast<const Acc*>(pooled),
        static_cast<Acc*>(q), static_cast<Acc*>(scratch), begin, end);
  });
}

void conv_weight_gradient(
    ElementType type, const ConvShape& shape, const void* q, const void* pooled, void* grad_weight, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    using Acc = typename AccOf<T>::type;
    weight_gradient(
        shape, static_cast<const Acc*>(q), static_cast<const Acc*>(pooled), static_cast<T*>(grad_weight),
        static_cast<Acc*>(scratch), begin, end);
  });
}

void conv_level_gradient(
    ElementType type, const ConvShape& shape, const void* weight, const void* q, void* grad_levels, void* scratch,
    int64_t begin, int64_t end) {
  dispatch(type, [&](auto* element) {
    using T = Element<decltype(element)>;
    using Acc = typename AccOf<T>::type;
    level_gradient(
        shape, static_cast<const T*>(weight), static_cast<const Acc*>(q), static_cast<T*>(grad_levels),
        static_cast<Acc*>(scratch), begin, end);
  });
}

}  // namespace pspnet_fast::PSPNET_FAST_ISA_NAMESPACE
