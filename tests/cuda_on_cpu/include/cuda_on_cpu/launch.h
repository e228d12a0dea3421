// Launches: the limits of the hardware, and the order in which blocks and threads run.
//
// A kernel that is short of a barrier reads what another thread has not written yet, or has overwritten already, in one
// order or another: then its results differ between orders. The same goes for blocks that rely on each other.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"
#include "shared_memory.h"
#include "warp.h"

#define PSPNET_FAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                         \
  ::cuda_on_cpu::launch(                                                                                           \
      #kernel, std::source_location::current(), kernel, grid, block, static_cast<size_t>(shared_bytes), stream     \
      __VA_OPT__(, ) __VA_ARGS__)

namespace cuda_on_cpu {

// 0: blocks and threads ascending, 1: descending, any other: shuffled with that seed, the threads anew at every turn.
inline unsigned order = 0;
inline std::mutex one_launch_at_a_time;
// Called, where it is set, as a launch begins: another host thread may act between what a launcher did before and it.
inline void (*before_launch)() = nullptr;
// Called, where it is set, as a block has ended.
inline void (*after_block)() = nullptr;

class Turns {
 public:
  explicit Turns(size_t count) : numbers_(count), random_(order) {
    std::iota(numbers_.begin(), numbers_.end(), 0u);
    if (order == 1) std::reverse(numbers_.begin(), numbers_.end());
  }
  const std::vector<unsigned>& next() {
    if (order > 1) std::shuffle(numbers_.begin(), numbers_.end(), random_);
    return numbers_;
  }

 private:
  std::vector<unsigned> numbers_;
  std::mt19937 random_;
};

// ---- A thread -------------------------------------------------------------------------------------------------------

// What a fiber does: the kernel, once a block.
[[noreturn]] inline void run_threads() {
  for (;;) {
    block.call_kernel(block.parameters);
    Thread& self = *block.current;
    self.state = Thread::exited;
    ++block.exited;
    check_nobody_waits_for_exited_thread();
    leave_warp();
    self.fiber.suspend();
  }
}

// ---- A block --------------------------------------------------------------------------------------------------------

// No thread can continue. Says which ones wait where.
inline std::string describe_deadlock() {
  std::map<std::string, std::pair<unsigned, uint3>> waits;  // what for -> how many threads, the first of them
  for (unsigned i = 0; i < block.size; ++i) {
    const Thread& t = *block.threads[i];
    if (t.state == Thread::exited) continue;
    const std::string mask = t.state == Thread::at_warp ? " with mask " + describe_mask(t.mask) : "";
    ++waits.try_emplace(t.call + mask + " (" + describe(t.where) + ")", 0u, t.index).first->second.first;
  }
  std::string text = describe_block() + ": divergence, no thread can continue:";
  for (const auto& [what, who] : waits) {
    text += " " + std::to_string(who.first) + " threads from " + describe(who.second) + " wait at " + what + ";";
  }
  return text + " " + std::to_string(block.exited) + " have exited";
}

// After a fault the fibers are somewhere inside the kernel.
inline void abandon_threads() {
  for (auto& thread : block.threads) thread->fiber.start(run_threads);
  throw Fault(std::exchange(block.fault, {}));
}

inline void run_block(Turns& turns, size_t shared_bytes) {
  poison_shared_memory(shared_bytes, order % 2 == 0 ? kPoisonNaN : kPoisonLarge);
  block.exited = block.arrived = 0;
  block.votes = 0;
  for (unsigned i = 0; i < block.size; ++i) block.threads[i]->state = Thread::ready;

  while (block.exited < block.size) {
    bool progress = false;
    for (unsigned number : turns.next()) {
      Thread& thread = *block.threads[number];
      if (thread.state != Thread::ready) continue;
      progress = true;
      block.current = &thread;
      threadIdx = thread.index;
      thread.fiber.resume();
      if (!block.fault.empty()) abandon_threads();
    }
    if (!progress) block.fault = describe_deadlock();
    if (!block.fault.empty()) abandon_threads();
  }
}

inline void set_block_size(dim3 size) {
  blockDim = size;
  block.size = size.x * size.y * size.z;
  while (block.threads.size() < block.size) {
    block.threads.push_back(std::make_unique<Thread>());
    block.threads.back()->fiber.start(run_threads);
  }
  for (unsigned i = 0; i < block.size; ++i) {
    block.threads[i]->number = i;
    block.threads[i]->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
  }
}

// ---- A grid ---------------------------------------------------------------------------------------------------------

inline void check_limits(
    const std::string& name, Where where, const void* kernel, dim3 grid, dim3 size, size_t shared_bytes) {
  const auto reject = [&](const std::string& why) {
    throw Fault("launch of " + name + " (" + describe(where) + "): " + why);
  };
  constexpr uint64_t one = 1;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) {
    reject("grid " + describe(grid) + " is empty or larger than (2147483647, 65535, 65535)");
  }
  const uint64_t threads = one * size.x * size.y * size.z;
  if (threads < 1 || threads > kMaxThreads || size.x > kMaxThreads || size.y > kMaxThreads || size.z > kMaxBlockZ) {
    reject("block " + describe(size) + " is empty, has more than 1024 threads, or is deeper than 64");
  }
  const size_t limit = dynamic_shared_limit(kernel);
  if (shared_bytes > limit) {
    reject(std::to_string(shared_bytes) + " bytes of dynamic shared memory, but " + std::to_string(limit) +
           " are allowed; more, up to 232448, needs cudaFuncSetAttribute");
  }
}

template <typename... P, typename... A>
void launch(
    const char* name, Where where, void (*kernel)(P...), dim3 grid, dim3 size, size_t shared_bytes, cudaStream_t,
    A&&... arguments) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "kernel parameters are copied bit by bit");
  if (before_launch != nullptr) before_launch();
  const std::lock_guard lock(one_launch_at_a_time);
  block.function = reinterpret_cast<const void*>(kernel);
  check_limits(name, where, block.function, grid, size, shared_bytes);

  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> parameters;
  } call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
  block.kernel = name;
  block.shared_bytes = shared_bytes;
  block.parameters = &call;
  block.call_kernel = [](void* p) { std::apply(static_cast<Call*>(p)->kernel, static_cast<Call*>(p)->parameters); };
  set_block_size(size);
  gridDim = grid;

  Turns blocks(size_t{1} * grid.x * grid.y * grid.z), threads(block.size);
  for (const unsigned b : blocks.next()) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    run_block(threads, shared_bytes);
    if (after_block != nullptr) after_block();
  }
}

}  // namespace cuda_on_cpu
