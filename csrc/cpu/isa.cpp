#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace pspnet_fast {
namespace {

Isa best_of_processor() {
#if defined(PSPNET_FAST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

Isa choose() {
  const Isa best = best_of_processor();
  const char* wanted = std::getenv("PSPNET_FAST_ISA");
  if (wanted == nullptr) return best;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(wanted, isa_name(isa)) == 0) return std::min(isa, best);
  }
  return best;
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

}  // namespace pspnet_fast
