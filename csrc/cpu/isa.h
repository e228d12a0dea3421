// One binary for every x86: kernel files (*_kernel.cpp) are compiled once per instruction set, each copy in a namespace
// of its own, and the best one that the processor runs is picked at run time.
//
// Kernel files take raw pointers and include nothing that defines inline functions outside their namespace: the linker
// keeps one copy of such a function, and that copy may be the one with instructions the processor lacks.
#pragma once

#if defined(__FMA__) || defined(__AVX512F__)
#include <immintrin.h>  // intrinsics are always inlined
#endif

namespace pspnet_fast {

enum class Isa { portable, avx2, avx512 };

// PSPNET_FAST_ISA=portable|avx2|avx512 lowers the choice (for tests); it never raises it beyond the processor.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace pspnet_fast

#if defined(PSPNET_FAST_X86)
// Calls NAME of the active copy.
#define PSPNET_FAST_PER_ISA(NAME, ...)                                                    \
  [&] {                                                                                   \
    switch (::pspnet_fast::active_isa()) {                                                \
      case ::pspnet_fast::Isa::avx512: return ::pspnet_fast::isa_avx512::NAME(__VA_ARGS__); \
      case ::pspnet_fast::Isa::avx2: return ::pspnet_fast::isa_avx2::NAME(__VA_ARGS__);     \
      default: return ::pspnet_fast::isa_portable::NAME(__VA_ARGS__);                       \
    }                                                                                     \
  }()
#define PSPNET_FAST_DECLARE_PER_ISA(DECLARATION) \
  namespace isa_portable { DECLARATION; }        \
  namespace isa_avx2 { DECLARATION; }            \
  namespace isa_avx512 { DECLARATION; }
#else
#define PSPNET_FAST_PER_ISA(NAME, ...) ::pspnet_fast::isa_portable::NAME(__VA_ARGS__)
#define PSPNET_FAST_DECLARE_PER_ISA(DECLARATION) \
  namespace isa_portable { DECLARATION; }
#endif
