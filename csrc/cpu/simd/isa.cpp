// Chooses the widest instruction set this processor has; HEBBKERN_CPU=baseline|avx2|avx512|avx512bf16|amx
// limits the choice.
#include <cstdlib>
#include <cstring>

#include "cpu/products/matrix.h"
#include "cpu/products/pairs.h"
#include "cpu/simd/kernels.h"

namespace hebbkern {

#define HEBBKERN_DECLARE(isa)       \
  namespace isa {                   \
  const Kernels<float>* floats();   \
  const Kernels<double>* doubles(); \
  }
HEBBKERN_DECLARE(baseline)
#if defined(__x86_64__)
HEBBKERN_DECLARE(avx2)
HEBBKERN_DECLARE(avx512)
#endif
#undef HEBBKERN_DECLARE
const MatrixUnit* amx_unit();
const PairUnit* avx512bf16_unit();

// 0 baseline, 1 AVX2, 2 AVX-512, 3 AVX-512 BF16 too, 4 AMX too.
static int widest() {
#if defined(__x86_64__)
  int has = 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) has = 1;
  if (has && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    has = !avx512bf16_unit() ? 2 : !amx_unit() ? 3 : 4;
  if (const char* asked = std::getenv("HEBBKERN_CPU")) {
    const char* const names[] = {"baseline", "avx2", "avx512", "avx512bf16"};
    for (int limit = 0; limit < 4; ++limit)
      if (std::strcmp(asked, names[limit]) == 0) has = has < limit ? has : limit;
  }
  return has;
#else
  return 0;
#endif
}

static int chosen() {
  static const int isa = widest();
  return isa;
}

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  return chosen() >= 2 ? *avx512::floats() : chosen() == 1 ? *avx2::floats() : *baseline::floats();
#else
  return *baseline::floats();
#endif
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  return chosen() >= 2 ? *avx512::doubles() : chosen() == 1 ? *avx2::doubles() : *baseline::doubles();
#else
  return *baseline::doubles();
#endif
}

const PairUnit* pair_unit() { return chosen() >= 3 ? avx512bf16_unit() : nullptr; }
const MatrixUnit* matrix_unit() { return chosen() == 4 ? amx_unit() : nullptr; }

}  // namespace hebbkern
