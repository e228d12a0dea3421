// Counts what the memory system and the schedulers of a GPU would see of kernels (counters.py). Those of the variant
// `counted` call the hooks of the thread sanitizer and of coverage, which are defined here instead.
//
// Lanes make a request together when they come to an instruction for the n-th time in their block: the number stands for
// what keeps the lanes of a GPU together.
#include "counting.h"

#include <c10/core/CPUAllocator.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <map>
#include <unordered_map>

using namespace counting;
using cuda_on_cpu::block;

namespace {

// Global memory: all tensors, which begin at the same place of a page in every run. No address is used twice.
struct Arena final : c10::Allocator {
  static constexpr size_t kBytes = size_t{1} << 36, kPage = 4096;

  char* const begin = static_cast<char*>(
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  size_t used = 0;

  c10::DataPtr allocate(size_t bytes) override {
    char* data = begin + used;
    used += (bytes / kPage + 1) * kPage;
    TORCH_CHECK(begin != MAP_FAILED && used <= kBytes, "no room for a tensor of ", bytes, " bytes");
    return {data, data, keep, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return keep; }
  static void keep(void*) {}
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  size_t offset(const void* address) const { return static_cast<size_t>(static_cast<const char*>(address) - begin); }
} arena;

// A load or store, in the block that is running.
struct Access {
  bool shared, write;
  std::vector<unsigned> visits;                 // by thread
  std::vector<std::vector<Request>> requests;  // by warp and visit
};
struct Total {
  bool shared, write;
  Count count;
};
// How often warps come to a basic block, and lanes.
struct Passes {
  uint64_t warps = 0, lanes = 0;
};
using Place = std::pair<uintptr_t, uintptr_t>;  // kernel, instruction

// By instruction. What was found last is found at once.
template <typename T>
struct ByInstruction {
  std::unordered_map<uintptr_t, T> all;
  std::pair<uintptr_t, T*> found[1024] = {};

  T& operator[](uintptr_t instruction) {
    auto& [known, entry] = found[instruction % std::size(found)];
    if (known != instruction) known = instruction, entry = &all[instruction];
    return *entry;
  }
  void clear() {
    all.clear();
    std::fill(std::begin(found), std::end(found), std::pair<uintptr_t, T*>{});
  }
};

bool counting_now = false;
// While a hook runs: the linker may have taken a function of the standard library from a kernel's file, hooks and all.
struct Pause {
  Pause() { counting_now = false; }
  ~Pause() { counting_now = true; }
};
const void* kernel_of_entries = nullptr;
ByInstruction<Access> accesses;
ByInstruction<std::vector<unsigned>> visits_of_block;  // by thread, to a basic block
std::map<Place, Total> totals;
std::map<Place, Passes> passes;
std::map<uintptr_t, std::pair<unsigned, size_t>> launches;  // threads of a block and dynamic shared memory, by kernel
// Whether each byte of the arena was read, and written; whether the block that is running has had each sector.
struct Touched {
  std::vector<bool> bytes, by_block;
  std::vector<size_t> sectors;  // of the block
} touched[2];
uint64_t moved_sectors = 0;  // a sector once a block, as its multiprocessor's cache has it then

void forget_other_kernels() {
  if (block.function == kernel_of_entries) return;
  kernel_of_entries = block.function;
  accesses.clear();
  visits_of_block.clear();
}

// The number of the thread that runs, or -1 where a launch is being made.
int running_thread() {
  if (!counting_now || block.current == nullptr) return -1;
  return block.current->fiber.holds(__builtin_frame_address(0)) ? static_cast<int>(block.current->number) : -1;
}

void touch(Touched& into, size_t offset, unsigned bytes) {
  std::fill_n(into.bytes.begin() + static_cast<ptrdiff_t>(offset), bytes, true);
  for (size_t sector = offset / kSector; sector <= (offset + bytes - 1) / kSector; ++sector) {
    if (into.by_block[sector]) continue;
    into.by_block[sector] = true;
    into.sectors.push_back(sector);
  }
}

void access(const void* address, unsigned bytes, bool write, uintptr_t instruction) {
  const bool shared = cuda_on_cpu::is_shared(address);
  const size_t offset = arena.offset(address);
  const int thread = shared || offset < arena.used ? running_thread() : -1;
  if (thread < 0) return;
  const Pause pause;

  if (!shared) touch(touched[write], offset, bytes);
  forget_other_kernels();
  Access& own = accesses[instruction];
  if (own.visits.empty()) own = {shared, write, {}, {}};
  own.visits.resize(block.size);
  own.requests.resize(block.size / kLanes + 1);
  std::vector<Request>& requests = own.requests[static_cast<unsigned>(thread) / kLanes];
  const unsigned visit = own.visits[static_cast<unsigned>(thread)]++, lane = static_cast<unsigned>(thread) % kLanes;
  if (requests.size() <= visit) requests.resize(visit + 1);
  requests[visit].bytes = bytes;
  requests[visit].lanes |= 1u << lane;
  requests[visit].address[lane] = reinterpret_cast<uintptr_t>(address);
}

// A structure moves in pieces as wide as its alignment allows, each an access of its own.
void access_range(const void* address, size_t bytes, bool write, uintptr_t instruction) {
  const char* at = static_cast<const char*>(address);
  for (size_t piece; bytes > 0; at += piece, bytes -= piece) {
    for (piece = 16; piece > bytes || reinterpret_cast<uintptr_t>(at) % piece != 0; piece /= 2) {
    }
    access(at, static_cast<unsigned>(piece), write, instruction);
  }
}

void end_block() {
  const auto kernel = reinterpret_cast<uintptr_t>(block.function);
  launches[kernel] = {block.size, block.shared_bytes};
  for (auto& [instruction, one] : accesses.all) {
    Total& total = totals.try_emplace({kernel, instruction}, one.shared, one.write).first->second;
    for (auto& of_warp : one.requests) {
      for (const Request& request : of_warp) add(total.count, request, one.shared);
      of_warp.clear();
    }
    std::fill(one.visits.begin(), one.visits.end(), 0u);
  }
  for (auto& [instruction, visits] : visits_of_block.all) {
    Passes& total = passes[{kernel, instruction}];
    for (size_t first = 0; first < visits.size(); first += kLanes) {
      unsigned most = 0;
      for (size_t i = first; i < std::min<size_t>(first + kLanes, visits.size()); ++i) {
        most = std::max(most, visits[i]);
        total.lanes += std::exchange(visits[i], 0u);
      }
      total.warps += most;
    }
  }
  for (Touched& t : touched) {
    moved_sectors += t.sectors.size();
    for (const size_t sector : t.sectors) t.by_block[sector] = false;
    t.sectors.clear();
  }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER (reinterpret_cast<uintptr_t>(__builtin_return_address(0)) - 1)
#define HOOKS(bytes)                                                                                      \
  extern "C" void __tsan_read##bytes(void* at) { access(at, bytes, false, CALLER); }                      \
  extern "C" void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, false, CALLER); }            \
  extern "C" void __tsan_volatile_read##bytes(void* at) { access(at, bytes, false, CALLER); }             \
  extern "C" void __tsan_write##bytes(void* at) { access(at, bytes, true, CALLER); }                      \
  extern "C" void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, true, CALLER); }            \
  extern "C" void __tsan_volatile_write##bytes(void* at) { access(at, bytes, true, CALLER); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" void __tsan_read_range(void* at, size_t bytes) { access_range(at, bytes, false, CALLER); }
extern "C" void __tsan_write_range(void* at, size_t bytes) { access_range(at, bytes, true, CALLER); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}

extern "C" void __sanitizer_cov_trace_pc() {
  const int thread = running_thread();
  if (thread < 0) return;
  const Pause pause;
  forget_other_kernels();
  std::vector<unsigned>& visits = visits_of_block[CALLER];
  visits.resize(block.size);
  ++visits[static_cast<unsigned>(thread)];
}

// ---- What counters.py calls -----------------------------------------------------------------------------------------

EXPORT void cuda_on_cpu_place_tensors() { c10::SetCPUAllocator(&arena, 255); }

constexpr size_t kNew = 64 << 20;  // bytes that one call allocates at most

EXPORT void cuda_on_cpu_start_counting() {
  totals.clear(), passes.clear(), launches.clear();
  moved_sectors = 0;
  for (Touched& t : touched) {
    t.bytes.assign(arena.used + kNew, false);
    t.by_block.assign((arena.used + kNew) / kSector, false);
  }
  cuda_on_cpu::after_block = end_block;
  counting_now = true;
}

// Writes a line for each kernel, and for each of its instructions that was counted.
EXPORT void cuda_on_cpu_stop_counting(const char* path) {
  counting_now = false;
  Dl_info library;
  dladdr(reinterpret_cast<void*>(cuda_on_cpu_stop_counting), &library);
  const auto base = reinterpret_cast<uintptr_t>(library.dli_fbase);
  std::FILE* file = std::fopen(path, "w");
  std::fprintf(file, "moved %lu\n", moved_sectors * kSector);
  for (const auto& [kernel, l] : launches) {
    std::fprintf(file, "launch %lx %u %zu\n", kernel - base, l.first, l.second);
  }
  for (const auto& [place, t] : totals) {
    std::fprintf(
        file, "access %lx %lx %d %d %lu %lu %lu %lu\n", place.first - base, place.second - base, t.shared, t.write,
        t.count.requests, t.count.lanes, t.count.units, t.count.fewest);
  }
  for (const auto& [place, p] : passes) {
    std::fprintf(file, "passes %lx %lx %lu %lu\n", place.first - base, place.second - base, p.warps, p.lanes);
  }
  std::fclose(file);
}

// How many of a tensor's bytes were read or written.
EXPORT size_t cuda_on_cpu_touched(const void* data, size_t bytes, bool write) {
  if (arena.offset(data) >= arena.used) return 0;  // a tensor of nothing
  const auto begin = touched[write].bytes.begin() + static_cast<ptrdiff_t>(arena.offset(data));
  return static_cast<size_t>(std::count(begin, begin + static_cast<ptrdiff_t>(bytes), true));
}
