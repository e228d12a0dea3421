// Counts what the memory system and the schedulers of a GPU would see of kernels (counters.py). Those of the variant
// `counted` call the hooks of the thread sanitizer and of coverage, which are defined here instead.
//
// Lanes make a request together when they come to an instruction for the n-th time in their block: the number stands for
// what keeps the lanes of a GPU together.
#include "counting.h"

#include <c10/core/CPUAllocator.h>
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <map>
#include <memory>
#include <sstream>

using namespace counting;
using cuda_on_cpu::block;

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));  // the bounds of the library's code
extern "C" const char etext[] __attribute__((visibility("hidden")));

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

// An instruction, and what the threads of the block that is running do there.
struct Site {
  size_t instruction;
  Kind kind;
  bool visited = false;
  std::vector<unsigned> visits;                 // by thread
  std::vector<std::vector<Request>> requests;  // by warp and visit
};
size_t offset_of(const void* code) { return static_cast<size_t>(static_cast<const char*>(code) - __ehdr_start); }

bool counting_now = false;
// While a hook runs: the linker may have taken a function of the standard library from a kernel's file, hooks and all.
struct Pause {
  Pause() { counting_now = false; }
  ~Pause() { counting_now = true; }
};
std::vector<std::unique_ptr<Site>> sites;  // by instruction, and whether the memory is shared
std::vector<Site*> of_block;
std::map<std::pair<size_t, size_t>, std::pair<Kind, Count>> totals;  // by kernel and site
std::map<size_t, std::pair<unsigned, size_t>> launches;  // threads of a block and dynamic shared memory, by kernel
// Whether each byte of the arena was read, and written; whether the block that is running has had each sector.
struct Touched {
  std::vector<bool> bytes, by_block;
  std::vector<size_t> sectors;  // of the block
} touched[2];
uint64_t moved_sectors = 0;  // a sector once a block, as its multiprocessor's cache has it then

// The thread that runs, or null where a launch is being made.
const cuda_on_cpu::Thread* running_thread() {
  const bool in_kernel =
      counting_now && block.current != nullptr && block.current->fiber.holds(__builtin_frame_address(0));
  return in_kernel ? block.current : nullptr;
}

// The site, and how often the thread has come to it.
std::pair<Site&, unsigned> visit(const void* instruction, Kind kind, unsigned thread) {
  if (sites.empty()) sites.resize(2 * offset_of(etext));
  const size_t at = offset_of(instruction);
  std::unique_ptr<Site>& site = sites[2 * at + is_shared(kind)];
  if (site == nullptr) site = std::make_unique<Site>(Site{at, kind, false, {}, {}});
  if (!std::exchange(site->visited, true)) of_block.push_back(site.get());
  if (site->visits.size() < block.size) {
    site->visits.resize(block.size);
    site->requests.resize((block.size + kLanes - 1) / kLanes);
  }
  return {*site, site->visits[thread]++};
}

void touch(Touched& into, size_t offset, unsigned bytes) {
  std::fill_n(into.bytes.begin() + static_cast<ptrdiff_t>(offset), bytes, true);
  for (size_t sector = offset / kSector; sector <= (offset + bytes - 1) / kSector; ++sector) {
    if (into.by_block[sector]) continue;
    into.by_block[sector] = true;
    into.sectors.push_back(sector);
  }
}

void access(const void* address, unsigned bytes, bool write, const void* instruction) {
  const bool shared = cuda_on_cpu::is_shared(address);
  const size_t offset = arena.offset(address);
  const auto* thread = shared || offset < arena.used ? running_thread() : nullptr;
  if (thread == nullptr) return;
  const Pause pause;

  if (!shared) touch(touched[write], offset, bytes);
  const Kind kind = shared ? (write ? kSharedStore : kSharedLoad) : (write ? kGlobalStore : kGlobalLoad);
  const auto [site, number] = visit(instruction, kind, thread->number);
  std::vector<Request>& requests = site.requests[thread->number / kLanes];
  if (requests.size() <= number) requests.resize(number + 1);
  requests[number].bytes = bytes;
  requests[number].lanes |= 1u << thread->lane();
  requests[number].address[thread->lane()] = reinterpret_cast<uintptr_t>(address);
}

// A structure moves in pieces as wide as its alignment allows, each an access of its own.
void access_range(const void* address, size_t bytes, bool write, const void* instruction) {
  const char* at = static_cast<const char*>(address);
  for (size_t piece; bytes > 0; at += piece, bytes -= piece) {
    for (piece = 16; piece > bytes || reinterpret_cast<uintptr_t>(at) % piece != 0; piece /= 2) {
    }
    access(at, static_cast<unsigned>(piece), write, instruction);
  }
}

void end_block() {
  const size_t kernel = offset_of(block.function);
  launches[kernel] = {block.size, block.shared_bytes};
  for (Site* site : of_block) {
    auto& [kind, count] = totals[{kernel, 2 * site->instruction + is_shared(site->kind)}];
    kind = site->kind;
    if (kind == kPass) add_passes(count, site->visits);
    for (auto& of_warp : site->requests) {
      for (const Request& request : of_warp) add(count, request, is_shared(kind));
      of_warp.clear();
    }
    std::fill(site->visits.begin(), site->visits.end(), 0u);
    site->visited = false;
  }
  of_block.clear();
  for (Touched& t : touched) {
    moved_sectors += t.sectors.size();
    for (const size_t sector : t.sectors) t.by_block[sector] = false;
    t.sectors.clear();
  }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALLER (static_cast<const char*>(__builtin_return_address(0)) - 1)
#define HOOKS(bytes)                                                                 \
  extern "C" void __tsan_read##bytes(void* at) { access(at, bytes, false, CALLER); } \
  extern "C" void __tsan_write##bytes(void* at) { access(at, bytes, true, CALLER); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" void __tsan_read_range(void* at, size_t bytes) { access_range(at, bytes, false, CALLER); }
extern "C" void __tsan_write_range(void* at, size_t bytes) { access_range(at, bytes, true, CALLER); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}

extern "C" void __sanitizer_cov_trace_pc() {
  const auto* thread = running_thread();
  if (thread == nullptr) return;
  const Pause pause;
  visit(CALLER, kPass, thread->number);
}

// ---- What counter_cases.py calls ------------------------------------------------------------------------------------

EXPORT void cuda_on_cpu_place_tensors() { c10::SetCPUAllocator(&arena, 255); }

EXPORT void cuda_on_cpu_start_counting() {
  constexpr size_t kNew = 64 << 20;  // bytes that one call allocates at most
  totals.clear(), launches.clear();
  moved_sectors = 0;
  for (Touched& t : touched) {
    t.bytes.assign(arena.used + kNew, false);
    t.by_block.assign((arena.used + kNew) / kSector, false);
  }
  cuda_on_cpu::after_block = end_block;
  counting_now = true;
}

// The bytes that moved, then a line for each kernel, and for each of its sites; the text stays until the next call.
EXPORT const char* cuda_on_cpu_stop_counting() {
  counting_now = false;
  std::ostringstream out;
  out << moved_sectors * kSector << '\n' << std::hex;
  for (const auto& [kernel, l] : launches) out << kernel << ' ' << l.first << ' ' << l.second << '\n';
  for (const auto& [place, total] : totals) {
    const auto& [kind, count] = total;
    out << place.first << ' ' << place.second / 2 << ' ' << kind << ' ' << count.requests << ' ' << count.lanes << ' '
        << count.units << ' ' << count.fewest << '\n';
  }
  static std::string text;
  return (text = out.str()).c_str();
}

// How many of a tensor's bytes were read or written.
EXPORT size_t cuda_on_cpu_touched(const void* data, size_t bytes, bool write) {
  if (arena.offset(data) >= arena.used) return 0;  // a tensor of nothing
  const auto begin = touched[write].bytes.begin() + static_cast<ptrdiff_t>(arena.offset(data));
  return static_cast<size_t>(std::count(begin, begin + static_cast<ptrdiff_t>(bytes), true));
}
