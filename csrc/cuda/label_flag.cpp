#include "label_flag.h"

#include <c10/cuda/CUDAException.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>

namespace pspnet_fast::cuda {
namespace {

constexpr int64_t kNone = 0;  // a class always, so never a label out of range

struct Flag {
  int64_t* on_host;
  int64_t* on_device;
};

Flag allocate() {
  // Allocating is no work for the graph that may be being captured.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  Flag flag{};
  const cudaError_t error = cudaHostAlloc(&flag.on_host, sizeof(int64_t), cudaHostAllocMapped | cudaHostAllocPortable);
  C10_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  C10_CUDA_CHECK(error);
  *flag.on_host = kNone;
  C10_CUDA_CHECK(cudaHostGetDevicePointer(&flag.on_device, flag.on_host, 0));
  return flag;
}

// One for each device; they live as long as the process, since kernels may write to them until its end.
Flag flag_of(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, Flag> flags;
  const std::lock_guard lock(mutex);
  const auto found = flags.find(device);
  return found != flags.end() ? found->second : flags.emplace(device, allocate()).first->second;
}

int64_t take_label(c10::DeviceIndex device) {
  return std::atomic_ref<int64_t>(*flag_of(device).on_host).exchange(kNone);
}

bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status{};
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

bool checks_at_once() {
  const char* value = std::getenv("PSPNET_FAST_CHECK_LABELS");
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace

int64_t* label_flag(c10::DeviceIndex device) { return flag_of(device).on_device; }

void raise_for_earlier_labels(c10::DeviceIndex device, cudaStream_t stream) {
  if (is_captured(stream)) return;
  const int64_t label = take_label(device);
  TORCH_CHECK_INDEX(
      label == kNone, "Target ", label, " is out of bounds. An earlier call on cuda:", static_cast<int>(device),
      " met it and left its pixel out; set PSPNET_FAST_CHECK_LABELS=1 to have that call itself raise.");
}

void check_labels(c10::DeviceIndex device, cudaStream_t stream) {
  if (!checks_at_once() || is_captured(stream)) return;
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  const int64_t label = take_label(device);
  TORCH_CHECK_INDEX(label == kNone, "Target ", label, " is out of bounds.");
}

}  // namespace pspnet_fast::cuda
