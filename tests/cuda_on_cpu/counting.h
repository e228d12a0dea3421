// What a request costs: a warp's lanes that access memory by one instruction at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace counting {

constexpr unsigned kLanes = 32;
constexpr uintptr_t kSector = 32;             // bytes of global memory that move together
constexpr uintptr_t kWord = 4, kBanks = 32;  // of shared memory: a wavefront takes a word from each bank

enum Kind { kGlobalLoad, kGlobalStore, kSharedLoad, kSharedStore, kPass };
inline bool is_shared(Kind kind) { return kind == kSharedLoad || kind == kSharedStore; }

struct Request {
  uint32_t lanes = 0;  // a bit for each that takes part
  uint32_t bytes = 0;  // of each: 1, 2, 4, 8 or 16
  uintptr_t address[kLanes];
};

// Sums over requests. Units are sectors or wavefronts; `fewest` would do if the same bytes lay side by side. Of passes
// through a basic block: units are lanes of the warps that pass, `fewest` those that take part.
struct Count {
  uint64_t requests = 0, lanes = 0, units = 0, fewest = 0;
};

// What lanes access, without what several access, in ascending order.
struct Addresses {
  uintptr_t of[kLanes];
  unsigned count = 0;

  Addresses(const Request& request, unsigned first, unsigned last) {
    for (unsigned lane = first; lane < last; ++lane) {
      if ((request.lanes >> lane & 1) != 0) of[count++] = request.address[lane];
    }
    std::sort(of, of + count);
    count = static_cast<unsigned>(std::unique(of, of + count) - of);
  }
};

inline uint64_t sectors(const Addresses& addresses, uintptr_t bytes) {
  uint64_t total = 0;
  uintptr_t next = 0;  // the first one that has not been counted
  for (unsigned i = 0; i < addresses.count; ++i) {
    const uintptr_t end = (addresses.of[i] + bytes - 1) / kSector + 1;
    total += end - std::min(end, std::max(next, addresses.of[i] / kSector));
    next = end;
  }
  return total;
}

// 32, 16 or 8 lanes go at once, as each has 1, 2 or 4 words. A word that was read for one is there for all.
inline uint64_t wavefronts(const Request& request) {
  const unsigned words = std::max(1u, request.bytes / static_cast<unsigned>(kWord)), at_once = kLanes / words;
  std::vector<uintptr_t> served;
  uint64_t total = 0;
  for (unsigned first = 0; first < kLanes; first += at_once) {
    const Addresses addresses(request, first, first + at_once);
    uint64_t of_bank[kBanks] = {}, most = 0;
    for (unsigned i = 0; i < addresses.count * words; ++i) {
      const uintptr_t word = addresses.of[i / words] / kWord + i % words;
      if (std::find(served.rbegin(), served.rend(), word) != served.rend()) continue;
      served.push_back(word);
      most = std::max(most, ++of_bank[word % kBanks]);
    }
    total += most;
  }
  return total;
}

inline void add(Count& count, const Request& request, bool shared) {
  const Addresses addresses(request, 0, kLanes);
  const uintptr_t accessed = uintptr_t{addresses.count} * request.bytes, unit = shared ? kBanks * kWord : kSector;
  count.requests += 1;
  count.lanes += static_cast<uint64_t>(__builtin_popcount(request.lanes));
  count.units += shared ? wavefronts(request) : sectors(addresses, request.bytes);
  count.fewest += (accessed + unit - 1) / unit;
}

inline void add_passes(Count& count, const std::vector<unsigned>& visits) {
  for (auto first = visits.begin(); first != visits.end();) {
    const auto last = first + std::min<ptrdiff_t>(kLanes, visits.end() - first);
    const uint64_t passes = *std::max_element(first, last);
    count.requests += passes;
    count.units += passes * kLanes;
    for (; first != last; ++first) count.lanes += *first, count.fewest += *first;
  }
}

}  // namespace counting
