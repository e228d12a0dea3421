// The half precisions as storage types: loaded to float, stored with rounding to nearest even.
// Included by kernel files inside their namespace (see isa.h), hence no include guard of the usual kind.

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
