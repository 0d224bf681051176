// AMX: tiles of 16 x 32 bf16, products of two of them added to 16 x 16 float32. Four accumulators, two tiles of neurons
// and two of patches use all eight registers: four multiplications (16 cycles each) for four loads (8 cycles each).
#include "matrix.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 13 : __GNUC__ >= 11)

#if !defined(__clang__)  // GCC 12 warns of its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#endif

namespace hebbkern {
namespace amx {

constexpr int64_t tile = 512;  // bf16 entries of a tile

static inline float sum(__m512 v) { return _mm512_reduce_add_ps(v); }

static bool pack(const float* x, const Stretch* stretches, int64_t count, float shift, int64_t padded, uint16_t* out,
                 float* squares) {
  const __m512 shifts = _mm512_set1_ps(shift);
  __m512 all = _mm512_setzero_ps(), rest = all;
  __mmask16 any = 0;
  uint16_t* to = out;
  for (int64_t s = 0; s < count; ++s) {
    const float* from = x + stretches[s].offset;
    const int64_t length = stretches[s].length;
    for (int64_t n = 0; n < length; n += 16) {
      const __mmask16 in = length - n >= 16 ? 0xffff : __mmask16((1 << (length - n)) - 1);
      const __m512 entry = _mm512_maskz_loadu_ps(in, from + n);
      any |= _mm512_test_epi32_mask(_mm512_castps_si512(entry), _mm512_set1_epi32(0x7fffffff));
      const __m512 v = _mm512_maskz_sub_ps(in, entry, shifts);
      const __m256bh rounded = _mm512_cvtneps_pbh(v);
      const __m256i bits = (__m256i)rounded;
      const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      const __m512 off = _mm512_sub_ps(v, back);
      all = _mm512_fmadd_ps(v, v, all);
      rest = _mm512_fmadd_ps(off, off, rest);
      _mm256_storeu_si256((__m256i*)(to + n), bits);  // past a short stretch the next one writes
    }
    to += length;
  }
  for (; to < out + padded; ++to) *to = 0;
  squares[0] = sum(all);
  squares[1] = sum(rest);
  return any != 0;
}

// Rows H apart exchange the blocks off their diagonal, H wide: four such stages transpose 16 x 16.
template <int H>
static inline __attribute__((always_inline)) void exchange(__m512i* v) {
  alignas(64) static const struct Lanes {
    int32_t low[16], high[16];
    constexpr Lanes() : low(), high() {
      for (int lane = 0; lane < 16; ++lane) {
        low[lane] = lane & H ? 16 + lane - H : lane;
        high[lane] = lane & H ? 16 + lane : lane + H;
      }
    }
  } lanes;
  const __m512i low = _mm512_load_si512(lanes.low), high = _mm512_load_si512(lanes.high);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if (!(i & H)) {
      const __m512i a = v[i], b = v[i + H];
      v[i] = _mm512_permutex2var_epi32(a, low, b);
      v[i + H] = _mm512_permutex2var_epi32(a, high, b);
    }
}

static void interleave(const uint16_t* rows, int64_t padded, uint16_t* tiles) {
  for (int64_t n = 0; n < padded; n += 32, tiles += tile) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) v[r] = _mm512_loadu_si512(rows + r * padded + n);
    exchange<8>(v);
    exchange<4>(v);
    exchange<2>(v);
    exchange<1>(v);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) _mm512_store_si512(tiles + r * 32, v[r]);
  }
}

// A x B accumulators: tiles 0 to 3, neurons in 4 and 5, patches in 6 and 7. `back`: from the last step to the first.
template <int A, int B>
static inline __attribute__((always_inline)) void block(const uint16_t* neurons, const uint16_t* patches, int64_t steps,
                                                        bool back, float* out, int64_t rows) {
  _tile_zero(0);
  if (B == 2) _tile_zero(1);
  if (A == 2) _tile_zero(2);
  if (A == 2 && B == 2) _tile_zero(3);
  const int64_t next = steps * tile, step = back ? -tile : tile, at = back ? (steps - 1) * tile : 0;
  neurons += at;
  patches += at;
  for (int64_t s = 0; s < steps; ++s, neurons += step, patches += step) {
    _tile_loadd(4, neurons, 64);
    _tile_loadd(6, patches, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (B == 2) {
      _tile_loadd(7, patches + next, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (A == 2) {
      _tile_loadd(5, neurons + next, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (A == 2 && B == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  if (B == 2) _tile_stored(1, out + rows * 16, 64);
  if (A == 2) _tile_stored(2, out + 256, 64);
  if (A == 2 && B == 2) _tile_stored(3, out + rows * 16 + 256, 64);
}

static void products(const uint16_t* neurons, int64_t groups, const uint16_t* patches, int pair, int64_t steps,
                     float* out) {
  alignas(64) static const struct Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  _tile_loadconfig(&shape);
  __asm__ volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory
  for (int64_t g = 0; g < groups; g += 2) {
    const uint16_t* at = neurons + g * steps * tile;
    // To and fro: the patches that the last pair of groups ended with are still in L1.
    const bool back = g & 2, two = g + 1 < groups;
    float* to = out + g * 256;
    if (two && pair == 2)
      block<2, 2>(at, patches, steps, back, to, groups * 16);
    else if (two)
      block<2, 1>(at, patches, steps, back, to, groups * 16);
    else if (pair == 2)
      block<1, 2>(at, patches, steps, back, to, groups * 16);
    else
      block<1, 1>(at, patches, steps, back, to, groups * 16);
  }
  _tile_release();
}

// Puts a row of lower bounds into each patch's k highest.
template <int K>
static inline __attribute__((always_inline)) void raise(__m512 lower, __m512* top, int k) {
  for (int i = 0; i < (K ? K : k); ++i) {
    const __m512 beaten = _mm512_min_ps(top[i], lower);
    top[i] = _mm512_max_ps(top[i], lower);
    lower = beaten;
  }
}

template <int K>
static void raise_all(const float* responses, int neurons, const float* error, int k, Race* race) {
  const __m512 size = _mm512_load_ps(race->size);
  __m512 top[Race::most];
  for (int i = 0; i < k; ++i) top[i] = _mm512_load_ps(race->top[i]);
  for (int j = 0; j < neurons; ++j) {
    const __m512 lower = _mm512_fnmadd_ps(size, _mm512_set1_ps(error[j]), _mm512_load_ps(responses + j * 16));
    if (K || _mm512_cmp_ps_mask(lower, top[k - 1], _CMP_GT_OQ)) raise<K>(lower, top, k);
  }
  for (int i = 0; i < k; ++i) _mm512_store_ps(race->top[i], top[i]);
}

// Makes room in a full list: those whom the bound has since overtaken go. True if there is room now.
static __attribute__((noinline)) bool thin(int32_t* count, float least, int32_t* who, float* upper) {
  int32_t kept = 0;
  for (int32_t i = 0; i < *count; ++i)
    if (!(upper[i] < least)) {
      who[kept] = who[i];
      upper[kept++] = upper[i];
    }
  const bool room = kept < *count;
  *count = room ? kept : *count + 1;
  return room;
}

static void scan(const float* responses, int neurons, const float* error, float slack, int k, int32_t first,
                 int capacity, Race* race, int32_t* who, float* upper) {
  if (k == 1)
    raise_all<1>(responses, neurons, error, k, race);
  else if (k == 2)
    raise_all<2>(responses, neurons, error, k, race);
  else
    raise_all<0>(responses, neurons, error, k, race);
  const __m512 size = _mm512_load_ps(race->size), top = _mm512_load_ps(race->top[k - 1]);
  const __m512 least =
      _mm512_sub_ps(_mm512_fnmadd_ps(_mm512_abs_ps(top), _mm512_set1_ps(0x1p-22f), top), _mm512_set1_ps(slack));
  for (int j = 0; j < neurons; ++j) {
    const __m512 high = _mm512_fmadd_ps(size, _mm512_set1_ps(error[j]), _mm512_load_ps(responses + j * 16));
    unsigned may = _mm512_cmp_ps_mask(high, least, _CMP_NLT_UQ);
    if (!may) continue;
    alignas(64) float highs[16], leasts[16];
    _mm512_store_ps(highs, high);
    _mm512_store_ps(leasts, least);
    for (; may; may &= may - 1) {
      const int p = __builtin_ctz(may);
      int32_t* count = &race->count[p];
      if (*count >= capacity &&
          (*count > capacity || !thin(count, leasts[p], who + p * capacity, upper + p * capacity)))
        continue;
      who[p * capacity + *count] = first + j;
      upper[p * capacity + (*count)++] = highs[p];
    }
  }
}

// Four inputs from each of 16 neurons: lane 4 q + j of column[n] is input n of w[4 q + j].
static inline __attribute__((always_inline)) void columns(const __m512* w, __m512* column) {
  const __m512 a = _mm512_unpacklo_ps(w[0], w[1]), b = _mm512_unpackhi_ps(w[0], w[1]);
  const __m512 c = _mm512_unpacklo_ps(w[2], w[3]), d = _mm512_unpackhi_ps(w[2], w[3]);
  column[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  column[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  column[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
  column[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
}

// Each 128-bit lane q is four neighbouring inputs of one row: at[q * step] + n, `in` of them.
static inline __attribute__((always_inline)) __m512 quads(const float* const* at, int step, int64_t n, __mmask8 in) {
  __m512 v = _mm512_castps128_ps512(_mm_maskz_loadu_ps(in, at[0] + n));
  v = _mm512_insertf32x4(v, _mm_maskz_loadu_ps(in, at[step] + n), 1);
  v = _mm512_insertf32x4(v, _mm_maskz_loadu_ps(in, at[2 * step] + n), 2);
  return _mm512_insertf32x4(v, _mm_maskz_loadu_ps(in, at[3 * step] + n), 3);
}

static inline __attribute__((always_inline)) __m512 quads(const float* const* at, int step, int64_t n) {
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(at[0] + n));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(at[step] + n));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(at[2 * step] + n));
  return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(at[3 * step] + n));
}

static inline __attribute__((always_inline)) __m512 add(__m512 total, __m512 x, const __m512* w) {
  __m512 column[4];
  columns(w, column);
  total = _mm512_fmadd_ps(_mm512_permute_ps(x, 0x00), column[0], total);
  total = _mm512_fmadd_ps(_mm512_permute_ps(x, 0x55), column[1], total);
  total = _mm512_fmadd_ps(_mm512_permute_ps(x, 0xaa), column[2], total);
  return _mm512_fmadd_ps(_mm512_permute_ps(x, 0xff), column[3], total);
}

static void rescore(const float* const* x, const float* const* w, const Stretch* stretches, int64_t count,
                    const float* offset, const float* wsum, float* out) {
  __m512 total = _mm512_setzero_ps();
  int64_t n = 0;  // of w
  for (int64_t s = 0; s < count; ++s) {
    const int64_t offset = stretches[s].offset, length = stretches[s].length;
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) {
      const __m512 rows[4] = {quads(w, 4, n + i), quads(w + 1, 4, n + i), quads(w + 2, 4, n + i),
                              quads(w + 3, 4, n + i)};
      total = add(total, quads(x, 1, offset + i), rows);
    }
    if (i < length) {  // 0 * 0 changes no sum
      const __mmask8 in = __mmask8((1 << (length - i)) - 1);
      const __m512 rows[4] = {quads(w, 4, n + i, in), quads(w + 1, 4, n + i, in), quads(w + 2, 4, n + i, in),
                              quads(w + 3, 4, n + i, in)};
      total = add(total, quads(x, 1, offset + i, in), rows);
    }
    n += length;
  }
  if (wsum) {
    const __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(offset));
    const __m512i quad = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    total = _mm512_fnmadd_ps(_mm512_permutexvar_ps(quad, four), _mm512_loadu_ps(wsum), total);
  }
  _mm512_storeu_ps(out, total);
}

// The processor's word for AMX and bf16, and the system's for this process (its tile registers are 8 kB a thread).
static bool available() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace amx

const MatrixUnit* amx_unit() {
  static const MatrixUnit unit = {"amx", amx::pack, amx::interleave, amx::products, amx::scan, amx::rescore};
  static const bool there = amx::available();
  return there ? &unit : nullptr;
}

}  // namespace hebbkern

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace hebbkern {
const MatrixUnit* amx_unit() { return nullptr; }
}  // namespace hebbkern

#endif
