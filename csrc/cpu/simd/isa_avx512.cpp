// AVX-512: 8 x 3 accumulators + 3 columns + 1 broadcast use 28 of 32 registers of 64 bytes; 24 multiply-adds a step
// against 11 loads keep both multiply-add ports busy.
#if defined(__x86_64__)
#include "cpu/simd/kernels.h"

#if !defined(__clang__)  // GCC 12 warns of its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#define HEBBKERN_ISA avx512
#define HEBBKERN_ISA_NAME "avx512"
#define HEBBKERN_VECTOR_BYTES 64
#define HEBBKERN_TILE_ROWS 8
#define HEBBKERN_TILE_VECTORS 3

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#include "cpu/simd/isa.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
