// CUDA's device functions for cudaemu.h: barriers, warp calls, atomics, loads, arithmetic; each takes the types that
// CUDA's own takes. `line` is never given by a kernel: it is the line of the call, for messages and for divergence.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cudaemu_block.h"

#define CUDAEMU_LINE unsigned line = __builtin_LINE()

namespace CUDAEMU_OWN cudaemu {
template <class T, class... Ts>
concept OneOf = (std::is_same_v<T, Ts> || ...);
template <class T>
concept Int32 = OneOf<T, int, unsigned>;
template <class T>
concept Exchanged = OneOf<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double>;
template <class T>
using Id = std::type_identity_t<T>;

template <class T>
u64 bits(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  u64 r = 0;
  std::memcpy(&r, &v, sizeof v);
  return r;
}
template <class T>
T unbits(u64 v) {
  T r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
inline const u64* given(const Thread& t) { return block.warps[t.warp].given; }

// `source` maps a lane to the lane it reads; a lane outside 0..31 means its own value.
[[noreturn]] inline void absent(const Thread& t, int lane) {
  throw Error(at(t) + " reads lane " + std::to_string(lane) + ", which takes no part in it");
}
template <class T, class F>
__forceinline__ T shuffle(const char* where, unsigned line, unsigned mask, T v, F source) {
  const Thread& t = pause(Wait::warp, where, line, mask, bits(v));
  const int from = source(int(t.lane));
  if (from < 0 || from > 31) return v;
  if (!(t.present >> from & 1))
    throw Error(at(t) + " reads lane " + std::to_string(from) + ", which takes no part in it");
  return unbits<T>(given(t)[from]);
}
template <class F>
__forceinline__ unsigned vote(const char* where, unsigned line, unsigned mask, u64 v, F keep) {
  const Thread& t = pause(Wait::warp, where, line, mask, v);
  unsigned r = 0;
  for (unsigned rest = t.present; rest; rest &= rest - 1)
    if (keep(given(t)[std::countr_zero(rest)])) r |= rest & -rest;
  return r;
}
__forceinline__ unsigned ballot(const char* where, unsigned line, unsigned mask, bool p) {
  return vote(where, line, mask, p, [](u64 v) { return v != 0; });
}
template <class T, class F>
__forceinline__ T reduce(const char* where, unsigned line, unsigned mask, T v, F join) {
  const Thread& t = pause(Wait::warp, where, line, mask, bits(v));
  unsigned rest = t.present;
  T r = unbits<T>(given(t)[std::countr_zero(rest)]);
  while (rest &= rest - 1) r = join(r, unbits<T>(given(t)[std::countr_zero(rest)]));
  return r;
}
__forceinline__ Block& barrier(const char* where, unsigned line, bool offer) {
  pause(Wait::block, where, line, 0, offer);
  return block;
}
template <class T, class F>
T update(T* p, F f) {
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    next = f(old);
  } while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
}  // namespace CUDAEMU_OWN cudaemu

__forceinline__ void __syncthreads(CUDAEMU_LINE) { cudaemu::barrier("__syncthreads", line, false); }
__forceinline__ int __syncthreads_count(int p, CUDAEMU_LINE) {
  return int(cudaemu::barrier("__syncthreads_count", line, p != 0).offered);
}
__forceinline__ int __syncthreads_or(int p, CUDAEMU_LINE) {
  return cudaemu::barrier("__syncthreads_or", line, p != 0).offered != 0;
}
__forceinline__ int __syncthreads_and(int p, CUDAEMU_LINE) {
  const auto& b = cudaemu::barrier("__syncthreads_and", line, p != 0);
  return b.offered == b.met;
}
__forceinline__ void __syncwarp(unsigned mask = 0xffffffff, CUDAEMU_LINE) {
  cudaemu::pause(cudaemu::Wait::warp, "__syncwarp", line, mask, 0);
}
inline unsigned __activemask() { return cudaemu::block.warps[cudaemu::block.now->warp].live; }

template <cudaemu::Exchanged T>
__forceinline__ T __shfl_sync(unsigned m, T v, int src, int w = 32, CUDAEMU_LINE) {
  return cudaemu::shuffle("__shfl_sync", line, m, v, [=](int l) { return (l & -w) | (src & (w - 1)); });
}
template <cudaemu::Exchanged T>
__forceinline__ T __shfl_xor_sync(unsigned m, T v, int x, int w = 32, CUDAEMU_LINE) {
  return cudaemu::shuffle("__shfl_xor_sync", line, m, v, [=](int l) { return (l ^ x) < (l & -w) + w ? l ^ x : -1; });
}
template <cudaemu::Exchanged T>
__forceinline__ T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32, CUDAEMU_LINE) {
  return cudaemu::shuffle("__shfl_down_sync", line, m, v,
                          [=](int l) { return (l & (w - 1)) + int(d) < w ? l + int(d) : -1; });
}
template <cudaemu::Exchanged T>
__forceinline__ T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32, CUDAEMU_LINE) {
  return cudaemu::shuffle("__shfl_up_sync", line, m, v,
                          [=](int l) { return (l & (w - 1)) >= int(d) ? l - int(d) : -1; });
}
__forceinline__ unsigned __ballot_sync(unsigned m, int p, CUDAEMU_LINE) {
  return cudaemu::ballot("__ballot_sync", line, m, p != 0);
}
__forceinline__ int __any_sync(unsigned m, int p, CUDAEMU_LINE) {
  return cudaemu::ballot("__any_sync", line, m, p != 0) != 0;
}
__forceinline__ int __all_sync(unsigned m, int p, CUDAEMU_LINE) {
  return cudaemu::ballot("__all_sync", line, m, p == 0) == 0;
}
template <cudaemu::Exchanged T>
__forceinline__ unsigned __match_any_sync(unsigned m, T x, CUDAEMU_LINE) {
  const cudaemu::u64 mine = cudaemu::bits(x);
  return cudaemu::vote("__match_any_sync", line, m, mine, [=](cudaemu::u64 v) { return v == mine; });
}
template <cudaemu::Int32 T>
__forceinline__ T __reduce_add_sync(unsigned m, T v, CUDAEMU_LINE) {
  return cudaemu::reduce("__reduce_add_sync", line, m, v, [](T a, T b) { return T(unsigned(a) + unsigned(b)); });
}
template <cudaemu::Int32 T>
__forceinline__ T __reduce_max_sync(unsigned m, T v, CUDAEMU_LINE) {
  return cudaemu::reduce("__reduce_max_sync", line, m, v, [](T a, T b) { return std::max(a, b); });
}
template <cudaemu::Int32 T>
__forceinline__ T __reduce_min_sync(unsigned m, T v, CUDAEMU_LINE) {
  return cudaemu::reduce("__reduce_min_sync", line, m, v, [](T a, T b) { return std::min(a, b); });
}
__forceinline__ unsigned __reduce_and_sync(unsigned m, unsigned v, CUDAEMU_LINE) {
  return cudaemu::reduce("__reduce_and_sync", line, m, v, [](unsigned a, unsigned b) { return a & b; });
}
__forceinline__ unsigned __reduce_or_sync(unsigned m, unsigned v, CUDAEMU_LINE) {
  return cudaemu::reduce("__reduce_or_sync", line, m, v, [](unsigned a, unsigned b) { return a | b; });
}
__forceinline__ unsigned __reduce_xor_sync(unsigned m, unsigned v, CUDAEMU_LINE) {
  return cudaemu::reduce("__reduce_xor_sync", line, m, v, [](unsigned a, unsigned b) { return a ^ b; });
}

#define CUDAEMU_ATOMIC(name, result, ...)                             \
  template <class T>                                                  \
    requires cudaemu::OneOf<T, __VA_ARGS__>                           \
  T name(T* p, cudaemu::Id<T> v) {                                    \
    return cudaemu::update(p, [v](T old) -> T { return T(result); }); \
  }
CUDAEMU_ATOMIC(atomicAdd, old + v, unsigned, unsigned long long, float, double)
CUDAEMU_ATOMIC(atomicSub, old - v, unsigned)
CUDAEMU_ATOMIC(atomicMax, std::max(old, v), int, unsigned, long long, unsigned long long)
CUDAEMU_ATOMIC(atomicMin, std::min(old, v), int, unsigned, long long, unsigned long long)
CUDAEMU_ATOMIC(atomicOr, old | v, int, unsigned, unsigned long long)
CUDAEMU_ATOMIC(atomicAnd, old& v, int, unsigned, unsigned long long)
CUDAEMU_ATOMIC(atomicXor, old ^ v, int, unsigned, unsigned long long)
CUDAEMU_ATOMIC(atomicExch, ((void)old, v), int, unsigned, unsigned long long, float)
#undef CUDAEMU_ATOMIC
// Wraps around, as CUDA's does, where a host's int must not.
inline int atomicAdd(int* p, int v) { return int(atomicAdd(reinterpret_cast<unsigned*>(p), unsigned(v))); }
inline int atomicSub(int* p, int v) { return int(atomicSub(reinterpret_cast<unsigned*>(p), unsigned(v))); }
template <class T>
  requires cudaemu::OneOf<T, int, unsigned, unsigned long long, unsigned short>
T atomicCAS(T* p, cudaemu::Id<T> expected, cudaemu::Id<T> v) {
  return cudaemu::update(p, [=](T old) { return old == expected ? v : old; });
}
inline void __threadfence() {
  CUDAEMU_TSAN(__tsan_release(&cudaemu::block.fence_sync); __tsan_acquire(&cudaemu::block.fence_sync);)
}
inline void __threadfence_block() { __threadfence(); }
[[noreturn]] inline void __trap() { throw cudaemu::Error("__trap"); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, cudaemu::Id<T> v) {
  *p = v;
}
template <class T>
void __stcg(T* p, cudaemu::Id<T> v) {
  *p = v;
}

using std::max, std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }  // NaN gives 0
// One rounding each: baseline x86-64 has no fma that g++ could contract two of them to.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return int(std::floor(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline int __ffsll(long long x) { return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0; }
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long r = 0;
  for (int i = 0; i < 64; ++i) r |= (x >> i & 1) << (63 - i);
  return r;
}
inline unsigned __brev(unsigned x) { return unsigned(__brevll(x) >> 32); }
inline int __mulhi(int a, int b) { return int((static_cast<long long>(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((static_cast<unsigned long long>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
// Nibble i of s chooses byte i of the result from the eight of y:x, or with its top bit set that byte's sign eightfold.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const unsigned long long from = static_cast<unsigned long long>(y) << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i, s >>= 4) {
    const unsigned byte = unsigned(from >> (s & 7) * 8) & 0xff;
    r |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << i * 8;
  }
  return r;
}
// The high or the low half of hi:lo, shifted by the last five bits of s.
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) {
  return unsigned(((static_cast<unsigned long long>(hi) << 32 | lo) << (s & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s) {
  return unsigned((static_cast<unsigned long long>(hi) << 32 | lo) >> (s & 31));
}
