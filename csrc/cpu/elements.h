// Element types of a kernel: what it stores, what it sums in, and the choice between them at run time.
// Included by kernel files inside their namespace (see isa.h). The inner loops run over contiguous memory and are left
// to the compiler to vectorise.

// ---- The half precisions as storage types: loaded to float, stored with rounding to nearest even --------------------

struct BFloat16 {
  uint16_t bits;
};

static inline float load(float v) { return v; }
static inline double load(double v) { return v; }
static inline float load(_Float16 v) { return static_cast<float>(v); }
static inline float load(BFloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

static inline void store(float* p, float v) { *p = v; }
static inline void store(double* p, double v) { *p = v; }
static inline void store(_Float16* p, float v) { *p = static_cast<_Float16>(v); }
static inline void store(BFloat16* p, float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  // Rounding would carry a NaN's payload into an infinity.
  p->bits = v != v ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// ---- What they are summed in ----------------------------------------------------------------------------------------

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

template <typename Acc>
inline void fill(Acc* p, int64_t n, Acc value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

template <typename Acc>
inline void add(Acc* __restrict__ to, const Acc* __restrict__ from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Calls `body`, a template of the element type and of the type that it is summed in.
template <typename Body>
void dispatch(ElementType type, Body body) {
  switch (type) {
    case ElementType::f32: return body.template operator()<float, float>();
    case ElementType::f64: return body.template operator()<double, double>();
    case ElementType::f16: return body.template operator()<_Float16, float>();
    case ElementType::bf16: return body.template operator()<BFloat16, float>();
  }
}
