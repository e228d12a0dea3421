// One binary for every x86: kernel files (*_kernel.cpp) are compiled once per instruction set, each copy in a namespace
// of its own, and the best one that the processor runs is picked at run time.
//
// Kernel files take raw pointers and include nothing that defines inline functions outside their namespace: the linker
// keeps one copy of such a function, and that copy may be the one with instructions the processor lacks.
#pragma once

#include <cstdint>

#if defined(__FMA__) || defined(__AVX512F__)
#include <immintrin.h>  // intrinsics are always inlined
#endif

namespace pspnet_fast {

enum class Isa { portable, avx2, avx512 };

// PSPNET_FAST_ISA=portable|avx2|avx512 lowers the choice (for tests); it never raises it beyond the processor.
Isa active_isa();
const char* isa_name(Isa isa);

// What kernel files offer: does tasks [begin, end) of a problem. The memory at `scratch`, aligned to 64 bytes, is the
// thread's own.
template <typename Problem>
using Kernel = void(const Problem& problem, void* scratch, int64_t begin, int64_t end);

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pspnet_fast

#if defined(PSPNET_FAST_X86)
// The address of function NAME of the active copy.
#define PSPNET_FAST_PER_ISA(NAME)                                               \
  [] {                                                                          \
    switch (::pspnet_fast::active_isa()) {                                      \
      case ::pspnet_fast::Isa::avx512: return &::pspnet_fast::isa_avx512::NAME; \
      case ::pspnet_fast::Isa::avx2: return &::pspnet_fast::isa_avx2::NAME;     \
      default: return &::pspnet_fast::isa_portable::NAME;                       \
    }                                                                           \
  }()
#define PSPNET_FAST_DECLARE_PER_ISA(...) \
  namespace isa_portable { __VA_ARGS__; } \
  namespace isa_avx2 { __VA_ARGS__; }     \
  namespace isa_avx512 { __VA_ARGS__; }
#else
#define PSPNET_FAST_PER_ISA(NAME) (&::pspnet_fast::isa_portable::NAME)
#define PSPNET_FAST_DECLARE_PER_ISA(...) \
  namespace isa_portable { __VA_ARGS__; }
#endif
