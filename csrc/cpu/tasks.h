// Kernels on torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

#include "isa.h"

namespace pspnet_fast {

// Runs a kernel over `count` tasks, each thread with so many bytes of scratch; a thread takes the next `chunk` tasks
// when it is free. Tasks are cut by shape alone and done by one thread in one order each: results do not depend on
// threads.
template <typename Problem>
void run_tasks(Kernel<Problem>* kernel, const Problem& problem, int64_t count, int64_t scratch, int64_t chunk = 1) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(ceil_div(count, chunk), at::get_num_threads()), 1, [&](int64_t, int64_t) {
    const at::DataPtr own = c10::GetCPUAllocator()->allocate(scratch);
    for (int64_t i = next.fetch_add(chunk); i < count; i = next.fetch_add(chunk)) {
      kernel(problem, own.get(), i, std::min(count, i + chunk));
    }
  });
}

}  // namespace pspnet_fast
