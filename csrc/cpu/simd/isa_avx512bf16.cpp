// AVX-512 BF16: a lane adds two products at once to its float32, twice the multiply-adds of the float32 tile, whose
// shape (8 x 3 accumulators, see isa_avx512.cpp) this one has.
#include "cpu/products/pairs.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)

#if !defined(__clang__)  // GCC 12 warns of its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <cpuid.h>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#endif

namespace hebbkern {
namespace avx512bf16 {

constexpr int lanes = 16, rows_of_tile = 8;

template <int NV>
static void tile_of(const uint16_t* const* rows, const int64_t* steps, int64_t n, const Pair* panel, int64_t stride,
                    float* out, int64_t out_stride, bool add) {
  const uint16_t* row[rows_of_tile];
  __m512 sum[rows_of_tile][NV];
#pragma GCC unroll 8
  for (int i = 0; i < rows_of_tile; ++i) {
    row[i] = rows[i];
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_setzero_ps();
  }
  for (int64_t l = 0; l < n; ++l, panel += stride) {
    const int64_t step = steps[l];
    __m512bh column[NV];
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) __builtin_prefetch(panel + 48 * stride + v * lanes);
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) column[v] = (__m512bh)_mm512_loadu_si512(panel + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < rows_of_tile; ++i) {
      int32_t pair;
      __builtin_memcpy(&pair, row[i] + step, sizeof(pair));
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], x, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows_of_tile; ++i)
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) {
      float* to = out + i * out_stride + v * lanes;
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum[i][v]) : sum[i][v]);
    }
}

static void tile(const uint16_t* const* rows, const int64_t* steps, int64_t n, const Pair* panel, int64_t stride,
                 int vectors, float* out, int64_t out_stride, bool add) {
  if (vectors == 3)
    tile_of<3>(rows, steps, n, panel, stride, out, out_stride, add);
  else if (vectors == 2)
    tile_of<2>(rows, steps, n, panel, stride, out, out_stride, add);
  else
    tile_of<1>(rows, steps, n, panel, stride, out, out_stride, add);
}

static inline __mmask16 first_of(int64_t n) { return n >= lanes ? 0xffff : __mmask16((1 << n) - 1); }

// Each lane's low half of a, and of b above it.
static inline __attribute__((always_inline)) __m512i above(__m512i a, __m512i b) {
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

static inline __attribute__((always_inline)) __m512i rounded(__mmask16 in, const float* x) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, x)));
}

static void round(const float* a, const float* b, int64_t n, Pair* out) {
  for (int64_t j = 0; j < n; j += lanes) {
    const __mmask16 in = first_of(n - j);
    _mm512_mask_storeu_epi32(out + j, in, above(rounded(in, a + j), b ? rounded(in, b + j) : _mm512_setzero_si512()));
  }
}

static void join(const uint16_t* a, const uint16_t* b, int64_t n, Pair* out) {
  for (int64_t j = 0; j < n; j += lanes) {
    const __mmask16 in = first_of(n - j);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, a + j));
    const __m512i high = b ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, b + j)) : _mm512_setzero_si512();
    _mm512_mask_storeu_epi32(out + j, in, above(low, high));
  }
}

static void shorten(float* x, int64_t n) {
  for (int64_t j = 0; j < n; j += lanes) {
    const __mmask16 in = first_of(n - j);
    _mm512_mask_storeu_epi32(x + j, in, _mm512_slli_epi32(rounded(in, x + j), 16));
  }
}

static void narrow(const float* x, int64_t n, uint16_t* out) {
  for (int64_t j = 0; j < n; j += lanes) {
    const __mmask16 in = first_of(n - j);
    _mm256_mask_storeu_epi16(out + j, in, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, x + j)));
  }
}

// The processor's word for it; whether the system keeps AVX-512 registers is asked with AVX-512.
static bool available() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

}  // namespace avx512bf16

const PairUnit* avx512bf16_unit() {
  static const PairUnit unit = {"avx512bf16",      avx512bf16::lanes, avx512bf16::rows_of_tile, avx512bf16::tile,
                                avx512bf16::round, avx512bf16::join,  avx512bf16::narrow,       avx512bf16::shorten};
  static const bool there = avx512bf16::available();
  return there ? &unit : nullptr;
}

}  // namespace hebbkern

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace hebbkern {
const PairUnit* avx512bf16_unit() { return nullptr; }
}  // namespace hebbkern

#endif
