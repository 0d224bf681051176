// AVX2 + FMA: 4 x 3 accumulators + 3 columns + 1 broadcast fill 16 registers of 32 bytes.
#if defined(__x86_64__)
#include "cpu/simd/kernels.h"

#define HEBBKERN_ISA avx2
#define HEBBKERN_ISA_NAME "avx2"
#define HEBBKERN_VECTOR_BYTES 32
#define HEBBKERN_TILE_ROWS 4
#define HEBBKERN_TILE_VECTORS 3

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include "cpu/simd/isa.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
