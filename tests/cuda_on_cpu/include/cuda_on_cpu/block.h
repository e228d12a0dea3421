// The block that is running: its threads are fibers, of which one runs at a time, until it must wait for others.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "vector_types.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

struct Thread {
  enum State { ready, at_barrier, at_warp, exited };

  Fiber fiber;
  uint3 index;
  unsigned number;  // x runs fastest; 32 successive threads are a warp
  State state;

  // What it waits for.
  const char* call;
  Where where;

  // Of a warp's meeting (warp.h).
  unsigned mask;  // the lanes that take part
  uint64_t sent;  // to the lanes that read this one
  int source;     // the lane to read, or kEveryLane
  uint64_t received;

  unsigned lane() const { return number % warpSize; }
};

struct Block {
  const char* kernel = "";
  const void* function = nullptr;  // the kernel's
  size_t shared_bytes = 0;         // of dynamic shared memory
  void (*call_kernel)(void* parameters) = nullptr;
  void* parameters = nullptr;

  std::vector<std::unique_ptr<Thread>> threads;  // as many as the largest block so far
  unsigned size = 0;                             // threads of this block
  Thread* current = nullptr;
  std::string fault;

  unsigned exited = 0;
  // The barrier that is filling, and the votes of the last one that was full.
  unsigned arrived = 0;
  const Thread* first_to_arrive = nullptr;
  int votes = 0, votes_before = 0;
};

inline Block block;

inline std::string describe_block() { return std::string("kernel ") + block.kernel + ", block " + describe(blockIdx); }

inline std::string describe_wait(const Thread& thread) {
  return "waits at " + std::string(thread.call) + " (" + describe(thread.where) + ")";
}

// Ends the launch from within a kernel: the other threads stay where they are and are forgotten.
[[noreturn]] inline void fail(const std::string& what) {
  block.fault = describe_block() + ", thread " + describe(threadIdx) + ": " + what;
  block.current->fiber.suspend();
  __builtin_unreachable();
}

inline void arrive(Thread::State state, const char* call, Where where) {
  Thread& self = *block.current;
  self.state = state;
  self.call = call;
  self.where = where;
}

// ---- Barriers of the block ------------------------------------------------------------------------------------------

// Every thread must come, to the same barrier. One that has exited does not: newer GPUs leave it out of the count, but
// CUDA defines a barrier for all threads or none. Returns how many came with a vote.
inline int barrier(const char* call, int vote, Where where) {
  Thread& self = *block.current;
  arrive(Thread::at_barrier, call, where);
  const auto diverges = [&](const std::string& what) {
    fail("barrier divergence: it " + describe_wait(self) + ", but " + what);
  };
  if (block.exited > 0) diverges(std::to_string(block.exited) + " threads of the block have exited");
  if (block.arrived == 0) block.first_to_arrive = &self;
  const Thread& first = *block.first_to_arrive;
  if (first.where.line() != where.line() || std::string_view(first.call) != call) {
    diverges("thread " + describe(first.index) + " " + describe_wait(first));
  }

  block.votes += vote != 0;
  if (++block.arrived < block.size) {
    self.fiber.suspend();
    return block.votes_before;
  }
  for (unsigned i = 0; i < block.size; ++i) block.threads[i]->state = Thread::ready;
  block.arrived = 0;
  block.votes_before = block.votes;
  block.votes = 0;
  return block.votes_before;
}

inline void check_nobody_waits_for_exited_thread() {
  if (block.arrived == 0) return;
  const Thread& first = *block.first_to_arrive;
  fail("barrier divergence: it exits, but thread " + describe(first.index) + " " + describe_wait(first));
}

}  // namespace cuda_on_cpu

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  cuda_on_cpu::barrier("__syncthreads", 0, where);
}
inline int __syncthreads_count(int vote, std::source_location where = std::source_location::current()) {
  return cuda_on_cpu::barrier("__syncthreads_count", vote, where);
}
inline int __syncthreads_or(int vote, std::source_location where = std::source_location::current()) {
  return cuda_on_cpu::barrier("__syncthreads_or", vote, where) > 0;
}
inline int __syncthreads_and(int vote, std::source_location where = std::source_location::current()) {
  return cuda_on_cpu::barrier("__syncthreads_and", !vote, where) == 0;
}
