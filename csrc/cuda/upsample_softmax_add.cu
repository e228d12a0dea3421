// Probabilities of upsampled logits added into a map. A thread owns a pixel of the map; neighbouring threads own
// neighbouring columns. It reads one upsampled pixel, or two by two, each interpolated anew from its nodes for the
// maximum, for the sum of exponentials, and for what is added.
#include "cross_entropy_math.cuh"
#include "launch.h"
#include "upsample_softmax_add.h"

namespace pspnet_fast::cuda {
namespace {

constexpr int kThreads = 128;

// A position of an axis of the upsampled map: its two nodes' offsets, the share of the second, and what it weighs.
template <typename Real>
struct Tap {
  int64_t first, second;
  Real t, weight;
};

__device__ __forceinline__ int32_t clamp_index(int32_t i, int32_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

template <typename Real>
__device__ __forceinline__ Tap<Real> tap_of(
    const UpsampledAxis& axis, int64_t stride, const AxisTable& table, int32_t position, int tap, bool flip) {
  Tap<Real> result;
  const int32_t read = table.index == nullptr ? position : clamp_index(table.index[2 * position + tap], axis.out);
  const int32_t x = flip ? axis.out - 1 - read : read, cell = axis.cell_of(x);
  // At equal sizes a pixel is read twice from its own node, as PyTorch has it (see bilinear_taps).
  result.first = axis.node(cell) * stride;
  result.second = axis.node(cell + (axis.nodes == axis.out ? 0 : 1)) * stride;
  result.t = static_cast<Real>(axis.fraction(x, cell));
  result.weight = table.index == nullptr ? Real(1) : static_cast<const Real*>(table.weight)[2 * position + tap];
  return result;
}

template <typename T, typename Real>
__device__ __forceinline__ Real logit_of(const T* image, const Tap<Real>& row, const Tap<Real>& column) {
  const Real top = mix(
      column.t, load_as<Real>(image + row.first + column.first), load_as<Real>(image + row.first + column.second));
  const Real bottom = mix(
      column.t, load_as<Real>(image + row.second + column.first), load_as<Real>(image + row.second + column.second));
  return mix(row.t, top, bottom);
}

// The logit from which exponentials are taken, and what each of them weighs.
template <typename Real>
struct Pixel {
  Real most, factor;
};

template <typename T, typename Real>
__device__ __forceinline__ Pixel<Real> pixel_of(
    const T* image, int64_t stride_c, int classes, const Tap<Real>& row, const Tap<Real>& column) {
  Pixel<Real> pixel{-INFINITY, 0};
  for (int c = 0; c < classes; ++c) {
    const Real logit = logit_of(image + c * stride_c, row, column);
    if (!(logit <= pixel.most)) pixel.most = logit;  // so that NaN stays
  }
  for (int c = 0; c < classes; ++c) {
    pixel.factor += exp_nonpositive(logit_of(image + c * stride_c, row, column) - pixel.most);
  }
  return pixel;
}

template <typename T, typename Real, int TAPS>
__global__ void __launch_bounds__(kThreads) upsample_softmax_add_kernel(const __grid_constant__ SoftmaxAddProblem p) {
  const int64_t column_blocks = (p.width + kThreads - 1) / kThreads;
  const int32_t x = static_cast<int32_t>(blockIdx.x % column_blocks) * kThreads + threadIdx.x;
  const int32_t y = static_cast<int32_t>(blockIdx.x / column_blocks % p.height);
  const int64_t image = blockIdx.x / column_blocks / p.height;
  if (x >= p.width) return;

  const T* logits = static_cast<const T*>(p.logits.data) + image * p.logits.stride_b;
  Tap<Real> row[TAPS], column[TAPS];
#pragma unroll
  for (int i = 0; i < TAPS; ++i) {
    row[i] = tap_of<Real>(p.rows, p.logits.stride_h, p.row_table, y, i, false);
    column[i] = tap_of<Real>(p.columns, p.logits.stride_w, p.column_table, x, i, p.flip);
    // Without a table both taps of an axis are the same position.
    if (i == 1 && p.row_table.index == nullptr) row[i].weight = 0;
    if (i == 1 && p.column_table.index == nullptr) column[i].weight = 0;
  }
  Pixel<Real> pixel[TAPS][TAPS];
#pragma unroll
  for (int i = 0; i < TAPS; ++i) {
#pragma unroll
    for (int j = 0; j < TAPS; ++j) {
      const Real weight = static_cast<Real>(p.weight) * row[i].weight * column[j].weight;
      pixel[i][j].factor = 0;
      if (row[i].weight == 0 || column[j].weight == 0) continue;
      pixel[i][j] = pixel_of(logits, p.logits.stride_c, p.classes, row[i], column[j]);
      pixel[i][j].factor = quotient(weight, pixel[i][j].factor);
    }
  }

  Real* total = static_cast<Real*>(p.total) + image * p.stride_b + y * p.stride_h + x * p.stride_w;
  for (int c = 0; c < p.classes; ++c, total += p.stride_c, logits += p.logits.stride_c) {
    Real sum = 0;
#pragma unroll
    for (int i = 0; i < TAPS; ++i) {
#pragma unroll
      for (int j = 0; j < TAPS; ++j) {
        if (row[i].weight == 0 || column[j].weight == 0) continue;
        sum += pixel[i][j].factor * exp_nonpositive(logit_of(logits, row[i], column[j]) - pixel[i][j].most);
      }
    }
    *total += sum;
  }
}

template <typename T, typename Real>
void launch(const SoftmaxAddProblem& p, cudaStream_t stream) {
  const int64_t blocks = int64_t{p.batch} * p.height * ((p.width + kThreads - 1) / kThreads);
  if (p.row_table.index == nullptr && p.column_table.index == nullptr) {
    PSPNET_FAST_LAUNCH(
        (upsample_softmax_add_kernel<T, Real, 1>), static_cast<unsigned>(blocks), kThreads, 0, stream, p);
  } else {
    PSPNET_FAST_LAUNCH(
        (upsample_softmax_add_kernel<T, Real, 2>), static_cast<unsigned>(blocks), kThreads, 0, stream, p);
  }
}

}  // namespace

void launch_upsample_softmax_add(const SoftmaxAddProblem& problem, cudaStream_t stream) {
  switch (problem.logits.type) {
    case ElementType::f32: return launch<float, float>(problem, stream);
    case ElementType::f64: return launch<double, double>(problem, stream);
    case ElementType::f16: return launch<__half, float>(problem, stream);
    case ElementType::bf16: return launch<__nv_bfloat16, float>(problem, stream);
  }
}

}  // namespace pspnet_fast::cuda
