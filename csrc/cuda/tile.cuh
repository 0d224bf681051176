// How a block of the walk brings patches and weights on chip, a ring of steps of 64 bytes of each, and multiplies them.
#pragma once

#include "ptx.cuh"
#include "walk.cuh"

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

// What a kernel of the walk is told.
template <class S, class T>
struct Field {
  Place<S> place;
  Place<T> rows;
  const T *offset, *scale, *total, *inverse;  // as in Moments
  Mask mask;
  Listed listed;
  bool patches_in_groups, rows_in_groups;  // of 128 bits
  bool unit;  // cosines: both factors are scaled before they are multiplied, so that nothing overflows or vanishes
  int share;  // neurons of a block

  __device__ __forceinline__ int count() const { return listed.patches ? *listed.count : place.patches; }
  __device__ __forceinline__ int patch(int number) const { return listed.patches ? listed.patches[number] : number; }
};

// A chunk of the entries of a tile of neurons.
struct Step {
  int neuron, entry;
};

// What a thread copies. Where a row lies side by side four lanes take its 64 bytes; else a warp takes four entries of
// eight neighbouring patches, so that it reads few lines and writes different banks.
template <class S, class T>
struct Copies {
  const Field<S, T>& field;
  T* const ring;                  // [stages][the block's patches, then its neurons][pitch]
  Tap (*const taps)[entries<T>];  // of the step ahead, and in turn of the one before
  const int end;                  // of the block's neurons
  const Lane lane{};
  Corner corner[2];  // of this thread's patches
  T size[2];         // their scales
  S fetched[2][entries<T> / 4] = {};
  Step ahead;
  int stage = 0, slot = 0;  // of the step ahead

  __device__ __forceinline__ Copies(const Field<S, T>& field, T* ring, Tap (*taps)[entries<T>], int first, int last,
                                    int begin, int end)
      : field(field), ring(ring), taps(taps), end(end), ahead{begin, 0} {
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
      const int number = first + row(pass, field.patches_in_groups);
      const int patch = field.patch(number < last ? number : last);  // past the last patch the tile repeats it
      corner[pass] = field.place.corner(patch);
      size[pass] = field.unit ? field.scale[patch] : T(1);
    }
    write_taps();
  }

  __device__ __forceinline__ void write_taps() const {
    const int entry = ahead.entry + int(threadIdx.x);
    if (!field.patches_in_groups && threadIdx.x < entries<T>) taps[slot][threadIdx.x] = field.place.tap(entry);
  }

  __device__ __forceinline__ int patches() const { return int(blockDim.x) / 2; }
  __device__ __forceinline__ int row(int pass, bool groups) const {
    return pass * int(blockDim.x / 4) + lane.warp * 8 + (groups ? lane.number / 4 : lane.number % 8);
  }
  __device__ __forceinline__ T* at(int stage, int row) const {
    return ring + (stage * (patches() + tile_neurons) + row) * pitch<T>;
  }
  // Calls f(entry of the step) for each of a row that this lane copies one by one.
  template <class F>
  __device__ __forceinline__ void one_by_one(const F& f) const {
#pragma unroll
    for (int i = 0; i < entries<T> / 4; ++i) f(i, i * 4 + lane.number / 8);
  }
  __device__ __forceinline__ int of_group() const { return lane.number % 4 * each<T>; }

  __device__ __forceinline__ void start_patches(int entry, int stage, const Tap* taps) {
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
      const S* const from = field.place.x + corner[pass].start;
      T* const to = at(stage, row(pass, field.patches_in_groups));
      if constexpr (std::is_same_v<S, T>)
        if (field.patches_in_groups) {
          const int first = entry + of_group();
          cp_async_zfill<16>(to + of_group(), from + first, first < field.place.inputs ? 16 : 0);
          continue;
        }
      one_by_one([&](int i, int n) {
        const Tap tap = taps[n];
        const bool there = entry + n < field.place.inputs && field.place.in_image(corner[pass], tap);
        if constexpr (std::is_same_v<S, T>)
          cp_async_zfill<sizeof(T)>(to + n, from + tap.offset, there ? sizeof(T) : 0);
        else
          fetched[pass][i] = there ? from[tap.offset] : S(0);
      });
    }
  }

  __device__ __forceinline__ void start_neurons(const Step& step, int stage) const {
    for (int pass = 0; row(pass, false) < tile_neurons; ++pass) {
      const int own = row(pass, field.rows_in_groups), neuron = step.neuron + own;
      const T* const from = field.rows.x + int64_t(neuron < end ? neuron : end - 1) * field.rows.inputs + step.entry;
      T* const to = at(stage, patches() + own);
      const int left = field.rows.inputs - step.entry;
      if (field.rows_in_groups)
        cp_async_zfill<16>(to + of_group(), from + of_group(), of_group() < left ? 16 : 0);
      else
        one_by_one([&](int, int n) { cp_async_zfill<sizeof(T)>(to + n, from + n, n < left ? sizeof(T) : 0); });
    }
  }

  // Starts the copies of the next step that there is; every thread, after a barrier.
  __device__ __forceinline__ void start() {
    if (ahead.neuron < end) {
      start_patches(ahead.entry, stage, taps[slot]);
      start_neurons(ahead, stage);
    }
    cp_async_commit();
    ahead.entry += entries<T>;
    if (ahead.entry >= field.place.inputs) ahead = {ahead.neuron + tile_neurons, 0};
    stage = (stage + 1) % stages;
    slot ^= 1;
    write_taps();
  }

  // Half types do not lie on chip as they do in memory: they come by registers, and here they arrive.
  __device__ __forceinline__ void finish() const {
    if constexpr (!std::is_same_v<S, T>) {
      const int stage = (this->stage + stages - 1) % stages;
#pragma unroll
      for (int pass = 0; pass < 2; ++pass) {
        T* const to = at(stage, row(pass, false));
        one_by_one([&](int i, int n) { to[n] = wide(fetched[pass][i]); });
      }
    }
  }

  __device__ __forceinline__ void scale_row(T* row, bool groups, T factor) const {
    if (groups) {
      Group<T>& group = *reinterpret_cast<Group<T>*>(row + of_group());
#pragma unroll
      for (int n = 0; n < each<T>; ++n) group.of[n] *= factor;
    } else {
      one_by_one([&](int, int n) { row[n] *= factor; });
    }
  }

  // Scales what this thread copied of the step that is next to be multiplied.
  __device__ __forceinline__ void scale(int neuron, int stage) const {
#pragma unroll
    for (int pass = 0; pass < 2; ++pass)
      scale_row(at(stage, row(pass, field.patches_in_groups)), field.patches_in_groups, size[pass]);
    for (int pass = 0; row(pass, false) < tile_neurons; ++pass) {
      const int own = row(pass, field.rows_in_groups), name = neuron + own;
      scale_row(at(stage, patches() + own), field.rows_in_groups, field.inverse[name < end ? name : end - 1]);
    }
  }
};

// Adds the products of a step; each sum goes over the entries in their order, whatever the tiles.
template <class T>
__device__ __forceinline__ void multiply(const T* patches, const T* neurons, T (&sums)[lane_patches][lane_neurons]) {
#pragma unroll
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
        for (int n = 0; n < each<T>; ++n) sums[i][j] += x[i].of[n] * w.of[n];
    }
  }
}

}  // namespace
}  // namespace hebbkern
