// How a block of the walk brings patches and weights on chip, a ring of steps of 64 bytes of each, and multiplies them.
#pragma once

#include "cuda/device/ptx.cuh"
#include "cuda/device/response.cuh"
#include "cuda/ops/walk.cuh"

namespace hebbkern {
namespace {

// A lane sums 4 x 8 responses in registers: 32 products for 12 numbers that it reads. A warp owns all neurons of a tile
// for its patches, so that it can rank them without another.
constexpr int lane_patches = 4, lane_neurons = 8;
constexpr int warp_patches = 4 * lane_patches, tile_neurons = 8 * lane_neurons;
constexpr int stages = 3;  // a step is multiplied while two are on their way

template <class T>
constexpr int each = 16 / sizeof(T);  // numbers of a 128-bit load
template <class T>
constexpr int entries = 64 / sizeof(T);  // of a row in a step
// From row to row on chip: the 128 bits that eight neighbouring rows hold of the same entries lie in different banks.
template <class T>
constexpr int pitch = entries<T> + each<T>;

// 128 bits.
template <class T>
struct alignas(16) Group {
  T of[each<T>];
};

// Which lane holds what: neighbours (and those two apart) read the same numbers, which 128-bit reads are served at
// once.
struct Lane {
  const int number = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  // Patches group + 4 i of a warp.
  __device__ __forceinline__ int group() const { return number % 2 + number / 16 * 2; }
  // Neurons first + 8 j of a tile.
  __device__ __forceinline__ int first() const { return number / 2 % 8; }
};

// Arguments of the kernels of the walk.
template <class S, class T>
struct WalkArguments {
  PatchView<S> view;
  PatchView<T> rows;
  Known<T> known;
  Mask eligible;
  bool patches_in_groups, rows_in_groups;  // of 128 bits
  int share;                               // neurons of a block
  Divisor tiles;                           // of the patches of a group
};

// A chunk of the entries of a tile of neurons.
struct Step {
  int neuron, entry;
};

// What a thread copies. Where a row lies side by side four lanes take its 64 bytes; else a warp takes four entries of
// eight neighbouring patches, so that it reads few lines and writes different banks.
template <class S, class T>
struct TileLoader {
  const WalkArguments<S, T>& arguments;
  T* const ring;                  // [stages][the block's patches, then its neurons][pitch]
  Tap (*const taps)[entries<T>];  // of the step ahead, and in turn of the one before
  const int end;                  // of the block's neurons
  int to_patch, to_neuron;        // where the first number goes that this thread copies of each, in a step
  const S* from[2];               // where it is in two patches
  int down[2], right[2];          // and in their images
  S fetched[2][entries<T> / 4] = {};
  Step ahead;
  int stage = 0, slot = 0;  // of the step ahead

  __device__ __forceinline__ TileLoader(const WalkArguments<S, T>& arguments, T* ring, Tap (*taps)[entries<T>],
                                        int first, int last, int begin, int end)
      : arguments(arguments), ring(ring), taps(taps), end(end), ahead{begin, 0} {
    to_patch = own(arguments.patches_in_groups);
    to_neuron = patches() * pitch<T> + own(arguments.rows_in_groups);
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
      const int number = first + row(arguments.patches_in_groups) + pass * rows();
      const int patch = number < last ? number : last;  // past the last patch the tile repeats it
      const Corner corner = arguments.view.corner(patch);
      from[pass] = arguments.view.x + corner.start + (arguments.patches_in_groups ? of_group() : 0);
      down[pass] = corner.row;
      right[pass] = corner.column;
    }
    write_taps();
  }

  __device__ __forceinline__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ __forceinline__ static int patches() { return int(blockDim.x) / 2; }
  // Rows that the block copies at a time, which of them is this thread's, and which of its entries.
  __device__ __forceinline__ static int rows() { return int(blockDim.x) / 4; }
  __device__ __forceinline__ static int row(bool groups) {
    return int(threadIdx.x) / 32 * 8 + (groups ? lane() / 4 : lane() % 8);
  }
  __device__ __forceinline__ static int of_group() { return lane() % 4 * each<T>; }
  __device__ __forceinline__ static int own(bool groups) {
    return row(groups) * pitch<T> + (groups ? of_group() : lane() / 8);
  }
  __device__ __forceinline__ T* at(int stage) const { return ring + stage * (patches() + tile_neurons) * pitch<T>; }

  __device__ __forceinline__ void write_taps() const {
    const int entry = ahead.entry + int(threadIdx.x);
    if (!arguments.patches_in_groups && threadIdx.x < entries<T>) taps[slot][threadIdx.x] = arguments.view.tap(entry);
  }

  __device__ __forceinline__ void start_patches() {
    T* const to = at(stage) + to_patch;
    const int left = arguments.view.inputs - ahead.entry;
    if constexpr (std::is_same_v<S, T>)
      if (arguments.patches_in_groups) {
        const int bytes = of_group() < left ? 16 : 0;
        cp_async_zfill<16>(to, from[0] + ahead.entry, bytes);
        cp_async_zfill<16>(to + rows() * pitch<T>, from[1] + ahead.entry, bytes);
        return;
      }
#pragma unroll
    for (int i = 0; i < entries<T> / 4; ++i) {
      const int n = 4 * i + lane() / 8;
      const Tap tap = taps[slot][n];
#pragma unroll
      for (int pass = 0; pass < 2; ++pass) {
        const bool there = n < left && arguments.view.in_image({0, down[pass], right[pass]}, tap);
        const S* const number = from[pass] + tap.offset;
        if constexpr (std::is_same_v<S, T>)
          cp_async_zfill<sizeof(T)>(to + pass * rows() * pitch<T> + 4 * i, number, there ? sizeof(T) : 0);
        else
          fetched[pass][i] = there ? *number : S(0);
      }
    }
  }

  __device__ __forceinline__ void start_neurons() const {
    T* to = at(stage) + to_neuron;
    const int left = arguments.rows.inputs - ahead.entry;
    for (int within = row(arguments.rows_in_groups); within < tile_neurons; within += rows(), to += rows() * pitch<T>) {
      const int neuron = ahead.neuron + within < end ? ahead.neuron + within : end - 1;
      const T* const numbers = arguments.rows.x + int64_t(neuron) * arguments.rows.inputs + ahead.entry;
      if (arguments.rows_in_groups) {
        cp_async_zfill<16>(to, numbers + of_group(), of_group() < left ? 16 : 0);
        continue;
      }
#pragma unroll
      for (int n = 0; n < entries<T>; n += 4)
        cp_async_zfill<sizeof(T)>(to + n, numbers + n + lane() / 8, n + lane() / 8 < left ? sizeof(T) : 0);
    }
  }

  // Starts the copies of the next step that there is; every thread, after a barrier.
  __device__ __forceinline__ void start() {
    if (ahead.neuron < end) {
      start_patches();
      start_neurons();
    }
    cp_async_commit();
    ahead.entry += entries<T>;
    if (ahead.entry >= arguments.view.inputs) ahead = {ahead.neuron + tile_neurons, 0};
    stage = stage == stages - 1 ? 0 : stage + 1;
    slot ^= 1;
    write_taps();
  }

  // Half types do not lie on chip as they do in memory: they come by registers, and here they arrive.
  __device__ __forceinline__ void finish() const {
    if constexpr (!std::is_same_v<S, T>) {
      T* const to = at(stage == 0 ? stages - 1 : stage - 1) + to_patch;
#pragma unroll
      for (int pass = 0; pass < 2; ++pass)
#pragma unroll
        for (int i = 0; i < entries<T> / 4; ++i) to[pass * rows() * pitch<T> + 4 * i] = wide(fetched[pass][i]);
    }
  }

  __device__ __forceinline__ static void scale(T* numbers, bool groups, T factor) {
    if (groups) {
      Group<T>& group = *reinterpret_cast<Group<T>*>(numbers);
#pragma unroll
      for (int n = 0; n < each<T>; ++n) group.of[n] *= factor;
    } else {
#pragma unroll
      for (int n = 0; n < entries<T>; n += 4) numbers[n] *= factor;
    }
  }

  // Scales what this thread copied of a step: patches from `first` on, neurons from `neuron` on.
  __device__ __forceinline__ void scale(int stage, int first, int last, int neuron) const {
    for (int pass = 0; pass < 2; ++pass) {
      const int number = first + row(arguments.patches_in_groups) + pass * rows();
      const int patch = number < last ? number : last;
      scale(at(stage) + to_patch + pass * rows() * pitch<T>, arguments.patches_in_groups, arguments.known.scale[patch]);
    }
    T* to = at(stage) + to_neuron;
    for (int within = row(arguments.rows_in_groups); within < tile_neurons; within += rows(), to += rows() * pitch<T>) {
      const int name = neuron + within < end ? neuron + within : end - 1;
      scale(to, arguments.rows_in_groups, arguments.known.inverse[name]);
    }
  }
};

// Adds the products of a step; each sum goes over the entries in their order, whatever the tiles.
template <class T>
__device__ __forceinline__ void multiply(const T* patches, const T* neurons, T (&sums)[lane_patches][lane_neurons]) {
#pragma unroll 1  // more numbers on their way from shared memory would not fit into 128 registers
  for (int first = 0; first < entries<T>; first += each<T>) {
    Group<T> x[lane_patches];
#pragma unroll
    for (int i = 0; i < lane_patches; ++i)
      x[i] = *reinterpret_cast<const Group<T>*>(patches + 4 * i * pitch<T> + first);
#pragma unroll
    for (int j = 0; j < lane_neurons; ++j) {
      const Group<T> w = *reinterpret_cast<const Group<T>*>(neurons + 8 * j * pitch<T> + first);
#pragma unroll
      for (int i = 0; i < lane_patches; ++i)
#pragma unroll
        for (int n = 0; n < each<T>; ++n) sums[i][j] = added(sums[i][j], x[i].of[n], w.of[n]);
    }
  }
}

}  // namespace
}  // namespace hebbkern
