// Numbers as kernels hold them: the element types, what they are summed in, and one native register of numbers.
// Included by kernel files inside their namespace (see isa.h); PSPNET_FAST_VECTOR_BYTES comes with the instruction set.

// ---- Elements: the half precisions are loaded to float, and stored with rounding to nearest even -------------------

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

template <typename Acc>
inline void fill(Acc* p, int64_t n, Acc value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

template <typename T, typename Acc>
inline void add(Acc* __restrict__ to, const T* __restrict__ from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += load(from[i]);
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

// Calls body<n>() for n = count, from LEAST to MOST; a larger count is MOST.
template <int MOST, int LEAST = 1, typename Body>
static inline __attribute__((always_inline)) void with_count(int64_t count, const Body& body) {
  if constexpr (LEAST < MOST) {
    if (count > LEAST) return with_count<MOST, LEAST + 1>(count, body);
  }
  body.template operator()<LEAST>();
}

// Calls body<n>(first) for equal shares [first, first + n) of `size`, n from LEAST to MOST: 12 are 6 + 6, not 9 + 3.
template <int MOST, int LEAST = 1, typename Body>
static inline __attribute__((always_inline)) void for_equal_parts(int64_t size, const Body& body) {
  const int64_t parts = ceil_div(size, MOST);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = size * part / parts, count = size * (part + 1) / parts - first;
    with_count<MOST, LEAST>(count, [&]<int COUNT>() __attribute__((always_inline)) {
      body.template operator()<COUNT>(first);
    });
  }
}

// ---- Registers, by the compiler's vector extension (wider vectors are lowered to scalars in places) ----------------

constexpr int kVectorBytes = PSPNET_FAST_VECTOR_BYTES;

template <typename Real>
struct LanesOf {
  typedef Real type __attribute__((vector_size(kVectorBytes)));
  typedef Real unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(Real)), may_alias));
};
template <typename Real>
using Lanes = typename LanesOf<Real>::type;
template <typename Real>
using IntLanes = decltype(Lanes<Real>{} < Lanes<Real>{});  // as wide as Real: what comparisons give
template <typename Real>
constexpr int64_t kLanes = kVectorBytes / sizeof(Real);

template <typename Real>
static inline __attribute__((always_inline)) Lanes<Real> get(const Real* p) {
  return *reinterpret_cast<const typename LanesOf<Real>::unaligned*>(p);
}
template <typename Real>
static inline __attribute__((always_inline)) void put(Real* p, Lanes<Real> v) {
  *reinterpret_cast<typename LanesOf<Real>::unaligned*>(p) = v;
}
template <typename Real>
static inline __attribute__((always_inline)) Lanes<Real> all(Real v) {
  return v - Lanes<Real>{};
}

// Rows become columns: element j of vector i goes to element i of vector j.
template <typename Real>
static inline __attribute__((always_inline)) void transpose(Lanes<Real>* v) {
  constexpr int n = kLanes<Real>;
  IntLanes<Real> low, high;
  for (int i = 0; i < n; ++i) low[i] = i / 2 + i % 2 * n, high[i] = low[i] + n / 2;
  // A step zips the upper half of the vectors with the lower one, which rotates the bits of (i, j) by one.
  for (int step = 1; step < n; step *= 2) {
    Lanes<Real> zipped[n];
    for (int i = 0; i < n / 2; ++i) {
      zipped[2 * i] = __builtin_shuffle(v[i], v[i + n / 2], low);
      zipped[2 * i + 1] = __builtin_shuffle(v[i], v[i + n / 2], high);
    }
    for (int i = 0; i < n; ++i) v[i] = zipped[i];
  }
}

// 2^(scale · z) for products in [-126, 127] is (1 + fraction) · 2^integer: no clamps, NaN is lost. The product is not
// rounded where multiply-adds are fused.
struct Exp2 {
  Lanes<float> fraction;
  IntLanes<float> integer;  // as a shift of the exponent's bits

  __attribute__((always_inline)) Exp2(Lanes<float> z, float scale) {
    const Lanes<float> magic = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
    const Lanes<float> shifted = z * scale + magic;
    const Lanes<float> f = z * scale - (shifted - magic);  // in [-1/2, 1/2]
    Lanes<float> p = f * 0.00015345807f + 0.0013399931f;
    p = p * f + 0.0096184889f;
    p = p * f + 0.055503288f;
    p = p * f + 0.24022647f;
    p = p * f + 0.69314721f;
    fraction = p * f, integer = reinterpret_cast<IntLanes<float>>(shifted) << 23;
  }
};
static inline __attribute__((always_inline)) Lanes<float> exp2_bounded(Lanes<float> z, float scale) {
  const Exp2 e(z, scale);
  return reinterpret_cast<Lanes<float>>(reinterpret_cast<IntLanes<float>>(e.fraction + 1.0f) + e.integer);
}
// 2^(scale · z) - 1, which keeps its digits where z is near zero.
static inline __attribute__((always_inline)) Lanes<float> exp2_minus_1(Lanes<float> z, float scale) {
  const Exp2 e(z, scale);
  const Lanes<float> power = reinterpret_cast<Lanes<float>>(e.integer + 0x3f800000);
  return e.fraction * power + (power - 1.0f);
}

// exp(z) for z <= 0; exp(-87) below that, which no sum of exponentials with a term 1 can see. NaN stays NaN.
static inline __attribute__((always_inline)) Lanes<float> exp_nonpositive(Lanes<float> z) {
  const Lanes<float> clamped = z < -87.0f ? all(-87.0f) : z;
  const Lanes<float> result = exp2_bounded(clamped, 1.44269504f);
  return z == z ? result : z;
}
static inline __attribute__((always_inline)) Lanes<double> exp_nonpositive(Lanes<double> z) {
  for (int i = 0; i < kLanes<double>; ++i) z[i] = __builtin_exp(z[i]);
  return z;
}

// Natural logarithm of positive normal numbers; NaN stays NaN.
static inline __attribute__((always_inline)) Lanes<float> log_positive(Lanes<float> v) {
  const IntLanes<float> bits = reinterpret_cast<IntLanes<float>>(v);
  // The mantissa in [sqrt(1/2), sqrt(2)), so that its logarithm is small on both sides of 1.
  const IntLanes<float> shifted = bits - 0x3f3504f3;
  const Lanes<float> exponent = __builtin_convertvector(shifted >> 23, Lanes<float>);
  const Lanes<float> x =
      reinterpret_cast<Lanes<float>>((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
  // log(1 + x) = x - x²/2 + x³ · P(x), the classic single-precision fit
  Lanes<float> p = x * 7.0376836e-2f - 1.1514610e-1f;
  p = p * x + 1.1676999e-1f;
  p = p * x - 1.2420141e-1f;
  p = p * x + 1.4249323e-1f;
  p = p * x - 1.6668058e-1f;
  p = p * x + 2.0000715e-1f;
  p = p * x - 2.4999994e-1f;
  p = p * x + 3.3333331e-1f;
  const Lanes<float> square = x * x;
  const Lanes<float> result = exponent * 0.69314718f + (x + (square * x * p - 0.5f * square));
  return v == v ? result : v;
}
static inline __attribute__((always_inline)) Lanes<double> log_positive(Lanes<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_log(v[i]);
  return v;
}

// 1 / v, for normal numbers.
static inline __attribute__((always_inline)) Lanes<float> reciprocal(Lanes<float> v) {
#if defined(__AVX512F__)
  // An estimate of 14 bits and a Newton step cost a third of a division.
  const Lanes<float> r = reinterpret_cast<Lanes<float>>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(v)));
  return r + r * (1.0f - v * r);
#else
  return 1.0f / v;
#endif
}

// The sum of log2 of many positive numbers: mantissas multiplied, exponents added, one logarithm at the end.
struct Log2Sum {
  Lanes<float> mantissa = all(1.0f), exponent{};

  // Mantissas lie below 2: normalize() is due after at most 120 of them.
  __attribute__((always_inline)) void multiply(Lanes<float> v) { mantissa *= take_exponent(v); }
  __attribute__((always_inline)) void normalize() { mantissa = take_exponent(mantissa); }
  double total() const {
    double product = 1, sum = 0;
    for (int i = 0; i < kLanes<float>; ++i) product *= mantissa[i], sum += exponent[i];
    return sum + __builtin_log2(product);
  }

 private:
  __attribute__((always_inline)) Lanes<float> take_exponent(Lanes<float> v) {
#if defined(__AVX512F__)
    const __m512 number = reinterpret_cast<__m512>(v);
    exponent += reinterpret_cast<Lanes<float>>(_mm512_maskz_getexp_ps(0xffff, number));
    return reinterpret_cast<Lanes<float>>(
        _mm512_maskz_getmant_ps(0xffff, number, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero));
#else
    const IntLanes<float> bits = reinterpret_cast<IntLanes<float>>(v);
    exponent += __builtin_convertvector((bits >> 23) - 127, Lanes<float>);
    return reinterpret_cast<Lanes<float>>((bits & 0x007fffff) | 0x3f800000);
#endif
  }
};
