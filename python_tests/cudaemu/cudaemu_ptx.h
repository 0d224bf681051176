// Emulations of what kernels do by inline PTX: mma.sync, ldmatrix and cp.async. All lanes of a warp call the first two.
// Fragments are laid out as the PTX ISA documents them: g = lane / 4, t = lane % 4,
//   C, D (16x8 float): c0 (g, 2t)  c1 (g, 2t+1)  c2 (g+8, 2t)  c3 (g+8, 2t+1)
//   A (16x8 tf32):     a0 (g, t)  a1 (g+8, t)  a2 (g, t+4)  a3 (g+8, t+4);     B (8x8): b0 (t, g)  b1 (t+4, g)
//   A (16x16 16-bit):  pairs (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..);  B (16x8): pairs (2t.., g) (2t+8.., g)
// Products are exact and summed in double: a GPU's own sum differs by some roundings of float32 and its truncations.
#pragma once
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "cudaemu.h"

namespace CUDAEMU_OWN cudaemu {

__forceinline__ Thread& whole_warp(const char* where, unsigned line, u64 value) {
  Thread& t = pause(Wait::warp, where, line, 0xffffffff, value);
  if (t.present != 0xffffffff) throw Error(at(t) + " needs all 32 lanes of its warp");
  return t;
}

inline float tf32(uint32_t v) { return std::bit_cast<float>(v & 0xffffe000u); }
inline float bf16(uint32_t half) { return std::bit_cast<float>(half << 16); }
inline float f16(uint32_t half) {
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
  float value = std::ldexp(float(exponent ? mantissa | 1024 : mantissa), int(exponent ? exponent : 1) - 25);
  if (exponent == 31)
    value = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  return half >> 15 & 1 ? -value : value;
}

// Each lane unpacks its operands to where all lanes of the warp read them: K numbers a row of A and a column of B.
template <int K, int Numbers, class Unpack>
__forceinline__ void mma(const char* where, unsigned line, float (&d)[4], const uint32_t (&a)[4],
                         const uint32_t (&b)[2], Unpack unpack) {
  Thread& self = *block.now;
  const unsigned g = self.lane / 4, t = self.lane % 4, half = self.products % 2;
  float *const left = block.warps[self.warp].left[half], *const right = block.warps[self.warp].right[half];
  {
    const Quiet quiet;
    ++self.products;
    for (unsigned n = 0; n < Numbers; ++n) {
      for (unsigned i = 0; i < 4; ++i) left[(g + i % 2 * 8) * K + i / 2 * (K / 2) + Numbers * t + n] = unpack(a[i], n);
      for (unsigned i = 0; i < 2; ++i) right[g * K + i * (K / 2) + Numbers * t + n] = unpack(b[i], n);
    }
  }
  whole_warp(where, line, 0);
  const Quiet quiet;
  for (unsigned i = 0; i < 4; ++i) {
    const float *const row = left + (g + i / 2 * 8) * K, *const column = right + (2 * t + i % 2) * K;
    double sum = double(d[i]);
    for (unsigned k = 0; k < K; ++k) sum += double(row[k]) * double(column[k]);
    d[i] = float(sum);
  }
}
__forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_LINE) {
  mma<8, 1>("mma.m16n8k8.tf32", line, d, a, b, [](uint32_t v, unsigned) { return tf32(v); });
}
__forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_LINE) {
  mma<16, 2>("mma.m16n8k16.bf16", line, d, a, b, [](uint32_t v, unsigned n) { return bf16(v >> 16 * n & 0xffff); });
}
__forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_LINE) {
  mma<16, 2>("mma.m16n8k16.f16", line, d, a, b, [](uint32_t v, unsigned n) { return f16(v >> 16 * n & 0xffff); });
}
inline uint32_t to_tf32(float x) {  // nearest, ties away from zero
  const auto v = std::bit_cast<uint32_t>(x);
  return (std::isfinite(x) ? v + 0x1000u : v) & 0xffffe000u;
}

// Lane l gives the address of row l % 8 of matrix l / 8: 8 numbers of 16 bits. Of matrix i lane l gets the pair
// (l / 4, 2t..), or if transposed the pair (2t.., l / 4).
template <int N>
__forceinline__ void ldmatrix(const char* where, unsigned line, uint32_t (&r)[N], const void* row, bool transposed) {
  if (block.now->lane < 8 * N && std::bit_cast<uintptr_t>(row) % 16)
    throw Error(std::string(where) + " at line " + std::to_string(line) + ": misaligned address");
  const Thread& self = whole_warp(where, line, bits(row));
  const unsigned g = self.lane / 4, t = self.lane % 4;
  for (unsigned i = 0; i < N; ++i) {
    const auto at = [&](unsigned line, unsigned column) -> uint32_t {
      return unbits<const uint16_t*>(given(self)[8 * i + line])[column];
    };
    r[i] = transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
  }
}
__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row, CUDAEMU_LINE) {
  ldmatrix("ldmatrix.x4", line, r, row, false);
}
__forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row, CUDAEMU_LINE) {
  ldmatrix("ldmatrix.x2", line, r, row, false);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, CUDAEMU_LINE) {
  ldmatrix("ldmatrix.x4.trans", line, r, row, true);
}
__forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, CUDAEMU_LINE) {
  ldmatrix("ldmatrix.x2.trans", line, r, row, true);
}

// cp.async may write at any time from its call to the wait that covers it: emulated as the worst of both, poison at
// once and the numbers at the wait. Beyond `bytes` it writes zeros; with none it does not read.
template <int N>
void cp_async_zfill(void* shared, const void* global, int bytes) {
  static_assert(N == 4 || N == 8 || N == 16);
  if (bytes < 0 || bytes > N) throw Error("cp.async: " + std::to_string(bytes) + " of " + std::to_string(N) + " bytes");
  if (std::bit_cast<uintptr_t>(shared) % N || (bytes && std::bit_cast<uintptr_t>(global) % N))
    throw Error("cp.async: misaligned address");
  std::memset(shared, 0xff, N);
  CUDAEMU_TSAN(__tsan_write_range(shared, N);)  // for it does not see a memset that the compiler has unrolled
  const Quiet quiet;
  block.now->copies.push_back({shared, global, bytes, N - bytes});
}
template <int N>
void cp_async(void* shared, const void* global) {
  cp_async_zfill<N>(shared, global, N);
}
inline void cp_async_commit() {
  const Quiet quiet;
  Thread& t = *block.now;
  t.groups.push_back(t.copies.size() - std::accumulate(t.groups.begin(), t.groups.end(), size_t(0)));
}
inline bool first_copy(Copy& copy, size_t groups_left) {
  const Quiet quiet;
  Thread& t = *block.now;
  while (t.groups.size() > groups_left && t.groups[0] == 0) t.groups.erase(t.groups.begin());
  if (t.groups.size() <= groups_left) return false;
  copy = t.copies[0], --t.groups[0];
  t.copies.erase(t.copies.begin());
  return true;
}
template <int N>
void cp_async_wait() {
  for (Copy copy; first_copy(copy, N);) {
    if (copy.bytes) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, size_t(copy.zeros));
  }
}

}  // namespace CUDAEMU_OWN cudaemu
