// moments: means, norms and sums of patches and of rows of weights, a warp to each.
#include "moments.cuh"

#include "values.cuh"

namespace hebbkern {
namespace {

constexpr int warps = 8;  // a block: 8 patches are read side by side, and 8 blocks fill a multiprocessor

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

template <class T>
__device__ __forceinline__ T highest_of_warp(T value) {
  for (int apart = 16; apart > 0; apart /= 2) {
    const T other = __shfl_xor_sync(~0u, value, apart);
    value = other > value ? other : value;
  }
  return value;
}

template <class T>
struct Found {
  T total, mean, norm, spread;  // spread: the norm about the mean
};

// No square overflows or vanishes: entries are divided by the largest first.
template <class T, class S>
__device__ __forceinline__ Found<T> moments_of(const Place<S>& place, int patch, bool centre) {
  const int lane = int(threadIdx.x) % 32;
  const Corner corner = place.corner(patch);
  T total = 0, largest = 0;
  for (int entry = lane; entry < place.inputs; entry += 32) {
    const T value = T(wide(place.load(corner, place.tap(entry)))), size = value < 0 ? -value : value;
    total += value;
    largest = size > largest ? size : largest;
  }
  total = sum_of_warp(total);
  largest = highest_of_warp(largest);
  const T mean = total / T(place.inputs), unit = largest == 0 ? T(1) : largest;
  T squares = 0, spread = 0, slip = 0;
  for (int entry = lane; entry < place.inputs; entry += 32) {
    const T value = T(wide(place.load(corner, place.tap(entry)))), share = value / unit;
    squares += share * share;
    if (!centre) continue;
    const T apart = (value - mean) / unit;
    slip += apart;
    spread += apart * apart;
  }
  squares = sum_of_warp(squares);
  spread = sum_of_warp(spread);
  slip = sum_of_warp(slip) / T(place.inputs);  // the mean was rounded: what it leaves of the sum is made good
  const T rest = spread - slip * slip * T(place.inputs);
  return {total, mean + slip * unit, T(std::sqrt(squares)) * unit, T(std::sqrt(rest > 0 ? rest : T(0))) * unit};
}

template <class S, class W, class T>
__global__ void __launch_bounds__(32 * warps) moments_kernel(Place<S> place, Place<W> rows, T* offset, T* scale,
                                                             T* total, T* inverse, bool standard, int of_patches) {
  const int item = int(blockIdx.x) * warps + int(threadIdx.x) / 32;
  const bool first = threadIdx.x % 32 == 0;
  if (item < of_patches) {
    if (item >= place.patches) return;
    const Found<T> found = moments_of<T>(place, item, offset != nullptr);
    if (!first) return;
    if (offset) offset[item] = found.mean;
    const T length = offset ? found.spread : found.norm;
    if (scale) scale[item] = standard ? standard_scale(length, found.norm) : length == 0 ? T(0) : T(1) / length;
  } else {
    const int row = item - of_patches;
    if (row >= rows.patches) return;
    const Found<T> found = moments_of<T>(rows, row, false);
    if (!first) return;
    if (total) total[row] = found.total;
    if (inverse) inverse[row] = found.norm == 0 ? T(0) : T(1) / found.norm;
  }
}

}  // namespace

template <class S, class W, class T>
Moments<T> moments(const char* op, const Device& device, const Tensor& like, const Place<S>& place, Patches kind,
                   const Place<W>* rows, bool unit) {
  Moments<T> found;
  OptionalTensor scales;
  const auto numbers = [&](int64_t count, bool wanted) -> T* {
    if (!wanted) return nullptr;
    found.memory.push_back(empty_like(like, {count}, result_dtype(like.scalar_type())));
    return pointer<T>(found.memory.back());
  };
  const bool centre = kind != Patches::raw, standard = kind == Patches::standardised;
  found.offset = numbers(place.patches, centre);
  found.scale = numbers(place.patches, unit || standard);
  if (found.scale) scales = found.memory.back();
  found.total = numbers(rows ? rows->patches : 0, rows && centre);
  found.inverse = numbers(rows ? rows->patches : 0, rows && unit);
  const int64_t of_patches = found.offset || found.scale ? cdiv(place.patches, warps) : 0;
  const int64_t of_rows = found.total || found.inverse ? cdiv(rows->patches, warps) : 0;
  const Place<W> none(nullptr, 0, 1);
  launch<moments_kernel<S, W, T>>("moments", dim3(unsigned(of_patches + of_rows)), 32 * warps, 0, device, place,
                                  rows ? *rows : none, found.offset, found.scale, found.total, found.inverse, standard,
                                  int(of_patches) * warps);
  if (scales) require_norms(op, *scales);
  return found;
}

#define MOMENTS(S, W, T)                                                                                    \
  template Moments<T> moments<S, W, T>(const char*, const Device&, const Tensor&, const Place<S>&, Patches, \
                                       const Place<W>*, bool);
MOMENTS(float, float, float)
MOMENTS(double, double, double)
MOMENTS(BFloat16, BFloat16, float)
MOMENTS(BFloat16, float, float)
MOMENTS(Half, Half, float)
MOMENTS(Half, float, float)
#undef MOMENTS

}  // namespace hebbkern
