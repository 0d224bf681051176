// How a block of nearest_patch's search brings neurons and patches on chip, a ring of steps of 16 to 32 entries, and
// multiplies them.
#pragma once

#include <bit>

#include "cuda/device/patch_view.cuh"
#include "cuda/device/ptx.cuh"

namespace hebbkern {
namespace {

// A lane sums 4 x 8 products in registers: 32 of them for 12 numbers that it reads. A warp has all patches of a tile
// for its neurons, so that it can tell their nearest without another.
constexpr int lane_neurons = 4, lane_patches = 8;
constexpr int warp_neurons = 4 * lane_neurons, tile_patches = 8 * lane_patches;
constexpr int tile_warps = 4, tile_threads = 32 * tile_warps, tile_neurons = tile_warps * warp_neurons;

// Numbers that are stored as they are computed with go to chip by themselves, two steps ahead of those that are
// multiplied. Half types are widened on their way, one step ahead; the other block of a multiprocessor goes on
// meanwhile.
template <class S, class T>
constexpr bool by_itself = std::is_same_v<S, T>;
template <class S, class T>
constexpr int stages = by_itself<S, T> ? 3 : 2;
template <class S>
constexpr int of_lane = 16 / sizeof(S);  // entries of a row that a lane brings a step: 128 bits
template <class S>
constexpr int entries = 4 * of_lane<S>;  // of a step
template <class T>
constexpr int of_group = 16 / sizeof(T);
// From row to row on chip: the 128 bits that eight neighbouring rows hold of the same entries lie in different banks.
template <class S, class T>
constexpr int pitch = entries<S> + of_group<T>;

// 128 bits.
template <class T>
struct alignas(16) Group {
  T of[16 / sizeof(T)];
};

// Which lane multiplies what: neighbours, and those sixteen apart, read few rows at once.
struct Lane {
  const int number = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  // Neurons neuron() + 4 i of a warp.
  __device__ __forceinline__ int neuron() const { return number % 2 + number / 16 * 2; }
  // Patches patch() + 8 j of a tile.
  __device__ __forceinline__ int patch() const { return number / 2 % 8; }
};

// One factor: ROWS rows, of which every thread brings its part. Where entries lie side by side four lanes take those of
// a row; else a warp takes four entries of eight neighbouring rows, so that it reads few lines.
template <class S, class T, int ROWS>
struct Factor {
  static constexpr int passes = ROWS * 4 / tile_threads;
  static_assert(passes * tile_threads == ROWS * 4);
  const PatchView<S>& view;
  const bool groups;

  __device__ __forceinline__ Factor(const PatchView<S>& view, bool groups) : view(view), groups(groups) {}

  __device__ __forceinline__ int row(int pass) const {
    const int lane = int(threadIdx.x) % 32;
    return pass * (tile_threads / 4) + int(threadIdx.x) / 32 * 8 + (groups ? lane / 4 : lane % 8);
  }
  // Its n-th entry of the step, of those that this lane brings.
  __device__ __forceinline__ int entry(int n) const {
    const int lane = int(threadIdx.x) % 32;
    return groups ? lane % 4 * of_lane<S> + n : n * 4 + lane / 8;
  }
  // Entries from `entry` on of the rows from `first` on; past the last they repeat it. Of images: `taps` of the step.
  // Corners are found anew each step: that is a few instructions for hundreds of products, and no registers.
  __device__ __forceinline__ void start(int first, int step, T* to, const Tap* taps) {
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      const int own = first + row(pass);
      const Corner corner = view.corner(own < view.patches ? own : view.patches - 1);
      if (groups)
        start_group(corner, step + entry(0), to + row(pass) * pitch<S, T> + entry(0));
      else
        start_each(corner, step, to + row(pass) * pitch<S, T>, taps);
    }
  }

 private:
  __device__ __forceinline__ void start_group(const Corner& corner, int first, T* to) {
    const S* const from = view.x + corner.start + first;
    const bool there = first < view.inputs;
    if constexpr (by_itself<S, T>) {
      cp_async_zfill<16>(to, there ? from : view.x, there ? 16 : 0);
    } else {
      const uint4 four = there ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int n = 0; n < of_lane<S>; ++n) to[n] = wide(std::bit_cast<S>(uint16_t(words[n / 2] >> (16 * (n % 2)))));
    }
  }
  __device__ __forceinline__ void start_each(const Corner& corner, int first, T* to, const Tap* taps) {
    const S* const from = view.x + corner.start;
#pragma unroll(by_itself<S, T> ? 1 : 4)  // few addresses at a time: registers are the sums'
    for (int n = 0; n < of_lane<S>; ++n) {
      const int at = first + entry(n);
      const Tap tap = view.flat ? Tap{int64_t(at) * view.channel, 0, 0} : taps[entry(n)];
      const bool there = at < view.inputs && view.in_image(corner, tap);
      if constexpr (by_itself<S, T>)
        cp_async_zfill<sizeof(T)>(to + entry(n), there ? from + tap.offset : view.x, there ? sizeof(T) : 0);
      else
        to[entry(n)] = wide(there ? from[tap.offset] : S(0));
    }
  }
};

// Adds the products of a step; each sum goes over the entries in their order, whatever the tiles.
template <class S, class T>
__device__ __forceinline__ void multiply(const T* neurons, const T* patches, T (&sums)[lane_neurons][lane_patches]) {
#pragma unroll
  for (int first = 0; first < entries<S>; first += of_group<T>) {
    Group<T> w[lane_neurons];
#pragma unroll
    for (int i = 0; i < lane_neurons; ++i)
      w[i] = *reinterpret_cast<const Group<T>*>(neurons + 4 * i * pitch<S, T> + first);
#pragma unroll
    for (int j = 0; j < lane_patches; ++j) {
      const Group<T> x = *reinterpret_cast<const Group<T>*>(patches + 8 * j * pitch<S, T> + first);
#pragma unroll
      for (int i = 0; i < lane_neurons; ++i)
#pragma unroll
        for (int n = 0; n < of_group<T>; ++n) sums[i][j] += w[i].of[n] * x.of[n];
    }
  }
}

}  // namespace
}  // namespace hebbkern
