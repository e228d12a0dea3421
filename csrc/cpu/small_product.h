// Products of small matrices, summed in registers; the rows of the left factor may lie in any strides.
// Included by kernel files inside their namespace (see isa.h), behind lanes.h.

// What is summed over: entry (o, i) of a row of the left factor lies at o · outer_stride + i · inner_stride.
struct Summed {
  int64_t outer, outer_stride, inner, inner_stride;
};
static inline Summed contiguous(int64_t count) { return {1, 0, count, 1}; }

// A tile of kTileRows by kTileVectors vectors fits the registers, with a row of the right factor and an entry of the
// left.
constexpr int64_t kTileRows = 6;
constexpr int64_t kTileVectors = kVectorBytes == 64 ? 4 : 2;
template <typename Acc>
constexpr int64_t kPanel = kTileVectors * kLanes<Acc>;

template <int kVectors, typename Acc>
static void product_tile(
    const Acc* const* rows, const Summed& summed, const Acc* right, int64_t right_stride, Acc* out, int64_t out_stride,
    int64_t valid_rows, bool add) {
  constexpr int64_t n = kLanes<Acc>;
  Lanes<Acc> sum[kTileRows][kVectors] = {};
  for (int64_t o = 0; o < summed.outer; ++o) {
    int64_t at = o * summed.outer_stride;
    for (int64_t i = 0; i < summed.inner; ++i, at += summed.inner_stride, right += right_stride) {
      Lanes<Acc> factor[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) factor[v] = get(right + v * n);
      for (int64_t m = 0; m < kTileRows; ++m) {
        const Lanes<Acc> entry = all(rows[m][at]);
        for (int64_t v = 0; v < kVectors; ++v) sum[m][v] += entry * factor[v];
      }
    }
  }
  for (int64_t m = 0; m < kTileRows; ++m) {
    if (m >= valid_rows) break;
    for (int64_t v = 0; v < kVectors; ++v) {
      Acc* to = out + m * out_stride + v * n;
      put(to, add ? get(to) + sum[m][v] : sum[m][v]);
    }
  }
}

// out [row_count, columns] = left [row_count, summed] · right [summed, columns], or with `add` that and what is there;
// left(m) is row m, columns are whole vectors.
template <typename Acc, typename Left>
static void product(
    Left left, int64_t row_count, const Summed& summed, const Acc* right, int64_t right_stride, int64_t columns,
    Acc* out, int64_t out_stride, bool add = false) {
  for (int64_t m = 0; m < row_count; m += kTileRows) {
    const int64_t valid = smaller(kTileRows, row_count - m);
    const Acc* rows[kTileRows];
    for (int64_t i = 0; i < kTileRows; ++i) rows[i] = left(m + (i < valid ? i : 0));
    for (int64_t c = 0; c < columns; c += kPanel<Acc>) {
      with_count<kTileVectors>((columns - c) / kLanes<Acc>, [&]<int kVectors>() {
        product_tile<kVectors>(rows, summed, right + c, right_stride, out + m * out_stride + c, out_stride, valid, add);
      });
    }
  }
}
