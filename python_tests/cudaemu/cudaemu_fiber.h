// Fibers for cudaemu.h: a stack, a switch from one to another, and what the sanitizers have to be told about both.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cudaemu_types.h"

#if defined __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDAEMU_ASAN(...) __VA_ARGS__
#else
#define CUDAEMU_ASAN(...)
#endif
#if defined __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define CUDAEMU_TSAN(...) __VA_ARGS__
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
extern "C" void __tsan_write_range(void* start, unsigned long bytes);
#else
#define CUDAEMU_TSAN(...)
#endif

namespace CUDAEMU_OWN cudaemu {

// While one lives, ThreadSanitizer looks away: the emulator's own data is not the kernel's business.
struct [[maybe_unused]] Quiet {
  Quiet() { CUDAEMU_TSAN(__tsan_ignore_thread_begin();) }
  ~Quiet() { CUDAEMU_TSAN(__tsan_ignore_thread_end();) }
  Quiet(const Quiet&) = delete;
};

struct Fiber {
  void* sp = nullptr;
  CUDAEMU_ASAN(const void* stack = nullptr; size_t size = 0; void* fake = nullptr;)
  CUDAEMU_TSAN(void* tsan = nullptr;)
};

// x86-64 System V: what a call preserves goes onto the old stack and comes from the new one. It jumps where it might
// return: a processor predicts that a return goes to the last call, which is another fiber's, but learns a jump's
// targets.
asm(R"(.pushsection .text
.weak cudaemu_switch
.hidden cudaemu_switch
.type cudaemu_switch, @function
cudaemu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.popsection)");
extern "C" __attribute__((visibility("hidden"))) void cudaemu_switch(void** from_sp, void* to_sp);

__forceinline__ void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool leaving = false) {
  CUDAEMU_ASAN(__sanitizer_start_switch_fiber(leaving ? nullptr : &from.fake, to.stack, to.size);)
  CUDAEMU_TSAN(__tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);)
  cudaemu_switch(&from.sp, to.sp);
  CUDAEMU_ASAN(__sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);)
}

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer's fibers take long to make and are used again; each in its turn, for two threads of one launch that
// had the same one would be ordered, and no race between them seen.
inline void* next_tsan_fiber(size_t threads) {
  static void*
      all[3 * 1024];  // of three blocks: more would be surer, but each barrier takes as long as there are fibers
  static size_t turn = 0;
  void*& fiber = all[turn++ % (3 * threads)];
  if (!fiber) fiber = __tsan_create_fiber(0);
  return fiber;
}
#endif

// Stacks for a block's threads, as many pages as they touch. Not all begin on the same cache lines.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * pitch()) {
    void* start = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    start_ = static_cast<char*>(start);
  }
  ~Stacks() { munmap(start_, bytes_); }
  Stacks(const Stacks&) = delete;

  // `f` will begin in `entry`, which must not return.
  void prepare(Fiber& f, size_t index, void (*entry)()) const {
    char* const stack = start_ + index * pitch();
    char* const end = stack + pitch();
    CUDAEMU_ASAN(f.stack = stack; f.size = pitch(); __asan_unpoison_memory_region(end - 4096, 4096);)
    CUDAEMU_TSAN(f.tsan = next_tsan_fiber(bytes_ / pitch());)
    std::memset(stack, canary, 8);
    const auto top = reinterpret_cast<void**>(end);  // entry's stack is aligned as after a call: 8 bytes off 16
    std::fill(top - 8, top, nullptr);
    top[-2] = reinterpret_cast<void*>(entry);
    f.sp = top - 8;
  }
  bool overflowed(size_t index) const {
    const char* const stack = start_ + index * pitch();
    return std::any_of(stack, stack + 8, [](char c) { return c != canary; });
  }

 private:
  static constexpr char canary = 0x5a;
  static size_t pitch() {
    static const char* const wish = std::getenv("CUDAEMU_STACK");
    static const size_t bytes = (wish ? std::strtoul(wish, nullptr, 10) : 65536) / 4096 * 4096 + 320;
    return bytes;
  }
  size_t bytes_;
  char* start_;
};

}  // namespace CUDAEMU_OWN cudaemu
