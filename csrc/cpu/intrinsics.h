// What lanes.h needs from outside its namespace: intrinsics, which are always inlined.
#pragma once

#if defined(__FMA__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
