// Products of bfloat16 numbers two at a time, summed in float32 (isa_avx512bf16.cpp).
#pragma once

#include <cstdint>

namespace hebbkern {

struct Pair {
  uint16_t first, second;  // bits of bfloat16
};

struct PairUnit {
  const char* name;
  int lanes;  // pairs of one vector
  int rows;   // rows of a register tile; its columns are those of Kernels<float>

  // Kernels<float>'s tile on pairs: out[i][0 .. vectors*lanes) (+)= sum over l < n of both products of the pair at
  // rows[i] + steps[l] with those at panel[l * stride ...], i < rows. Steps count bfloat16 entries. Numbers under
  // 2^-126 count as 0.
  void (*tile)(const uint16_t* const* rows, const int64_t* steps, int64_t n, const Pair* panel, int64_t stride,
               int vectors, float* out, int64_t out_stride, bool add);

  // out[j] = (a[j], b[j]) rounded to bfloat16, ties to even, j < n; b null: zeros.
  void (*round)(const float* a, const float* b, int64_t n, Pair* out);
  // The same of bfloat16 numbers.
  void (*join)(const uint16_t* a, const uint16_t* b, int64_t n, Pair* out);
  // out[j] = x[j] rounded, j < n.
  void (*narrow)(const float* x, int64_t n, uint16_t* out);
  // x[j] becomes the nearest bfloat16.
  void (*shorten)(float* x, int64_t n);
};

// Null where this processor has none, or HEBBKERN_CPU asks for less.
const PairUnit* pair_unit();

}  // namespace hebbkern
