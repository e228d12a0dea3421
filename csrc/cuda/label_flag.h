// Labels outside of [0, C) on a GPU. A kernel cannot raise, and to wait for it would cost more than the loss: it leaves
// the pixel out and the label in a word of memory that the host can read. Each host thread has one for each device, and
// its next call there raises; check_labels() waits and looks at those of all threads.
#pragma once

#include <c10/core/Device.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace pspnet_fast::cuda {

// Where a kernel that this thread launches on `device` leaves a label.
int64_t* label_flag(c10::DeviceIndex device);

// Raises IndexError if an earlier call of this thread on the stream's device has met a label out of range; not while the
// stream is captured into a graph, which runs later.
void raise_for_earlier_labels(c10::DeviceIndex device, cudaStream_t stream);

// With PSPNET_FAST_CHECK_LABELS=1 waits for the stream and raises for this thread's labels.
void raise_for_own_labels(c10::DeviceIndex device, cudaStream_t stream);

}  // namespace pspnet_fast::cuda
