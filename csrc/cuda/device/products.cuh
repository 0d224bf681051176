// Products of 16-bit numbers on tensor cores, ranked as they come: a block multiplies a tile of patches with one tile
// of neurons after the other, and each of its warps keeps the best of eight patches in registers.
//
// A block of 8 warps takes 64 patches x 128 neurons, a warp 32 x 32 of them: 32 sums a thread, and the four matrices
// that it loads for 8 products leave shared memory time enough. Entries come in chunks of 64: weights by cp.async,
// three stages, so that two are on their way while one is multiplied; patches are loaded one chunk ahead through
// registers, where they are rounded, and stay in shared memory for all tiles of neurons if they fit. Rows of shared
// memory are 16 bytes longer than a multiple of 128, so that the eight rows of a matrix lie in different banks.
#pragma once

#include "cuda/device/patch_view.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/ranks.cuh"

namespace hebbkern {
namespace {

constexpr int tile_patches = 64, tile_neurons = 128, chunk = 64, stages = 3;
constexpr int product_threads = 256, patches_each = tile_patches * 32 / product_threads;  // of a warp
constexpr int weight_row = chunk + 8;                                                     // 16-bit numbers
constexpr int stage_size = tile_neurons * weight_row;
// A slice of the products, 64 neurons wide, takes the place of weights that were multiplied: rows of 72 floats, so that
// the pairs that a half warp stores lie in different banks.
constexpr int slice = 64, slice_row = 72;
static_assert(tile_patches * slice_row * sizeof(float) <= stage_size * sizeof(uint16_t));

// What a block multiplies, the same in all blocks of a launch.
struct Factors {
  const uint16_t* rows;  // [neurons, stride], each row aligned to 16 bytes and filled with zeros
  int64_t stride;
  int neurons, share;  // neurons of a block: those from blockIdx.y * share on
  int slots;           // chunks of patches that shared memory holds
  bool grouped;        // patches can be loaded 16 bytes at a time

  __device__ int begin() const { return int(blockIdx.y) * share; }
  __device__ int end() const { return min(begin() + share, neurons); }
};

// Two numbers of each patch of the tile.
struct Pair {
  float first, second;
};

// What is kept of each patch of the tile; 16 bytes of a corner, so that registers need not hold it.
struct Tile {
  Corner corner[tile_patches];
  Pair numbers[tile_patches];
  float offset[tile_patches];
};

inline size_t product_bytes(int slots, int k) {
  const size_t numbers = size_t(stages) * stage_size + size_t(tile_patches) * (slots * chunk + 8);
  return sizeof(Tile) + numbers * sizeof(uint16_t) + size_t(tile_patches) * k * (sizeof(float) + sizeof(int32_t));
}

// Blocks share the neurons of a tile of patches where there are few patches: two a multiprocessor hide each other's
// ranking. A share is a whole number of tiles, and merging reads no more than 16 lists.
inline int64_t share_of(int64_t patches, int64_t neurons, const Device& device) {
  const int64_t blocks = std::max<int64_t>(cdiv(patches, tile_patches), 1);
  const int64_t shares = std::min({cdiv(2 * device.processors, blocks), cdiv(neurons, tile_neurons), int64_t(16)});
  return cdiv(cdiv(neurons, shares), tile_neurons) * tile_neurons;
}

template <class S>
Factors factors_of(const Device& device, const PatchView<S>& view, const void* rows, int64_t stride, int64_t neurons,
                   int k) {
  const int chunks = int(cdiv(view.inputs, chunk));
  const bool fits = product_bytes(chunks, k) <= size_t(device.most_shared());
  return {static_cast<const uint16_t*>(rows),
          stride,
          int(neurons),
          int(share_of(view.patches, neurons, device)),
          fits ? chunks : 2,
          view.in_groups(16 / sizeof(S))};
}

template <class S>
__device__ __forceinline__ S entry_of(const PatchView<S>& view, const Corner& corner, bool known, int entry) {
  return known && entry < view.inputs ? view.load(corner, view.tap(entry)) : S(0);
}

__device__ __forceinline__ uint32_t paired(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }

// Eight neighbouring entries of a patch on their way from where they lie to shared memory: half types as they are.
template <class S>
struct Octet {
  uint4 bits;

  __device__ __forceinline__ void load(const PatchView<S>& view, const Corner& corner, bool known, int first,
                                       bool grouped) {
    bits = {0, 0, 0, 0};
    if (grouped) {
      if (known && first < view.inputs) bits = *reinterpret_cast<const uint4*>(view.x + corner.start + first);
    } else {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pairs[i] =
            paired(entry_of(view, corner, known, first + 2 * i).x, entry_of(view, corner, known, first + 2 * i + 1).x);
      bits = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
  }
  __device__ __forceinline__ void store(uint16_t* to, float) const { *reinterpret_cast<uint4*>(to) = bits; }
};

// Float32 is rounded to bfloat16 once the offset is taken off; behind the last entry, where that is not 0, weights are.
template <>
struct Octet<float> {
  float value[8];

  __device__ __forceinline__ void load(const PatchView<float>& view, const Corner& corner, bool known, int first,
                                       bool grouped) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      if (grouped) {
        float4 group = {0, 0, 0, 0};
        if (known && first + i < view.inputs)
          group = *reinterpret_cast<const float4*>(view.x + corner.start + first + i);
        value[i] = group.x, value[i + 1] = group.y, value[i + 2] = group.z, value[i + 3] = group.w;
      } else {
#pragma unroll
        for (int j = i; j < i + 4; ++j) value[j] = entry_of(view, corner, known, first + j);
      }
    }
  }
  __device__ __forceinline__ void store(uint16_t* to, float offset) const {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] = paired(BFloat16(value[2 * i] - offset).x, BFloat16(value[2 * i + 1] - offset).x);
    *reinterpret_cast<uint4*>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
};

// What a thread loads of each chunk of patches: two octets. Of rows neighbouring threads take neighbouring octets, of
// images neighbouring patches, which are neighbouring pixels.
template <class S>
struct PatchLoader {
  const PatchView<S>& view;
  const Tile& tile;
  Octet<S> octet;  // on its way

  __device__ __forceinline__ int within() const { return int(view.flat ? threadIdx.x % 8 : threadIdx.x / 32) * 8; }
  __device__ __forceinline__ int row(int i) const {
    return i * 32 + int(view.flat ? threadIdx.x / 8 : threadIdx.x % 32);
  }
  __device__ __forceinline__ bool known(int i) const { return int(blockIdx.x) * tile_patches + row(i) < view.patches; }
  // Octet i of a chunk.
  __device__ __forceinline__ void load(int i, int part, bool grouped) {
    octet.load(view, tile.corner[row(i)], known(i), part * chunk + within(), grouped);
  }
  __device__ __forceinline__ void store(int i, uint16_t* slot, int width) const {
    octet.store(slot + row(i) * width + within(), tile.offset[row(i)]);
  }
};

__device__ __forceinline__ void copy_weights(const Factors& with, int first, int end, int part, uint16_t* stage) {
#pragma unroll
  for (int i = 0; i < tile_neurons * chunk / 8 / product_threads; ++i) {
    const int item = i * product_threads + int(threadIdx.x), row = item / 8, within = item % 8 * 8;
    const int neuron = first + row, entry = part * chunk + within;
    const bool there = neuron < end && entry < with.stride;
    cp_async_zfill<16>(stage + row * weight_row + within,
                       with.rows + (there ? int64_t(neuron) * with.stride + entry : 0), there ? 16 : 0);
  }
}

// Products of a half of a chunk.
template <class S>
__device__ __forceinline__ void multiply(float (&sum)[2][4][4], const uint16_t* patches, int width,
                                         const uint16_t* weights) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const uint16_t* left = patches + (warp % 2 * 32 + lane % 16) * width + lane / 16 * 8;
  const uint16_t* right = weights + (warp / 2 * 32 + lane / 16 * 8 + lane % 8) * weight_row + lane / 8 % 2 * 8;
#pragma unroll
  for (int step = 0; step < chunk / 2; step += 16) {
    uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) ldmatrix_x4(a[i], left + i * 16 * width + step);
#pragma unroll
    for (int i = 0; i < 2; ++i) ldmatrix_x4(b[i], right + i * 16 * weight_row + step);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        if constexpr (std::is_same_v<S, Half>)
          mma_f16(sum[i][j], a[i], column);
        else
          mma_bf16(sum[i][j], a[i], column);
      }
  }
}

// Products of half the neurons of a tile, as `worth` sees them, to shared memory.
template <class Worth>
__device__ __forceinline__ void spread(const float (&sum)[2][4][4], const Worth& worth, const Pair* numbers, int first,
                                       int end, float* to) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int row = warp % 2 * 32 + lane / 4, column = warp / 2 % 2 * 32 + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int at = column + j * 8 + c;
      const auto neuron = worth.neuron(min(first + at, end - 1));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int patch = row + i * 8;
        to[patch * slice_row + at] = worth(sum[i / 2][j][i % 2 * 2 + c], numbers[patch], neuron);
      }
    }
}

// The strongest of the block's neurons for each patch of the tile, by falling rank; each warp sees to eight patches.
struct Lists {
  float* responses;  // [tile_patches][k]
  int32_t* neurons;
  int k;

  __device__ __forceinline__ Lists(unsigned char* memory, int k)
      : responses(reinterpret_cast<float*>(memory)),
        neurons(reinterpret_cast<int32_t*>(responses + tile_patches * k)),
        k(k) {
    const int own = int(threadIdx.x) / 32 * patches_each * k;
    for (int at = int(threadIdx.x) % 32; at < patches_each * k; at += 32)
      responses[own + at] = lowest<float>(), neurons[own + at] = no_neuron;
  }

  // By the warp of this patch: some of a slice beat the last of its list.
  template <int SLOTS>
  __device__ __forceinline__ void enter(int patch, const float (&value)[slice / 32], int first, int end) const {
    const int lane = int(threadIdx.x) % 32;
    float* const strongest = responses + patch * k;
    int32_t* const names = neurons + patch * k;
    Ranks<float, SLOTS> best;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot)
      if (lane + 32 * slot < k)
        best.response[slot] = strongest[lane + 32 * slot], best.neuron[slot] = names[lane + 32 * slot];
#pragma unroll
    for (int i = 0; i < slice / 32; ++i) {
      const int neuron = first + 32 * i + lane;
      best.offer(value[i], neuron, neuron < end && value[i] > lowest<float>(), k);
    }
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot)
      if (lane + 32 * slot < k)
        strongest[lane + 32 * slot] = best.response[slot], names[lane + 32 * slot] = best.neuron[slot];
  }

  // Each warp offers a slice of neurons to its patches.
  __device__ __forceinline__ void rank(const float* slices, int first, int end) const {
    const int lane = int(threadIdx.x) % 32, own = int(threadIdx.x) / 32 * patches_each;
#pragma unroll 1
    for (int patch = own; patch < own + patches_each; ++patch) {
      __syncwarp();
      float value[slice / 32];
      const float last = responses[patch * k + k - 1];
      bool wanted = false;
#pragma unroll
      for (int i = 0; i < slice / 32; ++i) {
        value[i] = slices[patch * slice_row + 32 * i + lane];
        wanted = wanted || value[i] >= last;
      }
      if (!__any_sync(~0u, wanted)) continue;  // most often, once the list is warm
      if (k <= 32)
        enter<1>(patch, value, first, end);
      else
        enter<2>(patch, value, first, end);
    }
  }

  // Takes the winners from blank patches; scale [P] or null, as of `is_blank`.
  template <class S>
  __device__ __forceinline__ void drop_blank(const PatchView<S>& view, const float* scale) const {
    __syncwarp();
    const int lane = int(threadIdx.x) % 32, own = int(threadIdx.x) / 32 * patches_each + lane;
    const int patch = int(blockIdx.x) * tile_patches + own;
    const bool there = lane < patches_each && patch < view.patches;
    if (is_blank(view, scale, patch, there, there ? responses[own * k] : 0.0f))
      for (int rank = 0; rank < k; ++rank) neurons[own * k + rank] = no_neuron;
  }

  // Calls f(patch, place in its list, response, neuron) for patches of the tile that there are, each warp for its own.
  template <class F>
  __device__ __forceinline__ void each(int patches, const F& f) const {
    __syncwarp();
    const int own = int(threadIdx.x) / 32 * patches_each, first = int(blockIdx.x) * tile_patches;
    for (int at = own * k + int(threadIdx.x) % 32; at < (own + patches_each) * k; at += 32)
      if (const int patch = first + at / k; patch < patches) f(patch, at % k, responses[at], neurons[at]);
  }
};

template <class S, class Worth>
__device__ __forceinline__ void describe(const PatchView<S>& view, const float* offset, const Worth& worth,
                                         Tile& tile) {
  if (threadIdx.x < tile_patches) {
    const int patch = int(blockIdx.x) * tile_patches + int(threadIdx.x);
    const bool known = patch < view.patches;
    tile.corner[threadIdx.x] = view.corner(known ? patch : 0);
    tile.numbers[threadIdx.x] = known ? worth.numbers(patch) : Pair{0, 0};
    tile.offset[threadIdx.x] = known && offset ? offset[patch] : 0.0f;
  }
  __syncthreads();
}

// Offers a tile of neurons, slice by slice in the place of their weights, and clears its sums.
template <class Worth>
__device__ __forceinline__ void rank_tile(float (&sum)[2][4][4], const Worth& worth, const Tile& tile, int first,
                                          int end, float* slices, const Lists& lists) {
#pragma unroll 1
  for (int half = 0; half < tile_neurons; half += slice) {
    __syncthreads();  // these weights, or the slice before, are done with
    if (int(threadIdx.x) / 128 * slice == half) spread(sum, worth, tile.numbers, first + half, end, slices);
    __syncthreads();
    lists.rank(slices, first + half, end);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0;
}

// The k best of the block's neurons for its patches.
// worth.numbers(patch): two numbers of a patch; worth.neuron(neuron): some of a neuron; worth(product, these): what
// ranks it, -inf where it may not win.
template <class S, class Worth>
__device__ __forceinline__ Lists rank_products(const PatchView<S>& view, const float* offset, const Factors& with,
                                               int k, unsigned char* memory, const Worth& worth) {
  Tile& tile = *reinterpret_cast<Tile*>(memory);
  uint16_t* ring = reinterpret_cast<uint16_t*>(memory + sizeof(Tile));
  uint16_t* patches = ring + stages * stage_size;
  const int chunks = (view.inputs + chunk - 1) / chunk, width = with.slots * chunk + 8, end = with.end();
  const int steps = (end - with.begin() + tile_neurons - 1) / tile_neurons * chunks;
  const int loads = with.slots == chunks ? chunks : steps;  // of patches
  describe(view, offset, worth, tile);
  const Lists lists(reinterpret_cast<unsigned char*>(patches + tile_patches * width), k);
  PatchLoader<S> loader{view, tile, {}};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    loader.load(i, 0, with.grouped);
    loader.store(i, patches, width);
  }
  int coming = with.begin(), coming_part = 0, first = coming, part = 0;  // of weights on their way, and multiplied
  const auto copy = [&](int step) {
    if (step < steps) copy_weights(with, coming, end, coming_part, ring + step % stages * stage_size);
    cp_async_commit();
    if (++coming_part == chunks) coming_part = 0, coming += tile_neurons;
  };
  copy(0);
  copy(1);
  float sum[2][4][4] = {};
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<1>();
    __syncthreads();  // this stage has arrived for all threads, and none needs the one before
    copy(step + 2);
    const int next = part + 1 == chunks ? 0 : part + 1;
    uint16_t* stage = ring + step % stages * stage_size;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (step + 1 < loads) loader.load(i, next, with.grouped);
      const int half = i * chunk / 2;
      multiply<S>(sum, patches + step % with.slots * chunk + half, width, stage + half);
      if (step + 1 < loads) loader.store(i, patches + (step + 1) % with.slots * chunk, width);
    }
    if (next == 0) {
      rank_tile(sum, worth, tile, first, end, reinterpret_cast<float*>(stage), lists);
      first += tile_neurons;
    }
    part = next;
  }
  return lists;
}

}  // namespace
}  // namespace hebbkern
