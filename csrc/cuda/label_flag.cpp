#include "label_flag.h"

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

namespace pspnet_fast::cuda {
namespace {

constexpr int64_t kNone = 0;  // a class always, so never a label out of range

struct Flag {
  int64_t* on_host = nullptr;
  int64_t* on_device = nullptr;

  int64_t take() const { return std::atomic_ref<int64_t>(*on_host).exchange(kNone); }
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

// The flags of one device. They live as long as the process, since kernels and graphs may write to them until its end; a
// thread that starts takes over that of one that has ended.
struct Flags {
  std::vector<Flag> all, idle;
};
std::mutex mutex;
std::map<c10::DeviceIndex, Flags>& flags_of_devices() {
  static auto* flags = new std::map<c10::DeviceIndex, Flags>;  // threads may end after static objects
  return *flags;
}

struct OwnFlags {
  std::map<c10::DeviceIndex, Flag> of;

  ~OwnFlags() {
    const std::lock_guard lock(mutex);
    for (const auto& [device, flag] : of) flags_of_devices()[device].idle.push_back(flag);
  }
};

Flag own_flag(c10::DeviceIndex device) {
  thread_local OwnFlags own;
  const auto found = own.of.find(device);
  if (found != own.of.end()) return found->second;
  const std::lock_guard lock(mutex);
  Flags& flags = flags_of_devices()[device];
  if (flags.idle.empty()) {
    flags.all.push_back(allocate());
    flags.idle.push_back(flags.all.back());
  }
  const Flag flag = flags.idle.back();
  flags.idle.pop_back();
  return own.of[device] = flag;
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

// Waits for all that runs on the device of `like`, then raises for the labels of all threads there.
void check_labels(const at::Tensor& like) {
  const c10::cuda::OptionalCUDAGuard guard(like.device());
  C10_CUDA_CHECK(cudaDeviceSynchronize());
  int64_t label = kNone;
  {
    const std::lock_guard lock(mutex);
    for (const Flag& flag : flags_of_devices()[like.get_device()].all) {
      const int64_t taken = flag.take();
      if (taken != kNone) label = taken;
    }
  }
  TORCH_CHECK_INDEX(
      label == kNone, "Target ", label, " is out of bounds. A call on ", like.device(), " met it and left its pixel out.");
}

}  // namespace

int64_t* label_flag(c10::DeviceIndex device) { return own_flag(device).on_device; }

void raise_for_earlier_labels(c10::DeviceIndex device, cudaStream_t stream) {
  if (is_captured(stream)) return;
  const int64_t label = own_flag(device).take();
  TORCH_CHECK_INDEX(
      label == kNone, "Target ", label, " is out of bounds. An earlier call on cuda:", static_cast<int>(device),
      " met it and left its pixel out; set PSPNET_FAST_CHECK_LABELS=1 to have that call itself raise.");
}

void raise_for_own_labels(c10::DeviceIndex device, cudaStream_t stream) {
  if (!checks_at_once() || is_captured(stream)) return;
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  const int64_t label = own_flag(device).take();
  TORCH_CHECK_INDEX(label == kNone, "Target ", label, " is out of bounds.");
}

TORCH_LIBRARY_IMPL(pspnet_fast, CUDA, m) { m.impl("check_labels", check_labels); }

}  // namespace pspnet_fast::cuda
