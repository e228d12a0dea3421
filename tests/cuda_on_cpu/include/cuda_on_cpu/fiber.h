// A fiber: a call stack of its own, entered and left by switching stacks, within one OS thread.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_ASSEMBLY 1
#else
#define CUDA_ON_CPU_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

#if CUDA_ON_CPU_ASSEMBLY
// Saves the registers that a callee must keep on the stack in use, and goes on where `to` was saved. swapcontext does
// the same, but calls the system for the signal mask: many times the cost, at every barrier of every thread. A hook of
// coverage would change the registers.
__attribute__((naked, noinline, no_sanitize_coverage)) inline void switch_stacks(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
      "ret");
}
#endif

class Fiber {
 public:
  using Entry = void (*)();  // must never return

  Fiber() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapping_ = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapping_, page, PROT_NONE);  // a stack that overflows stops here
    stack_ = static_cast<char*>(mapping_) + page;
  }
  ~Fiber() { munmap(mapping_, static_cast<size_t>(stack_ + kStackBytes - static_cast<char*>(mapping_))); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls `entry` on a fresh stack, whatever the fiber was doing.
  void start(Entry entry) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(stack_, kStackBytes);  // frames that were abandoned left their red zones
    fake_stack_ = nullptr;
#endif
    entry_ = entry;
#if CUDA_ON_CPU_ASSEMBLY
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
    *--top = nullptr;  // begin()'s return address: where stack traces end
    *--top = reinterpret_cast<void*>(&Fiber::begin);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    own_ = top;
#else
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = kStackBytes;
    own_.uc_link = nullptr;
    makecontext(&own_, &Fiber::begin, 0);
#endif
  }

  // Runs the fiber until it suspends itself.
  void resume() {
    entering_ = this;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
    swap(caller_, own_);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    swap(caller_, own_);
#endif
  }

  // Whether an address is on its stack (where AddressSanitizer keeps no locals).
  bool holds(const void* address) const { return stack_ <= address && address < stack_ + kStackBytes; }

  // Called on the fiber's own stack: returns from resume().
  void suspend() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, caller_stack_, caller_stack_bytes_);
    swap(own_, caller_);
    __sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_stack_bytes_);
#else
    swap(own_, caller_);
#endif
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kStackBytes = 256 * 1024;  // red zones make frames several times as large
  void* fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
#else
  static constexpr size_t kStackBytes = 64 * 1024;
#endif

#if CUDA_ON_CPU_ASSEMBLY
  using Context = void*;
  static void swap(Context& from, Context& to) { switch_stacks(&from, to); }
#else
  using Context = ucontext_t;
  static void swap(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

  static void begin() {
    Fiber* self = entering_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
#endif
    self->entry_();
  }

  static inline Fiber* entering_ = nullptr;
  void* mapping_;
  char* stack_;
  Entry entry_ = nullptr;
  Context own_{};
  Context caller_{};
};

}  // namespace cuda_on_cpu
