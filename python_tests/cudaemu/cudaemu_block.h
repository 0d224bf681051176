// One block of a launch, for cudaemu.h: its threads, the calls in which they wait for each other, and their scheduler.
#pragma once
#include <link.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cudaemu_fiber.h"
#include "cudaemu_types.h"

// Plain variables: one launch at a time runs in a process, in one thread of the system at a time.
inline CUDAEMU_OWN uint3 threadIdx, blockIdx;
inline CUDAEMU_OWN dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace CUDAEMU_OWN cudaemu {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Cancelled {};  // unwinds the threads of a block in which one has failed
using u64 = unsigned long long;
enum class Wait : unsigned char { none, block, warp, done };
constexpr unsigned most_threads = 1024;

inline long first_seed() {
  const char* wish = std::getenv("CUDAEMU_SEED");
  return wish ? std::atol(wish) : 1;
}
inline long seed = first_seed();

struct Random {  // splitmix64
  u64 state = 0;
  u64 operator()() {
    u64 z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  template <class T>
  void shuffle(T* items, size_t count) {
    for (size_t i = count; i > 1; --i) std::swap(items[i - 1], items[(*this)() % i]);
  }
};

struct Copy {  // a cp.async that has not arrived
  void* to;
  const void* from;
  int bytes, zeros;
};
struct Thread {  // one CUDA thread: its fiber, what it waits for and what it offers to the others
  Fiber fiber;
  uint3 idx;
  unsigned lane, warp;
  const char* where = "";  // the call it waits in
  unsigned line = 0;       // and the line of that call
  unsigned mask = 0;       // warp calls: the mask it gave
  unsigned present = 0;    // after one: the lanes that took part
  unsigned products = 0;   // how many mma it has come to
  u64 value = 0;           // what it offers
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // how many of them each committed group has
  CUDAEMU_TSAN(char* sync;)    // what it releases as it comes, and who leaves acquires
};
struct Warp {
  unsigned live, waiting;  // lanes that have not returned; of those, the ones in a warp call
  u64 given[32];           // what each lane offered to the call that was opened last
  float left[2][16 * 16];  // operands of mma, of two in turn: a lane may come to the next before others left this one
  float right[2][8 * 16];
  // What a group of lanes has in common, by its lowest lane: two in turn, by how many of its calls were opened.
  CUDAEMU_TSAN(char sync[32][2]; unsigned opened[32]; char* syncs[32];)
};
struct Block {
  Thread threads[most_threads];
  Wait wait[most_threads];  // what each thread waits for
  Warp warps[most_threads / 32];
  unsigned count, live, arrived;  // threads; those that have not returned; of those, the ones at the barrier
  unsigned offers, offered, met;  // non-zero offers at the barrier; and at the last one, and how many threads met there
  Thread *first, *stray;          // who came to the barrier first; who is at another line of the kernel
  unsigned char* dynamic;
  Fiber scheduler;
  Thread* now;
  std::string error;
  bool cancelled;
  void (*call)(const void*);
  const void* body;
  // A round runs every thread that can: turn[(start + i * stride) % span] for i = at, at + 1, ... < span.
  Random random;
  unsigned turn[most_threads], span, start, stride, at;
  CUDAEMU_TSAN(char sync[2]; unsigned barriers; char start_sync, end_sync, fence_sync;)
};
inline Block block;

inline std::string who(const Thread& t) {
  const auto text = [](uint3 v) {
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
  };
  return "thread " + text(t.idx) + " of block " + text(blockIdx);
}
inline std::string at(const Thread& t) { return std::string(t.where) + " at line " + std::to_string(t.line); }
inline std::string doing(const Thread& t) {
  return who(t) + (block.wait[&t - block.threads] == Wait::done ? " has returned" : " waits in " + at(t));
}
inline bool same_call(const Thread& t, const Thread& o) {
  return t.line == o.line && (t.where == o.where || !std::strcmp(t.where, o.where));
}

// The fiber that runs after this one: the round's next thread, or the scheduler at its end. Threads hand over to each
// other, for a switch costs more than all else that a barrier does.
inline Fiber& next() {
  Block& b = block;
  while (b.at < b.span) {
    const unsigned i = (b.start + b.at++ * b.stride) & (b.span - 1);
    if (i >= b.count || b.wait[b.turn[i]] != Wait::none) continue;
    b.now = &b.threads[b.turn[i]], threadIdx = b.now->idx;
    return b.now->fiber;
  }
  return b.scheduler;
}

CUDAEMU_TSAN(__attribute__((no_sanitize("thread"))))  // for its frame never ends, and ThreadSanitizer counts frames
inline void fiber_main() {
  Block& b = block;
  CUDAEMU_TSAN(__tsan_ignore_thread_begin();)
  Thread& t = *b.now;
  CUDAEMU_ASAN(const void* stack; size_t size; __sanitizer_finish_switch_fiber(nullptr, &stack, &size);)
  CUDAEMU_ASAN(if (!b.scheduler.stack) b.scheduler.stack = stack, b.scheduler.size = size;)  // it started the first
  CUDAEMU_TSAN(__tsan_ignore_thread_end(); __tsan_acquire(&b.start_sync);)
  try {
    if (!b.cancelled) b.call(b.body);
  } catch (const Cancelled&) {
  } catch (const std::exception& e) {
    const Quiet quiet;
    b.error = who(t) + ": " + e.what(), b.at = b.span;
  }
  {
    const Quiet quiet;
    b.wait[&t - b.threads] = Wait::done, --b.live, b.warps[t.warp].live &= ~(1u << t.lane);
  }
  CUDAEMU_TSAN(__tsan_release(&b.end_sync); __tsan_ignore_thread_begin();)
  Fiber& to = next();
  CUDAEMU_TSAN(__tsan_ignore_thread_end();)
  switch_to(t.fiber, to, true);
  std::abort();
}

#ifdef __SANITIZE_THREAD__
inline void acquire_others(Thread& t, Wait wait) {
  char* const mine = t.sync;
  __tsan_acquire(mine);
  if (wait != Wait::warp) return;
  for (unsigned rest = t.present; rest; rest &= rest - 1)
    if (char* const other = block.warps[t.warp].syncs[std::countr_zero(rest)]; other != mine) __tsan_acquire(other);
}
#endif

// The thread waits in a call from now on; who runs next?
__attribute__((noinline)) inline Fiber& arrive(Thread& t, Wait wait, const char* where, unsigned line, unsigned mask,
                                               u64 value) {
  Block& b = block;
  t.where = where, t.line = line, t.mask = mask, t.value = value;
  b.wait[&t - b.threads] = wait;
  if (wait == Wait::warp) {
    b.warps[t.warp].waiting |= 1u << t.lane;
    CUDAEMU_TSAN(const int leader = std::countr_zero(mask) % 32; Warp& w = b.warps[t.warp];)
    CUDAEMU_TSAN(t.sync = &w.sync[leader][w.opened[leader] % 2];)
  } else {
    if (!b.arrived++) b.first = &t;
    if (!same_call(t, *b.first)) b.stray = &t;
    b.offers += value != 0;
    CUDAEMU_TSAN(t.sync = &b.sync[b.barriers % 2];)
  }
  CUDAEMU_TSAN(__tsan_release(t.sync);)
  return next();
}
// Until the scheduler opens the call. Inline, so that each call has a switch of its own, see there.
__forceinline__ Thread& pause(Wait wait, const char* where, unsigned line, unsigned mask, u64 value) {
  const Quiet quiet;
  Thread& t = *block.now;
  switch_to(t.fiber, arrive(t, wait, where, line, mask, value));
  if (block.cancelled) throw Cancelled();
  CUDAEMU_TSAN(acquire_others(t, wait);)
  return t;
}

// A block's barrier opens when every thread that has not returned waits at it (as on sm_70 and later), on one line.
inline bool open_block(Block& b) {
  if (b.stray) throw Error("divergent barrier: " + doing(*b.first) + "; " + doing(*b.stray));
  if (!b.arrived || b.arrived < b.live) return false;
  for (unsigned i = 0; i < b.count; ++i)
    if (b.wait[i] == Wait::block) b.wait[i] = Wait::none;
  b.offered = b.offers, b.met = b.arrived;
  b.offers = b.arrived = 0;
  CUDAEMU_TSAN(++b.barriers;)
  return true;
}

// A warp's call opens when every lane that its mask names, and that has not returned, waits in it with the same mask.
inline bool open_warp(Block& b, unsigned warp) {
  Warp& w = b.warps[warp];
  Thread* const lanes = &b.threads[warp * 32];
  bool opened = false;
  for (unsigned rest = w.waiting; rest;) {
    const unsigned lane = unsigned(std::countr_zero(rest));
    const Thread& t = lanes[lane];
    if (!(t.mask >> lane & 1)) throw Error(doing(t) + ", but is not in the mask it gave");
    const unsigned group = t.mask & w.live;
    if (const unsigned away = group & ~w.waiting)
      throw Error("partial warp: " + doing(t) +
                  " for a lane that does not come: " + doing(lanes[std::countr_zero(away)]));
    bool ready = true;
    for (unsigned left = group; left; left &= left - 1) {
      const Thread& o = lanes[std::countr_zero(left)];
      if (o.mask == t.mask && same_call(o, t)) continue;
      if (o.mask >> lane & 1) throw Error("divergent warp: " + doing(t) + "; " + doing(o));
      ready = false;
    }
    rest &= ready ? ~group : rest - 1;
    if (!ready) continue;
    for (unsigned left = group; left; left &= left - 1) {
      const unsigned i = unsigned(std::countr_zero(left));
      b.wait[warp * 32 + i] = Wait::none;
      lanes[i].present = group;
      w.given[i] = lanes[i].value;
      CUDAEMU_TSAN(w.syncs[i] = lanes[i].sync;)
    }
    CUDAEMU_TSAN(++w.opened[std::countr_zero(t.mask) % 32];)
    w.waiting &= ~group;
    opened = true;
  }
  return opened;
}
inline bool open_warps(Block& b) {
  bool opened = false;
  for (unsigned warp = 0; warp * 32 < b.count; ++warp) {
    if (!b.warps[warp].waiting || (opened && seed && b.random() % 2)) continue;  // some warps run ahead of others
    opened |= open_warp(b, warp);
  }
  return opened;
}

inline void run_threads(Block& b, const Stacks& stacks) {
  do {
    if (seed) {
      const u64 bits = b.random();
      b.start = unsigned(bits), b.stride = unsigned(bits >> 32) | 1;
    }
    b.at = 0;
    switch_to(b.scheduler, next());
    if (!b.error.empty()) throw Error(b.error);
  } while (open_warps(b) || open_block(b));
  for (unsigned i = 0; i < b.count; ++i) {
    if (b.wait[i] != Wait::done) throw Error("deadlock: " + doing(b.threads[i]));
    if (stacks.overflowed(i)) throw Error("stack overflow (raise CUDAEMU_STACK): " + doing(b.threads[i]));
  }
}

// What a kernel reads of the static __shared__ but has not written shall not be what another block left there.
inline thread_local char anchor;  // where the library's thread_local variables are
inline void poison_static() {
#ifndef __SANITIZE_ADDRESS__
  struct Range {
    ptrdiff_t offset = 0;  // from the anchor to the first
    size_t bytes = 0;
  };
  static const Range range = [] {
    Range found;
    anchor = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* range) {
          const auto start = static_cast<char*>(info->dlpi_tls_data);
          for (const ElfW(Phdr)* h = info->dlpi_phdr; start && h != info->dlpi_phdr + info->dlpi_phnum; ++h)
            if (h->p_type == PT_TLS && start <= &anchor && &anchor < start + h->p_memsz)
              *static_cast<Range*>(range) = {start - &anchor, h->p_memsz};
          return 0;
        },
        &found);
    return found;
  }();
  std::memset(&anchor + range.offset, 0xff, range.bytes);
#endif
}

inline void run_block(u64 index, size_t smem, const Stacks& stacks) {
  Block& b = block;
  blockIdx = {unsigned(index % gridDim.x), unsigned(index / gridDim.x % gridDim.y),
              unsigned(index / gridDim.x / gridDim.y)};
  b.random.state = u64(seed) << 32 ^ index;
  for (unsigned i = 0; i < b.count; ++i) {
    Thread& t = b.threads[i];
    stacks.prepare(t.fiber, i, &fiber_main);
    t.idx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    t.lane = i % 32, t.warp = i / 32, t.products = 0;
    t.copies.clear(), t.groups.clear();
    b.wait[i] = Wait::none;
    b.turn[i] = i;
  }
  for (unsigned i = 0; i < b.count; i += 32)
    b.warps[i / 32].live = b.count - i < 32 ? (1u << (b.count - i)) - 1 : ~0u, b.warps[i / 32].waiting = 0;
  if (seed) b.random.shuffle(b.turn, b.count);
  b.span = std::bit_ceil(b.count), b.start = 0, b.stride = 1;
  b.live = b.count, b.arrived = b.offers = 0, b.first = b.stray = nullptr;
  b.error.clear(), b.cancelled = false;
  CUDAEMU_ASAN(b.scheduler.stack = nullptr;)
  CUDAEMU_TSAN(b.scheduler.tsan = __tsan_get_current_fiber(); __tsan_release(&b.start_sync);)
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
  const std::unique_ptr<unsigned char[]> dynamic(new unsigned char[smem]);  // its bounds and its age are known
#else
  alignas(1024) static unsigned char kept[227 * 1024];
  unsigned char* const dynamic = kept;
#endif
  b.dynamic = &dynamic[0];
  std::memset(b.dynamic, 0xff, smem);
  poison_static();
  try {
    run_threads(b, stacks);
  } catch (...) {
    b.cancelled = true;
    for (unsigned i = 0; i < b.count; ++i)
      if (b.wait[i] != Wait::done) b.now = &b.threads[i], b.at = b.span, switch_to(b.scheduler, b.now->fiber);
    throw;
  }
}

}  // namespace CUDAEMU_OWN cudaemu
