// What the tests set in a library of operators (cuda_operators.py).
#include <cuda_runtime.h>

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_order(unsigned order) {
  cuda_on_cpu::order = order;
}

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_set_before_launch(void (*function)()) {
  cuda_on_cpu::before_launch = function;
}
