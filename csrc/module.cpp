// The Python module pspnet_fast._C. Importing it registers the operators; what it offers itself is build information.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of pspnet_fast (see torch.ops.pspnet_fast).";
  m.def(
      "cpu_capability", [] { return pspnet_fast::isa_name(pspnet_fast::active_isa()); },
      "The instruction set that the CPU kernels use on this machine: avx512, avx2 or portable.");
  m.attr("compiler") = PSPNET_FAST_COMPILER;
#ifdef PSPNET_FAST_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
}
