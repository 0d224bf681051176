// moments: means, norms and sums of patches and of rows of weights.
#include "cuda/ops/moments.cuh"

#include "cuda/device/values.cuh"

namespace hebbkern {
namespace {

constexpr int warps = 8;   // a block: 8 rows are read side by side; 4 blocks, of 64 registers, hide the loads
constexpr int held = 256;  // entries whose place in an image is worked out at a time, one by each thread
// Lanes that read a patch: all of a row, where neighbours are entries; of an image eight, beside three more patches,
// where neighbours are either.
constexpr int of_image = 8;

template <class S>
__device__ __forceinline__ int lanes_of(const PatchView<S>& view) {
  return view.flat ? 32 : of_image;
}

// Of the lanes that read the same patch.
template <class T>
__device__ __forceinline__ T sum_of(T value, int lanes) {
  for (int apart = 16; apart >= 32 / lanes; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

template <class T>
__device__ __forceinline__ T highest_of(T value, int lanes) {
  for (int apart = 16; apart >= 32 / lanes; apart /= 2) {
    const T other = __shfl_xor_sync(~0u, value, apart);
    value = other > value ? other : value;
  }
  return value;
}

// Calls f(number) for each entry of the patch that this lane reads. Every thread of the block calls it.
template <class T, class S, class F>
__device__ __forceinline__ void each_entry(const PatchView<S>& view, const Corner& corner, Tap* taps, const F& f) {
  const int lane = int(threadIdx.x) % 32;
  if (view.flat) {
#pragma unroll 4
    for (int entry = lane; entry < view.inputs; entry += 32) f(T(wide(view.x[corner.start + entry * view.channel])));
    return;
  }
  for (int first = 0; first < view.inputs; first += held) {
    const int left = view.inputs - first < held ? view.inputs - first : held;
    __syncthreads();  // no thread reads the earlier ones
    if (int(threadIdx.x) < left) taps[threadIdx.x] = view.tap(first + int(threadIdx.x));
    __syncthreads();
#pragma unroll 4
    for (int n = lane * of_image / 32; n < left; n += of_image) f(T(wide(view.load(corner, taps[n]))));
  }
}

template <class T>
struct Measured {
  T total, mean, norm, spread;  // spread: the norm about the mean
};

// No square overflows or vanishes: entries are divided by the largest first.
template <class T, class S>
__device__ __forceinline__ Measured<T> moments_of(const PatchView<S>& view, int patch, bool centre, Tap* taps) {
  const int lanes = lanes_of(view);
  const Corner corner = view.corner(patch);
  T total = 0, largest = 0;
  each_entry<T>(view, corner, taps, [&](T value) {
    const T size = value < 0 ? -value : value;
    total += value;
    largest = size > largest ? size : largest;
  });
  total = sum_of(total, lanes);
  largest = highest_of(largest, lanes);
  const T mean = total / T(view.inputs), unit = largest == 0 ? T(1) : largest;
  T squares = 0, spread = 0, slip = 0;
  each_entry<T>(view, corner, taps, [&](T value) {
    const T share = value / unit, apart = centre ? (value - mean) / unit : T(0);
    squares += share * share;
    slip += apart;
    spread += apart * apart;
  });
  squares = sum_of(squares, lanes);
  spread = sum_of(spread, lanes);
  slip = sum_of(slip, lanes) / T(view.inputs);  // the mean was rounded: what it leaves of the sum is made good
  const T rest = spread - slip * slip * T(view.inputs);
  return {total, mean + slip * unit, T(std::sqrt(squares)) * unit, T(std::sqrt(rest > 0 ? rest : T(0))) * unit};
}

// Patches that a block measures.
template <class S>
int64_t measured(const PatchView<S>& view) {
  return view.flat ? warps : warps * 32 / of_image;
}

// The first `of_patches` blocks measure patches, the others rows.
template <class S, class W, class T>
__global__ void __launch_bounds__(32 * warps, 4)
    moments_kernel(PatchView<S> view, PatchView<W> rows, T* offset, T* scale, T* total, T* inverse, bool unit,
                   int of_patches) {
  __shared__ Tap taps[held];
  const int block = int(blockIdx.x), lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  if (block < of_patches) {
    const int together = 32 / lanes_of(view), patch = (block * warps + warp) * together + lane % together;
    const int there = patch < view.patches ? patch : view.patches - 1;  // past the last it is measured again
    const Measured<T> of = moments_of<T>(view, there, offset != nullptr, taps);
    if (lane >= together || patch >= view.patches) return;
    if (offset) offset[patch] = of.mean;
    if (scale) scale[patch] = scale_of(offset ? of.spread : of.norm, of.norm, unit);
  } else {
    const int row = (block - of_patches) * warps + warp;
    const Measured<T> of = moments_of<T>(rows, row < rows.patches ? row : rows.patches - 1, false, taps);
    if (lane > 0 || row >= rows.patches) return;
    if (total) total[row] = of.total;
    if (inverse) inverse[row] = inverse_length(of.norm);
  }
}

}  // namespace

template <class S, class W, class T>
Moments<T> moments(const char* op, const Device& device, const Tensor& like, const PatchView<S>& view, Patches kind,
                   const PatchView<W>* rows, bool unit) {
  Moments<T> result;
  OptionalTensor scales;
  const auto numbers = [&](int64_t count, bool wanted) -> T* {
    if (!wanted) return nullptr;
    result.memory.push_back(empty_like(like, {count}, result_dtype(like.scalar_type())));
    return pointer<T>(result.memory.back());
  };
  const bool centre = kind != Patches::raw;
  result.offset = numbers(view.patches, centre);
  result.scale = numbers(view.patches, unit || centre);
  if (result.scale) scales = result.memory.back();
  result.total = numbers(rows ? rows->patches : 0, rows && centre);
  result.inverse = numbers(rows ? rows->patches : 0, rows && unit);
  const int64_t of_patches = result.offset || result.scale ? cdiv(view.patches, measured(view)) : 0;
  const int64_t of_rows = result.total || result.inverse ? cdiv(rows->patches, warps) : 0;
  const PatchView<W> none(nullptr, 0, 1);
  launch<moments_kernel<S, W, T>>("moments", dim3(unsigned(of_patches + of_rows)), 32 * warps, 0, device, view,
                                  rows ? *rows : none, result.offset, result.scale, result.total, result.inverse,
                                  unit || kind == Patches::standardised, int(of_patches));
  if (scales) require_norms(op, *scales);
  return result;
}

#define MOMENTS(S, W, T)                                                                                        \
  template Moments<T> moments<S, W, T>(const char*, const Device&, const Tensor&, const PatchView<S>&, Patches, \
                                       const PatchView<W>*, bool);
MOMENTS(float, float, float)
MOMENTS(double, double, double)
MOMENTS(BFloat16, BFloat16, float)
MOMENTS(BFloat16, float, float)
MOMENTS(Half, Half, float)
MOMENTS(Half, float, float)
#undef MOMENTS

}  // namespace hebbkern
