// Vectors of a storage type, widened to the type that sums are taken in.
// Included by kernel files inside their namespace (see isa.h), behind lanes.h and half.h.

static inline __attribute__((always_inline)) Lanes<float> widen(const float* p) { return get(p); }
static inline __attribute__((always_inline)) Lanes<double> widen(const double* p) { return get(p); }
static inline __attribute__((always_inline)) Lanes<float> widen(const _Float16* p) {
  Lanes<float> v;
  for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = load(p[i]);
  return v;
}
static inline __attribute__((always_inline)) Lanes<float> widen(const BFloat16* p) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  return reinterpret_cast<Lanes<float>>(__builtin_convertvector(*reinterpret_cast<const Bits*>(p), Wide) << 16);
}
