// AMX: tiles of 16 x 32 bf16, products of two of them added to 16 x 16 float32. Four accumulators, two tiles of neurons
// and two of patches use all eight registers: four multiplications (16 cycles each) for four loads (8 cycles each).
#include "cpu/products/matrix.h"

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
#pragma clang attribute push(                                                                                   \
    __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi2,fma"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi2,fma,prefer-vector-width=512")
#endif

namespace hebbkern {
namespace amx {

constexpr int64_t tile = MatrixUnit::tile;

#include "cpu/simd/round.inc"

// A x B accumulators: tiles 0 to 3, neurons in 4 and 5, patches in 6 and 7. `add`: to what `out` holds. `stride`: from
// one group's tiles to the next one's.
template <int A, int B>
static inline __attribute__((always_inline)) void block(const uint16_t* neurons, const uint16_t* patches,
                                                        int64_t stride, int64_t steps, bool add, float* out,
                                                        int64_t rows) {
  if (add) {
    _tile_loadd(0, out, 64);
    if (B == 2) _tile_loadd(1, out + rows * 16, 64);
    if (A == 2) _tile_loadd(2, out + 256, 64);
    if (A == 2 && B == 2) _tile_loadd(3, out + rows * 16 + 256, 64);
  } else {
    _tile_zero(0);
    if (B == 2) _tile_zero(1);
    if (A == 2) _tile_zero(2);
    if (A == 2 && B == 2) _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s, neurons += tile, patches += tile) {
    _tile_loadd(4, neurons, 64);
    _tile_loadd(6, patches, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (B == 2) {
      _tile_loadd(7, patches + stride, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (A == 2) {
      _tile_loadd(5, neurons + stride, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (A == 2 && B == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  if (B == 2) _tile_stored(1, out + rows * 16, 64);
  if (A == 2) _tile_stored(2, out + 256, 64);
  if (A == 2 && B == 2) _tile_stored(3, out + rows * 16 + 256, 64);
}

static void begin() {
  alignas(64) static const struct Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  _tile_loadconfig(&shape);
}

static void end() { _tile_release(); }

static void products(const uint16_t* neurons, int64_t groups, const uint16_t* patches, int pair, int64_t steps,
                     float* out) {
  // Steps at a time: both groups' patches (16 kB) stay in L1 while the neurons come from L2.
  constexpr int64_t most = 8;
  const int64_t parts = (steps + most - 1) / most, part = (steps + parts - 1) / parts, stride = steps * tile;
  __asm__ volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory
  for (int64_t from = 0; from < steps; from += part) {
    const int64_t now = steps - from < part ? steps - from : part;
    for (int64_t g = 0; g < groups; g += 2) {
      const uint16_t *a = neurons + g * stride + from * tile, *b = patches + from * tile;
      float* to = out + g * 256;
      if (g + 1 < groups && pair == 2)
        block<2, 2>(a, b, stride, now, from > 0, to, groups * 16);
      else if (g + 1 < groups)
        block<2, 1>(a, b, stride, now, from > 0, to, groups * 16);
      else if (pair == 2)
        block<1, 2>(a, b, stride, now, from > 0, to, groups * 16);
      else
        block<1, 1>(a, b, stride, now, from > 0, to, groups * 16);
    }
  }
}

// Puts a row of lower bounds into each patch's k highest.
template <int K>
static inline __attribute__((always_inline)) void raise(__m512 lower, __m512* top) {
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    const __m512 beaten = _mm512_min_ps(top[i], lower);
    top[i] = _mm512_max_ps(top[i], lower);
    lower = beaten;
  }
}

// Chains of rows, C of them, hide the latency of a maximum (4 cycles).
template <int K, int C>
static void raise_all(const float* responses, int neurons, const float* error, ScanState* state) {
  const __m512 size = _mm512_load_ps(state->size);
  __m512 top[C][K];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) top[c][i] = c == 0 ? _mm512_load_ps(state->top[i]) : _mm512_set1_ps(-__builtin_inff());
  const auto lower = [&](int j) __attribute__((always_inline)) {
    return _mm512_fnmadd_ps(size, _mm512_set1_ps(error[j]), _mm512_load_ps(responses + j * 16));
  };
  int j = 0;
  for (; j + C <= neurons; j += C)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) raise<K>(lower(j + c), top[c]);
  for (; j < neurons; ++j) raise<K>(lower(j), top[0]);
#pragma GCC unroll 8
  for (int c = 1; c < C; ++c)
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) raise<K>(top[c][i], top[0]);
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) _mm512_store_ps(state->top[i], top[0][i]);
}

// Makes room in a full list: drops the neurons that the bound has overtaken since. True if there is room now.
static __attribute__((noinline)) bool thin(int32_t* count, float least, int32_t* candidates, float* upper) {
  int32_t kept = 0;
  for (int32_t i = 0; i < *count; ++i)
    if (!(upper[i] < least)) {
      candidates[kept] = candidates[i];
      upper[kept++] = upper[i];
    }
  const bool room = kept < *count;
  *count = room ? kept : *count + 1;
  return room;
}

alignas(64) static const uint16_t numbers[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

static void scan(const float* responses, int neurons, const float* error, int k, int32_t first, int capacity,
                 ScanState* state, int32_t* candidates, float* upper) {
  static void (*const raisers[ScanState::most])(const float*, int, const float*, ScanState*) = {
      raise_all<1, 4>, raise_all<2, 4>, raise_all<3, 2>, raise_all<4, 2>,
      raise_all<5, 1>, raise_all<6, 1>, raise_all<7, 1>, raise_all<8, 1>};
  raisers[k - 1](responses, neurons, error, state);
  const __m512 size = _mm512_load_ps(state->size), top = _mm512_load_ps(state->top[k - 1]);
  const __m512 least = _mm512_fnmadd_ps(_mm512_abs_ps(top), _mm512_set1_ps(0x1p-22f), top);
  alignas(64) float leasts[16];
  _mm512_store_ps(leasts, least);
  // The neurons that may win: places in `responses`, written without a branch, as every second row has one.
  alignas(64) uint16_t places[ScanState::chunk * 16 + 32];
  __m512i place = _mm512_load_si512(numbers);
  int64_t listed = 0;
  for (int j = 0; j < neurons; j += 2) {  // an odd number of rows is followed by padding
    __mmask32 may = 0;
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      const __m512 high = _mm512_fmadd_ps(size, _mm512_set1_ps(error[j + r]), _mm512_load_ps(responses + (j + r) * 16));
      may |= __mmask32(_mm512_cmp_ps_mask(high, least, _CMP_NLT_UQ)) << (16 * r);
    }
    _mm512_storeu_si512(places + listed, _mm512_maskz_compress_epi16(may, place));
    listed += __builtin_popcount(may);
    place = _mm512_add_epi16(place, _mm512_set1_epi16(32));
  }
  for (int64_t i = 0; i < listed; ++i) {
    const int at = places[i], p = at & 15, j = at >> 4;
    int32_t* count = &state->count[p];
    const int list = p * capacity;
    if (j >= neurons ||
        (*count >= capacity && (*count > capacity || !thin(count, leasts[p], candidates + list, upper + list))))
      continue;
    candidates[list + *count] = first + j;
    upper[list + (*count)++] = __builtin_fmaf(state->size[p], error[j], responses[at]);
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

// Lane q of four is four neighbouring inputs of row at[q * step], from n on; `in` of them where they are fewer.
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

// Four inputs of 8 pairs, or the first `inputs` of them (a zero more would turn a sum of -0 into 0): lane q holds pair
// 2 q (its patch in a) and pair 2 q + 1 (its patch in b).
template <class... In>
static inline __attribute__((always_inline)) __m512 add(__m512 total, const float* const* x, int64_t at,
                                                        const float* const* w, int64_t n, int64_t inputs, In... in) {
  const __m512 rows[4] = {quads(w, 4, n, in...), quads(w + 1, 4, n, in...), quads(w + 2, 4, n, in...),
                          quads(w + 3, 4, n, in...)};
  const __m512 a = quads(x, 2, at, in...), b = quads(x + 1, 2, at, in...);
  __m512 column[4];
  columns(rows, column);
  total = _mm512_fmadd_ps(_mm512_shuffle_ps(a, b, 0x00), column[0], total);
  if (inputs > 1) total = _mm512_fmadd_ps(_mm512_shuffle_ps(a, b, 0x55), column[1], total);
  if (inputs > 2) total = _mm512_fmadd_ps(_mm512_shuffle_ps(a, b, 0xaa), column[2], total);
  return inputs > 3 ? _mm512_fmadd_ps(_mm512_shuffle_ps(a, b, 0xff), column[3], total) : total;
}

static void rescore(const float* const* x, const float* const* w, const Stretch* stretches, int64_t count,
                    const float* offset, const float* wsum, float* out) {
  __m512 total = _mm512_setzero_ps();
  int64_t n = 0;  // of w
  for (int64_t s = 0; s < count; ++s) {
    const int64_t from = stretches[s].offset, length = stretches[s].length;
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) total = add(total, x, from + i, w, n + i, 4);
    if (i < length) total = add(total, x, from + i, w, n + i, length - i, __mmask8((1 << (length - i)) - 1));
    n += length;
  }
  if (wsum) {
    const __m512i pair = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512 offsets = _mm512_permutexvar_ps(pair, _mm512_castps256_ps512(_mm256_loadu_ps(offset)));
    total = _mm512_fnmadd_ps(offsets, _mm512_loadu_ps(wsum), total);
  }
  _mm512_storeu_ps(out, total);
}

// The processor's word for AMX and bf16, and the system's for this process (its tile registers are 8 kB a thread).
static bool available() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1) || !(c >> 6 & 1)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace amx

const MatrixUnit* amx_unit() {
  static const MatrixUnit unit = {"amx",      amx::pack, amx::round,    amx::lengths, amx::collect, amx::interleave,
                                  amx::begin, amx::end,  amx::products, amx::scan,    amx::rescore};
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
