// Element types of a kernel: what it stores, what it sums in, and the choice between them at run time.
// Included by kernel files inside their namespace (see isa.h). The inner loops run over contiguous memory and are left
// to the compiler to vectorise.

#include "half.h"

template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

// The T of a T*.
template <typename P>
struct Pointee;
template <typename T>
struct Pointee<T*> {
  using type = T;
};
template <typename P>
using Element = typename Pointee<P>::type;

template <typename Acc>
inline void fill(Acc* p, int64_t n, Acc value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

template <typename Acc>
inline void add(Acc* __restrict__ to, const Acc* __restrict__ from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Calls `body` with a null pointer of the element type.
template <typename Body>
void dispatch(ElementType type, Body body) {
  switch (type) {
    case ElementType::f32: return body(static_cast<float*>(nullptr));
    case ElementType::f64: return body(static_cast<double*>(nullptr));
    case ElementType::f16: return body(static_cast<_Float16*>(nullptr));
    case ElementType::bf16: return body(static_cast<BFloat16*>(nullptr));
  }
}
