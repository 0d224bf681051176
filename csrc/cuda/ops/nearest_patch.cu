// nearest_patch: each neuron's nearest patch, in three launches, four for patches that are centred.
//
// The lengths of all patches and neurons; a search by |w|^2 - 2 w.x~ + |x~|^2, tiles of neurons times runs of patches,
// each run naming the two nearest of a neuron; and the two nearest of all runs measured by the differences w - x~
// themselves, free of the expansion's cancellation, which decides between them.
#include "cuda/ops/nearest_patch.cuh"

#include <algorithm>

#include "common/compete.h"
#include "cuda/device/ranks.cuh"
#include "cuda/device/values.cuh"
#include "cuda/ops/moments.cuh"

namespace hebbkern {
namespace {

constexpr int warps = 8;  // of the kernels that have a warp to a patch or a neuron: they share nothing
// Three blocks to a multiprocessor of an H100 do it all at once; more runs would be more candidates to look through.
constexpr int blocks = 396;
constexpr int candidates = 2;  // a run and neuron: the exact distance decides where rounding may

// What the search needs to know of a patch: 128 bits of floats.
template <class T>
struct alignas(16) Length {
  T whole;         // |x~|_1; 0 for zeros, which are never nearest
  T square;        // |x~|^2
  T mean, factor;  // x~ = (x - mean) * factor
};

// Arguments of the kernels.
template <class S, class T>
struct Query {
  PatchView<S> view, rows;
  Mask eligible;
  const T *offset, *scale, *total;  // as in Moments
  Length<T>* length;                // of the patches
  T* w_square;                      // |w|^2 of the neurons that are asked for
  T* value;                         // [runs, candidates, K]
  int32_t* index;                   // `no_neuron`: none
  int tiles;                        // of patches to a run
  Divisor neuron_tiles;             // of a group

  __device__ __forceinline__ bool asked_for(int neuron) const {
    return neuron < rows.patches && (!eligible.given() || eligible[neuron]);
  }
  __device__ __forceinline__ T shifted(S x, T mean, T factor) const { return (T(wide(x)) - mean) * factor; }
  __device__ __forceinline__ T mean(int patch) const { return offset ? offset[patch] : T(0); }
  __device__ __forceinline__ T factor(int patch) const { return scale ? scale[patch] : T(1); }
};

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

// A warp to each patch, and behind these to each neuron.
template <class S, class T>
__global__ void __launch_bounds__(32 * warps) lengths_kernel(Query<S, T> query, int of_patches) {
  const int item = int(blockIdx.x) * warps + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const bool patch = item < of_patches;
  const PatchView<S>& view = patch ? query.view : query.rows;
  const int row = patch ? item : item - of_patches;
  if (row >= view.patches) return;
  const Corner corner = view.corner(row);
  const T mean = patch ? query.mean(row) : T(0), factor = patch ? query.factor(row) : T(1);
  T length = 0, square = 0;
#pragma unroll 4
  for (int entry = lane; entry < view.inputs; entry += 32) {
    const T value = query.shifted(view.load(corner, view.tap(entry)), mean, factor);
    length += value < 0 ? -value : value;
    square += value * value;
  }
  length = sum_of_warp(length);
  square = sum_of_warp(square);
  if (lane) return;
  if (patch)
    query.length[row] = {length, square, mean, factor};
  else
    query.w_square[row] = query.asked_for(row) ? square : T(0);
}

// The two nearest patches so far.
template <class T>
struct alignas(sizeof(T) == 8 ? 8 : 16) Nearest {
  T value = T(INFINITY), next_value = T(INFINITY);
  int32_t patch = no_neuron, next = no_neuron;

  // Of patches in rising order.
  __device__ __forceinline__ void meet(T distance, int32_t name) {
    if (distance < value) {
      next_value = value, next = patch;
      value = distance, patch = name;
    } else if (distance < next_value) {
      next_value = distance, next = name;
    }
  }
  // Of patches in any order.
  __device__ __forceinline__ void offer(T distance, int32_t name) {
    if (beats(-distance, name, -value, patch)) {
      next_value = value, next = patch;
      value = distance, patch = name;
    } else if (beats(-distance, name, -next_value, next)) {
      next_value = distance, next = name;
    }
  }
  // With what another lane met; all lanes of a warp.
  __device__ __forceinline__ void join(int apart) {
    const T other_value = __shfl_xor_sync(~0u, value, apart);
    const T other_next_value = __shfl_xor_sync(~0u, next_value, apart);
    const int32_t other = __shfl_xor_sync(~0u, patch, apart);
    const int32_t other_next = __shfl_xor_sync(~0u, next, apart);
    offer(other_value, other);
    offer(other_next_value, other_next);
  }
};

// The two nearest patches that a lane met to each of its neurons. They lie on chip, where lanes share nothing; what a
// patch must fall short of to be one of them, which few do once a run is under way, in registers.
template <class T>
struct Shortlist {
  Nearest<T>* const met;  // [lane_neurons][threads of the block]
  T bar[lane_neurons];

  __device__ __forceinline__ explicit Shortlist(Nearest<T>* met) : met(met) {
#pragma unroll
    for (int i = 0; i < lane_neurons; ++i) {
      of(i) = {};
      bar[i] = T(INFINITY);
    }
  }
  __device__ __forceinline__ Nearest<T>& of(int i) const { return met[i * int(blockDim.x) + int(threadIdx.x)]; }
  __device__ __forceinline__ void meet(int i, T distance, int32_t patch) {
    if (!(distance < bar[i])) return;
    Nearest<T> own = of(i);
    own.meet(distance, patch);
    of(i) = own;
    bar[i] = own.next_value;
  }
};

// A tile's distances, from its sums of products. Exact ones give equal quotients where they are equal.
template <class S, class T>
__device__ __forceinline__ void compare(const Query<S, T>& query, int first, int end, int neurons,
                                        const T (&sums)[lane_neurons][lane_patches], Shortlist<T>& nearest) {
  T squares[lane_neurons], totals[lane_neurons];
#pragma unroll
  for (int i = 0; i < lane_neurons; ++i) {
    const int neuron = neurons + 4 * i;
    const bool there = neuron < query.rows.patches;
    squares[i] = there ? query.w_square[neuron] : T(0);
    totals[i] = there && query.offset ? query.total[neuron] : T(0);
  }
#pragma unroll
  for (int j = 0; j < lane_patches; ++j) {
    const int patch = first + 8 * j;
    const bool there = patch < end;
    const Length<T> length = query.length[there ? patch : 0];
    const T whole = there && length.whole > 0 ? length.whole : T(NAN);
    __syncwarp();  // no lane waits here: loads of later patches stay behind it, which leaves registers to the sums
#pragma unroll
    for (int i = 0; i < lane_neurons; ++i) {
      const T dot = query.offset ? length.factor * (sums[i][j] - length.mean * totals[i]) : sums[i][j];
      nearest.meet(i, quotient((squares[i] - dot) + (length.square - dot), whole), patch);
    }
  }
}

template <class S, class T>
constexpr size_t ring_bytes = sizeof(T) * stages<S, T> * (tile_neurons + tile_patches) * pitch<S, T>;

// Block (i, r): tile i of neurons, of one group; run r of the group's patches.
template <class S, class T>
struct Search {
  static constexpr int rows = tile_neurons + tile_patches;
  const Query<S, T>& query;
  T* const ring;                  // [stages][neurons, patches][pitch]
  Tap (*const taps)[entries<S>];  // of the step ahead, and in turn of the one before
  Factor<S, T, tile_neurons> weights;
  Factor<S, T, tile_patches> patches;
  const int neurons;     // the first of the tile
  int first, entry = 0;  // of the step ahead
  const int end;         // of the run
  int stage = 0, slot = 0;

  __device__ __forceinline__ Search(const Query<S, T>& query, T* ring, Tap (*taps)[entries<S>], bool patches_in_groups,
                                    bool rows_in_groups, int neurons, int begin, int end)
      : query(query),
        ring(ring),
        taps(taps),
        weights(query.rows, rows_in_groups),
        patches(query.view, patches_in_groups),
        neurons(neurons),
        first(begin),
        end(end) {
    write_taps();
  }
  __device__ __forceinline__ void write_taps() const {
    if (!query.view.flat && threadIdx.x < entries<S>) taps[slot][threadIdx.x] = query.view.tap(entry + threadIdx.x);
  }
  __device__ __forceinline__ T* at(int stage, int row) const { return ring + (stage * rows + row) * pitch<S, T>; }

  // Starts on the next step, if there is one; every thread, after a barrier.
  __device__ __forceinline__ void start() {
    if (first < end) {
      weights.start(neurons, entry, at(stage, 0), nullptr);
      patches.start(first, entry, at(stage, tile_neurons), taps[slot]);
    }
    cp_async_commit();
    entry += entries<S>;
    if (entry >= query.view.inputs) {
      entry = 0;
      first += tile_patches;
    }
    stage = (stage + 1) % stages<S, T>;
    slot ^= 1;
    write_taps();
  }
  // Of a tile, and starts on what comes after.
  __device__ __forceinline__ void products(T (&sums)[lane_neurons][lane_patches]) {
    const Lane lane;
    for (int n = 0; n < query.view.inputs; n += entries<S>) {
      cp_async_wait<stages<S, T> - 2>();
      __syncthreads();  // all copies have arrived, and no thread reads the step before
      const int now = (stage + 1) % stages<S, T>;
      start();
      multiply<S, T>(at(now, lane.warp * warp_neurons + lane.neuron()), at(now, tile_neurons + lane.patch()), sums);
    }
  }
};

// 12 warps of 168 registers fill a multiprocessor; sums of doubles take twice as many.
template <class S, class T>
__global__ void __launch_bounds__(tile_threads, sizeof(T) == 8 ? 2 : 3)
    search_kernel(Query<S, T> query, bool patches_in_groups, bool rows_in_groups) {
  HEBBKERN_SHARED(unsigned char, memory);
  __shared__ Tap taps[2][entries<S>];
  const Lane lane;
  const int group = query.neuron_tiles.quotient(int(blockIdx.x)), each = query.rows.patches / query.view.groups;
  const int neurons = group * each + query.neuron_tiles.remainder(int(blockIdx.x)) * tile_neurons;
  const int last = min(group * each + each, neurons + tile_neurons) - 1, asked = neurons + int(threadIdx.x);
  if (!__syncthreads_or(asked <= last && query.asked_for(asked))) return;
  const int64_t before = int64_t(group) * query.view.of_a_group(), run = int64_t(query.tiles) * tile_patches;
  const int64_t begin = before + blockIdx.y * run;
  const int end = int(min(begin + run, before + query.view.of_a_group()));
  Search<S, T> search(query, reinterpret_cast<T*>(memory), taps, patches_in_groups, rows_in_groups, neurons, int(begin),
                      end);
#pragma unroll 1
  for (int step = 0; step < stages<S, T> - 1; ++step) {
    __syncthreads();
    search.start();
  }
  const int own = neurons + lane.warp * warp_neurons + lane.neuron();
  Shortlist<T> nearest(reinterpret_cast<Nearest<T>*>(memory + ring_bytes<S, T>));
  for (int64_t first = begin; first < end; first += tile_patches) {
    T sums[lane_neurons][lane_patches] = {};
    search.products(sums);
    compare(query, int(first) + lane.patch(), end, own, sums, nearest);
  }
#pragma unroll
  for (int i = 0; i < lane_neurons; ++i) {
    Nearest<T> both = nearest.of(i);
    for (int apart = 2; apart < 16; apart *= 2) both.join(apart);  // the lanes that hold the same neurons
    const int neuron = own + 4 * i;
    if (lane.patch() != i || neuron > last) continue;
    const int64_t to = int64_t(blockIdx.y) * candidates * query.rows.patches + neuron;
    query.value[to] = both.value;
    query.index[to] = both.patch;
    query.value[to + query.rows.patches] = both.next_value;
    query.index[to + query.rows.patches] = both.next;
  }
}

// The distance of a neuron to a patch, by differences, summed by a warp in a fixed order; infinite without a patch.
template <class S, class T>
__device__ __forceinline__ T measured(const Query<S, T>& query, int neuron, int32_t patch) {
  const int lane = int(threadIdx.x) % 32, known = patch == no_neuron ? 0 : patch;
  const int entries = patch == no_neuron ? 0 : query.view.inputs;
  const Corner row = query.rows.corner(neuron);
  Corner corner{};
  T mean = 0, factor = 1, length = 0, squares = 0;
  if (entries) {
    corner = query.view.corner(known);
    mean = query.mean(known), factor = query.factor(known);
  }
#pragma unroll 4
  for (int entry = lane; entry < entries; entry += 32) {
    const T value = query.shifted(query.view.load(corner, query.view.tap(entry)), mean, factor);
    const T difference = T(wide(query.rows.x[row.start + entry])) - value;
    length += value < 0 ? -value : value;
    squares += difference * difference;
  }
  length = sum_of_warp(length);
  squares = sum_of_warp(squares);
  return entries ? quotient(squares, length) : T(INFINITY);
}

// A warp decides for a neuron between the candidates of all runs.
template <class S, class T>
__global__ void __launch_bounds__(32 * warps)
    nearest_kernel(Query<S, T> query, int runs, int32_t* nearest, T* distance) {
  const int neuron = int(blockIdx.x) * warps + int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (neuron >= query.rows.patches) return;
  Nearest<T> best;
  if (query.asked_for(neuron)) {
    for (int candidate = lane; candidate < runs * candidates; candidate += 32) {
      const int64_t at = int64_t(candidate) * query.rows.patches + neuron;
      best.offer(query.value[at], query.index[at]);
    }
    for (int apart = 1; apart < 32; apart *= 2) best.join(apart);
    best.value = measured(query, neuron, best.patch);
    best.next_value = measured(query, neuron, best.next);
    if (beats(-best.next_value, best.next, -best.value, best.patch))
      best.value = best.next_value, best.patch = best.next;
  }
  if (lane) return;
  const bool any = best.value < T(INFINITY);
  nearest[neuron] = any ? best.patch : -1;
  distance[neuron] = any ? best.value : T(INFINITY);
}

// Memory that lives as long as the launches that use it are being made.
struct Buffers {
  const Tensor& like;
  const ScalarType result = result_dtype(like.scalar_type());
  std::vector<Tensor> tensors;
  template <class T>
  T* take(int64_t count, ScalarType dtype) {
    tensors.push_back(empty_like(like, {count}, dtype));
    return pointer<T>(tensors.back());
  }
  template <class T>
  T* results(int64_t count) {
    return take<T>(count, result);
  }
};

// Where values are known: raises if what was computed of a patch or of a neuron that is asked for overflowed, or its
// distance to the nearest patch. One to another patch may.
template <class S, class T>
void require_distances(const char* op, const Query<S, T>& query, const T* distance) {
  if (!values_known()) return;
  const int groups = query.view.groups, each = query.rows.patches / groups;
  std::vector<bool> some(groups, false);  // whether a group has a patch that is not all zeros
  bool sound = true;
  for (int p = 0; p < query.view.patches; ++p) {
    const Length<T>& length = query.length[p];
    sound = sound && std::isfinite(length.square) && (length.whole == 0 || std::isfinite(1 / length.whole));
    if (length.whole != 0) some[p / query.view.of_a_group()] = true;
  }
  for (int j = 0; j < query.rows.patches; ++j) {
    sound = sound && std::isfinite(query.w_square[j]);
    if (some[j / each] && (!query.eligible.given() || query.eligible[j])) sound = sound && std::isfinite(distance[j]);
  }
  if (!sound) fail_overflow(op, finite_responses, sizeof(T) == 8);
}

template <class S, class T>
void run(const char* op, const Device& device, const Tensor& x, const Geometry& g, Patches kind, const Tensor& weight,
         const OptionalTensor& eligible, const Tensor& nearest, const Tensor& distance) {
  const PatchView<S> view(op, x, g), rows(const_pointer<S>(weight), g.groups * g.neurons, g.inputs());
  const Moments<T> known = moments<S, S, T>(op, device, x, view, kind, &rows);
  Buffers buffers{x};
  const int64_t patches = view.patches, neurons = rows.patches;
  const int64_t of_a_group = cdiv(g.neurons, tile_neurons), tiles = cdiv(g.patches(), tile_patches);
  const int64_t neuron_tiles = g.groups * of_a_group;
  const int64_t to_run = std::max<int64_t>(cdiv(tiles, std::max<int64_t>(blocks / neuron_tiles, 1)), 1);
  const int64_t runs = cdiv(tiles, to_run);
  Query<S, T> query{view, rows, Mask(eligible), known.offset, known.scale, known.total};
  query.length = reinterpret_cast<Length<T>*>(buffers.template results<T>(patches * sizeof(Length<T>) / sizeof(T)));
  query.w_square = buffers.template results<T>(neurons);
  query.value = buffers.template results<T>(runs * candidates * neurons);
  query.index = buffers.template take<int32_t>(runs * candidates * neurons, ScalarType::Int);
  query.tiles = int(to_run);
  query.neuron_tiles = Divisor(of_a_group);
  const int64_t of_patches = cdiv(patches, warps);
  launch<lengths_kernel<S, T>>("nearest_patch.lengths", dim3(unsigned(of_patches + cdiv(neurons, warps))), 32 * warps,
                               0, device, query, int(of_patches) * warps);
  const size_t bytes = ring_bytes<S, T> + lane_neurons * tile_threads * sizeof(Nearest<T>);
  launch<search_kernel<S, T>>("nearest_patch.search", dim3(unsigned(neuron_tiles), unsigned(runs)), tile_threads, bytes,
                              device, query, view.in_groups(of_lane<S>), rows.in_groups(of_lane<S>));
  launch<nearest_kernel<S, T>>("nearest_patch.nearest", dim3(unsigned(cdiv(neurons, warps))), 32 * warps, 0, device,
                               query, int(runs), pointer<int32_t>(nearest), pointer<T>(distance));
  require_distances(op, query, const_pointer<T>(distance));
}

}  // namespace

static std::tuple<Tensor, Tensor> nearest_patch(Tensor x, Tensor weight, std::string patches, Ints stride, Ints padding,
                                                Ints dilation, int64_t groups, OptionalTensor eligible) {
  const char* op = "nearest_patch";
  const PatchedLayer layer = check_nearest_patch(op, x, weight, patches, stride, padding, dilation, groups, eligible);
  require_finite(op, "x", x);
  require_finite(op, "weight", weight);
  const Device device(x);
  const ScalarType result = result_dtype(x.scalar_type());
  const Geometry& g = layer.g;
  const int64_t neurons = weight.size(0);
  const Tensor nearest = empty_like(x, {neurons}, ScalarType::Int), distance = empty_like(x, {neurons}, result);
  if (!weight.is_contiguous()) weight = torch::stable::contiguous(weight);
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    run<decltype(stored), decltype(tag)>(op, device, x, g, layer.patches, weight, eligible, nearest, distance);
  });
  return {nearest, distance};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("nearest_patch.cuda", TORCH_BOX(&nearest_patch)); }

}  // namespace hebbkern
