// What the lanes of a warp do together: __syncwarp, shuffles, votes.
//
// All are one thing, a meeting: every lane of the mask that has not exited comes with a value and the lane it is to
// read; when the last one has come, each is given what it requested. The same call must come from all of them.
#pragma once

#include <cstring>

#include "block.h"

namespace cuda_on_cpu {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kEveryLane = -1;  // as a source: a mask of the lanes that sent something other than 0

// Calls visit(thread) for the threads of `mask`'s lanes that are there and have not exited.
template <typename Visit>
void for_lanes(unsigned mask, Visit visit) {
  const unsigned base = block.current->number - block.current->lane();
  for (unsigned lane = 0; lane < warpSize && base + lane < block.size; ++lane) {
    Thread& thread = *block.threads[base + lane];
    if ((mask >> lane & 1) != 0 && thread.state != Thread::exited) visit(thread);
  }
}

inline bool same_meeting(const Thread& a, const Thread& b) {
  return a.state == Thread::at_warp && b.state == Thread::at_warp && a.mask == b.mask &&
         std::string_view(a.call) == b.call;
}

// What `reader` gets from its source lane.
inline uint64_t read_lane(const Thread& reader) {
  const unsigned base = reader.number - reader.lane(), lane = static_cast<unsigned>(reader.source);
  const bool there = base + lane < block.size && block.threads[base + lane]->state != Thread::exited;
  if (!there || (reader.mask >> lane & 1) == 0) {
    fail(std::string(reader.call) + " (" + describe(reader.where) + ") of thread " + describe(reader.index) +
         " reads lane " + std::to_string(lane) + (there ? ", which is not in its mask " + describe_mask(reader.mask)
                                                        : ", which is not active: it has exited or never was"));
  }
  return block.threads[base + lane]->sent;
}

// Lets everybody go on if all who are to meet `one` have come.
inline void meet_if_complete(const Thread& one) {
  bool complete = true;
  unsigned voters = 0;
  for_lanes(one.mask, [&](const Thread& other) {
    complete = complete && same_meeting(one, other);
    voters |= static_cast<unsigned>(other.sent != 0) << other.lane();
  });
  if (!complete) return;
  for_lanes(one.mask, [&](Thread& t) { t.received = t.source == kEveryLane ? voters : read_lane(t); });
  const unsigned mask = one.mask;
  for_lanes(mask, [&](Thread& t) { t.state = Thread::ready; });
}

inline uint64_t meet(const char* call, unsigned mask, uint64_t sent, int source, Where where) {
  Thread& self = *block.current;
  arrive(Thread::at_warp, call, where);
  self.mask = mask;
  self.sent = sent;
  self.source = source;
  if ((mask >> self.lane() & 1) == 0) {
    fail(std::string(call) + " (" + describe(where) + ") with mask " + describe_mask(mask) +
         ", which leaves out the calling lane " + std::to_string(self.lane()));
  }
  for_lanes(mask, [&](const Thread& other) {
    const bool waits_for_self = other.state == Thread::at_warp && (other.mask >> self.lane() & 1) != 0;
    if (waits_for_self && !same_meeting(self, other)) {
      fail(std::string(call) + " (" + describe(where) + ") with mask " + describe_mask(mask) + ", but thread " +
           describe(other.index) + " " + describe_wait(other) + " with mask " + describe_mask(other.mask));
    }
  });
  meet_if_complete(self);
  if (self.state != Thread::ready) self.fiber.suspend();
  return self.received;
}

// An exited lane is not waited for.
inline void leave_warp() {
  for_lanes(kFullMask, [&](const Thread& other) {
    if (other.state == Thread::at_warp && (other.mask >> block.current->lane() & 1) != 0) meet_if_complete(other);
  });
}

// Sends `value`, of at most 8 bytes, and receives that of lane `source`.
template <typename T>
T shuffle(const char* call, unsigned mask, T value, unsigned source, Where where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet(call, mask, bits, static_cast<int>(source), where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The lanes are divided into groups of `width`, within which a shuffle stays.
inline unsigned first_of_group(const char* call, int width, Where where) {
  if (width != 1 && width != 2 && width != 4 && width != 8 && width != 16 && width != 32) {
    fail(std::string(call) + " (" + describe(where) + ") with width " + std::to_string(width));
  }
  return block.current->lane() & ~static_cast<unsigned>(width - 1);
}

}  // namespace cuda_on_cpu

inline void __syncwarp(
    unsigned mask = cuda_on_cpu::kFullMask, std::source_location where = std::source_location::current()) {
  cuda_on_cpu::meet("__syncwarp", mask, 0, cuda_on_cpu::kEveryLane, where);
}

inline unsigned __ballot_sync(unsigned mask, int vote, std::source_location where = std::source_location::current()) {
  return static_cast<unsigned>(cuda_on_cpu::meet("__ballot_sync", mask, vote != 0, cuda_on_cpu::kEveryLane, where));
}
inline int __any_sync(unsigned mask, int vote, std::source_location where = std::source_location::current()) {
  return cuda_on_cpu::meet("__any_sync", mask, vote != 0, cuda_on_cpu::kEveryLane, where) != 0;
}
inline int __all_sync(unsigned mask, int vote, std::source_location where = std::source_location::current()) {
  return cuda_on_cpu::meet("__all_sync", mask, vote == 0, cuda_on_cpu::kEveryLane, where) == 0;
}

// The lanes that have not exited: which of them a GPU happens to run together is not for a program to rely on.
inline unsigned __activemask() {
  unsigned mask = 0;
  cuda_on_cpu::for_lanes(cuda_on_cpu::kFullMask, [&](const cuda_on_cpu::Thread& t) { mask |= 1u << t.lane(); });
  return mask;
}

template <typename T>
T __shfl_sync(
    unsigned mask, T value, int source, int width = warpSize,
    std::source_location where = std::source_location::current()) {
  const unsigned first = cuda_on_cpu::first_of_group("__shfl_sync", width, where);
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, first + (static_cast<unsigned>(source) & (width - 1)), where);
}
template <typename T>
T __shfl_xor_sync(
    unsigned mask, T value, int lane_mask, int width = warpSize,
    std::source_location where = std::source_location::current()) {
  const unsigned lane = cuda_on_cpu::block.current->lane(), source = lane ^ static_cast<unsigned>(lane_mask);
  const unsigned first = cuda_on_cpu::first_of_group("__shfl_xor_sync", width, where);
  // A group before this one may be read, one behind it may not: then a lane gets its own value.
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source < first + width ? source : lane, where);
}
template <typename T>
T __shfl_up_sync(
    unsigned mask, T value, unsigned delta, int width = warpSize,
    std::source_location where = std::source_location::current()) {
  const unsigned lane = cuda_on_cpu::block.current->lane();
  const unsigned first = cuda_on_cpu::first_of_group("__shfl_up_sync", width, where);
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, lane >= first + delta ? lane - delta : lane, where);
}
template <typename T>
T __shfl_down_sync(
    unsigned mask, T value, unsigned delta, int width = warpSize,
    std::source_location where = std::source_location::current()) {
  const unsigned lane = cuda_on_cpu::block.current->lane();
  const unsigned first = cuda_on_cpu::first_of_group("__shfl_down_sync", width, where);
  const unsigned source = lane + delta < first + width ? lane + delta : lane;
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source, where);
}
