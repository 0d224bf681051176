// Any processor: 16-byte vectors (SSE2, NEON). 4 x 3 accumulators + 3 columns + 1 broadcast fill 16 registers.
#include "cpu/simd/kernels.h"

#define HEBBKERN_ISA baseline
#define HEBBKERN_ISA_NAME "baseline"
#define HEBBKERN_VECTOR_BYTES 16
#define HEBBKERN_TILE_ROWS 4
#define HEBBKERN_TILE_VECTORS 3

#include "cpu/simd/isa.inc"
