// walk: a block owns a tile of patches and walks over tiles of neurons; the k strongest stay on chip, and no matrix of
// patches by neurons is ever written.
#include "cuda/device/tile.cuh"

namespace hebbkern {
namespace {

// 8 warps of 128 registers, two blocks of which fill a multiprocessor; sums of doubles take twice as many registers.
template <class T>
constexpr int most_warps = sizeof(T) == 8 ? 4 : 8;
constexpr int merging_warps = 8;   // a patch each; they share nothing
constexpr int longest = 16;        // winners of a patch for which blocks of 8 warps have room on any GPU
constexpr int most_merged = 1024;  // candidates of a patch, 32 at a time
constexpr int most_shares = 64;    // blocks that share the neurons of their patches

// Responses from sums of products; those of neurons that may not win are no numbers, which never rank.
template <class S, class T>
__device__ __forceinline__ void respond(const WalkArguments<S, T>& arguments, int patches, int last, int neurons,
                                        int end, T (&sums)[lane_patches][lane_neurons]) {
  const Lane lane;
  Terms<T> patch[lane_patches];
#pragma unroll
  for (int i = 0; i < lane_patches; ++i) {
    const int number = patches + 4 * i;
    patch[i] = of_patch(arguments.known, number < last ? number : last);
  }
#pragma unroll
  for (int j = 0; j < lane_neurons; ++j) {
    const int name = neurons + lane.first() + 8 * j;
    const bool there = name < end && (!arguments.eligible.given() || arguments.eligible[name]);
    const Terms<T> neuron = of_neuron(arguments.known, name < end ? name : end - 1);
#pragma unroll
    for (int i = 0; i < lane_patches; ++i) sums[i][j] = there ? final_response(sums[i][j], patch[i], neuron) : T(NAN);
  }
}

// The strongest so far of a warp's patches. One winner: each lane keeps the best of its own neurons, which it meets in
// their order. More: lists on chip, and what a neuron of a later tile must exceed to enter them; few do, once these are
// warm.
template <class T>
struct Strongest {
  T* const response;      // [warp_patches][k], strongest first
  int32_t* const neuron;  // [warp_patches][k]
  const int k;
  const Lane lane{};
  T bar[lane_patches];         // the best or, of a list, the last
  int32_t best[lane_patches];  // whose that is, of one winner

  __device__ __forceinline__ Strongest(T* response, int32_t* neuron, int k) : response(response), neuron(neuron), k(k) {
#pragma unroll
    for (int i = 0; i < lane_patches; ++i) bar[i] = lowest<T>(), best[i] = no_neuron;
    for (int slot = lane.number; k > 1 && slot < warp_patches * k; slot += 32)
      response[slot] = lowest<T>(), neuron[slot] = no_neuron;
    __syncwarp();
  }

  __device__ __forceinline__ void rank(const T (&responses)[lane_patches][lane_neurons], int first) {
    unsigned wanted = 0;
#pragma unroll
    for (int i = 0; i < lane_patches; ++i)
#pragma unroll
      for (int j = 0; j < lane_neurons; ++j) {
        if (k == 1 && responses[i][j] > bar[i]) bar[i] = responses[i][j], best[i] = first + lane.first() + 8 * j;
        if (k > 1 && responses[i][j] > bar[i]) wanted |= 1u << i;
      }
    if (k == 1) return;
    for (unsigned all = __reduce_or_sync(~0u, wanted); all; all &= all - 1) {
      const int i = __ffs(int(all)) - 1;
      T own[lane_neurons], least = bar[0];
#pragma unroll
      for (int j = 0; j < lane_neurons; ++j) own[j] = responses[0][j];
#pragma unroll
      for (int other = 1; other < lane_patches; ++other) {
        if (other == i) least = bar[other];
#pragma unroll
        for (int j = 0; j < lane_neurons; ++j) own[j] = other == i ? responses[other][j] : own[j];
      }
      const bool wants = wanted >> i & 1;
      least = k <= 32 ? challenge<1>(i, own, least, wants, first) : challenge<2>(i, own, least, wants, first);
#pragma unroll
      for (int other = 0; other < lane_patches; ++other) bar[other] = other == i ? least : bar[other];
    }
  }

  // Lets neurons into the lists of the four patches whose turn `i` is; what it takes to enter this lane's from now on.
  template <int SLOTS>
  __device__ __forceinline__ T challenge(int i, const T (&own)[lane_neurons], T least, bool wants, int first) {
    for (unsigned rest = __ballot_sync(~0u, wants); rest;) {
      const int from = __ffs(int(rest)) - 1, group = from % 2 + from / 16 * 2;
      rest &= ~(0x5555u << (from % 2 + from / 16 * 16));
      const int slot = (4 * i + group) * k + lane.number;
      Ranks<T, SLOTS> ranks;
#pragma unroll
      for (int s = 0; s < SLOTS; ++s)
        if (lane.number + 32 * s < k) {
          ranks.response[s] = response[slot + 32 * s];
          ranks.neuron[s] = neuron[slot + 32 * s];
        }
      enter(ranks, own, least, lane.group() == group, first);
#pragma unroll
      for (int s = 0; s < SLOTS; ++s)
        if (lane.number + 32 * s < k) {
          response[slot + 32 * s] = ranks.response[s];
          neuron[slot + 32 * s] = ranks.neuron[s];
        }
      const T worst = ranks.response_of(k - 1);
      if (lane.group() == group) least = worst;
    }
    return least;
  }

  // The neurons of the lanes that are `here`, one after the other; those that no longer beat the last are skipped.
  template <int SLOTS>
  __device__ __forceinline__ void enter(Ranks<T, SLOTS>& ranks, const T (&own)[lane_neurons], T least, bool here,
                                        int first) {
    unsigned left = 0;
#pragma unroll
    for (int j = 0; j < lane_neurons; ++j)
      if (here && own[j] > least) left |= 1u << j;
    for (unsigned lanes = __ballot_sync(~0u, left != 0); lanes;) {
      const int from = __ffs(int(lanes)) - 1, next = __ffs(int(left)) - 1;
      T value = own[0];
#pragma unroll
      for (int j = 1; j < lane_neurons; ++j) value = j == next ? own[j] : value;
      value = __shfl_sync(~0u, value, from);
      const int chosen = __shfl_sync(~0u, next, from);
      ranks.insert(value, first + from / 2 % 8 + 8 * chosen);
      const T worst = ranks.response_of(k - 1);
      const int32_t last = ranks.neuron_of(k - 1);
      if (lane.number == from) left &= left - 1;
#pragma unroll
      for (int j = 0; j < lane_neurons; ++j)
        if (!beats(own[j], first + lane.first() + 8 * j, worst, last)) left &= ~(1u << j);
      lanes = __ballot_sync(~0u, left != 0);
    }
  }

  // Patches first to last are the warp's.
  template <class S>
  __device__ __forceinline__ void write(const WalkArguments<S, T>& arguments, const Outcome<T>& outcome, int first,
                                        int last) {
    if (k > 1) {
      __syncwarp();
      const bool there = lane.number < warp_patches && first + lane.number <= last;
      const T highest = there ? response[lane.number * k] : T(0);
      if (is_blank(arguments.view, arguments.known.scale, first + lane.number, there, highest))
        for (int rank = 0; rank < k; ++rank) neuron[lane.number * k + rank] = no_neuron;
      __syncwarp();
      for (int patch = 0; patch < warp_patches && first + patch <= last; ++patch)
        for (int rank = lane.number; rank < k; rank += 32)
          outcome.write(first + patch, rank, response[patch * k + rank], neuron[patch * k + rank]);
      return;
    }
#pragma unroll
    for (int i = 0; i < lane_patches; ++i) {
#pragma unroll
      for (int apart = 2; apart < 16; apart *= 2) {  // the lanes that hold neurons of the same patches
        const T other = __shfl_xor_sync(~0u, bar[i], apart);
        const int32_t name = __shfl_xor_sync(~0u, best[i], apart);
        if (beats(other, name, bar[i], best[i])) bar[i] = other, best[i] = name;
      }
      const int number = first + 4 * i + lane.group();
      const bool mine = lane.first() == 0 && number <= last;
      if (is_blank(arguments.view, arguments.known.scale, number, mine, bar[i])) best[i] = no_neuron;
      if (mine) outcome.write(number, 0, bar[i], best[i]);
    }
  }
};

// Shared memory before the lists: taps, then the ring. All of it is dynamic, for beyond 48 KiB a block may have no more
// than it asked for, static memory included.
template <class T>
constexpr size_t tap_bytes = 2 * entries<T> * sizeof(Tap);

template <class T>
__host__ __device__ constexpr size_t ring_bytes(int warps) {
  return tap_bytes<T> + sizeof(T) * stages * (warps * warp_patches + tile_neurons) * pitch<T>;
}

// Block (i, s): tile i of patches, of one group; neurons s * share to (s + 1) * share of the group; its winners are
// list s of all lists.
template <class S, class T>
__global__ void __launch_bounds__(32 * most_warps<T>, 2)
    walk_kernel(WalkArguments<S, T> arguments, Outcome<T> outcome) {
  HEBBKERN_SHARED(unsigned char, memory);
  const auto taps = reinterpret_cast<Tap(*)[entries<T>]>(memory);
  const Lane lane;
  const int patches = int(blockDim.x) / 2, inputs = arguments.view.inputs;
  const int group = arguments.tiles.quotient(int(blockIdx.x)), tile = arguments.tiles.remainder(int(blockIdx.x));
  const int before = group * arguments.view.of_a_group(), first = before + tile * patches;
  const int last = before + arguments.view.of_a_group() - 1, neurons = outcome.neurons / arguments.view.groups;
  const int share = int(blockIdx.y) * arguments.share, begin = group * neurons + share;
  const int end = group * neurons + (share + arguments.share < neurons ? share + arguments.share : neurons);
  outcome.winners += int64_t(blockIdx.y) * arguments.view.patches * outcome.k;
  outcome.responses += int64_t(blockIdx.y) * arguments.view.patches * outcome.k;
  TileLoader<S, T> loader(arguments, reinterpret_cast<T*>(memory + tap_bytes<T>), taps, first, last, begin, end);
  T* const listed = reinterpret_cast<T*>(memory + ring_bytes<T>(int(blockDim.x) / 32));
  int32_t* const names = reinterpret_cast<int32_t*>(listed + patches * outcome.k);
  const int own = lane.warp * warp_patches;
  Strongest<T> strongest(listed + own * outcome.k, names + own * outcome.k, outcome.k);
  for (int step = 0; step < stages - 1; ++step) {
    __syncthreads();
    loader.start();
    loader.finish();
  }
  for (int neuron = begin; neuron < end; neuron += tile_neurons) {
    T sums[lane_patches][lane_neurons] = {};
    for (int entry = 0; entry < inputs; entry += entries<T>) {
      cp_async_wait<stages - 2>();
      const int now = loader.stage == stages - 1 ? 0 : loader.stage + 1;
      if (arguments.known.unit) loader.scale(now, first, last, neuron);
      __syncthreads();  // all copies have arrived, and no thread reads the step before
      loader.start();
      multiply(loader.at(now) + (own + lane.group()) * pitch<T>, loader.at(now) + (patches + lane.first()) * pitch<T>,
               sums);
      loader.finish();
    }
    respond(arguments, first + own + lane.group(), last, neuron, end, sums);
    strongest.rank(sums, neuron);
  }
  strongest.write(arguments, outcome, first + own, last);
}

// The k strongest of the lists [shares, P, k] of each patch, a warp to each.
template <class T, int SLOTS>
__device__ __forceinline__ void merge(const Outcome<T>& lists, const Outcome<T>& outcome, int patches, int patch,
                                      int shares) {
  const int lane = int(threadIdx.x) % 32, k = outcome.k;
  Ranks<T, SLOTS> ranks;
  for (int first = 0; first < shares * k; first += 32) {
    const int candidate = first + lane, share = candidate / k;
    const bool there = candidate < shares * k;
    const int64_t at = (int64_t(share) * patches + patch) * k + (candidate - share * k);
    const int32_t neuron = there ? lists.winners[at] : -1;
    const T response = there ? lists.responses[at] : T(0);
    ranks.offer(response, neuron, neuron >= 0, k);
  }
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot)
    if (lane + 32 * slot < k) outcome.write(patch, lane + 32 * slot, ranks.response[slot], ranks.neuron[slot]);
}

template <class T>
__global__ void __launch_bounds__(32 * merging_warps)
    merge_kernel(Outcome<T> lists, Outcome<T> outcome, int patches, int shares) {
  const int patch = int(blockIdx.x) * merging_warps + int(threadIdx.x) / 32;
  if (patch >= patches) return;
  if (outcome.k <= 32)
    merge<T, 1>(lists, outcome, patches, patch, shares);
  else
    merge<T, 2>(lists, outcome, patches, patch, shares);
}

// Warps of a block, and how many neurons each of the blocks has that share them for a tile of patches.
struct Split {
  int warps, share, shares;
};

// Of patches and neurons of a group.
template <class T>
Split split(const Device& device, int64_t groups, int64_t patches, int64_t neurons, int k) {
  const int64_t tiles = cdiv(neurons, tile_neurons);
  const auto blocks = [&](int64_t warps) { return groups * cdiv(patches, warps * warp_patches); };
  int64_t warps = most_warps<T>;
  // Large blocks read less, small ones leave no multiprocessor idle.
  if (k > longest || blocks(warps) * tiles < 2 * device.processors) warps = std::min<int64_t>(warps, 4);
  while (warps > 1 && blocks(warps / 2) == groups) warps /= 2;
  const int64_t wanted = cdiv(16 / warps * device.processors, blocks(warps));  // 16 warps hide each other's ranking
  const int64_t most = std::min<int64_t>({tiles, most_shares, most_merged / k, wanted});
  const int64_t share = cdiv(tiles, most) * tile_neurons;
  return {int(warps), int(share), int(cdiv(neurons, share))};
}

}  // namespace

template <class T>
void merge(const Device& device, const Outcome<T>& lists, const Outcome<T>& outcome, int patches, int shares) {
  launch<merge_kernel<T>>("compete.merge", dim3(unsigned(cdiv(patches, merging_warps))), 32 * merging_warps, 0, device,
                          lists, outcome, patches, shares);
}
template void merge<float>(const Device&, const Outcome<float>&, const Outcome<float>&, int, int);

template <class S, class T>
void walk(const Device& device, const Tensor& like, const PatchView<S>& view, const T* rows, const Moments<T>& known,
          const Mask& eligible, const Outcome<T>& outcome) {
  if (!view.patches) return;
  const PatchView<T> weights(rows, outcome.neurons, view.inputs);
  constexpr bool same = std::is_same_v<S, T>;
  WalkArguments<S, T> arguments{view,
                                weights,
                                Known<T>(known, same && known.inverse),
                                eligible,
                                same && view.in_groups(each<T>),
                                weights.in_groups(each<T>),
                                0,
                                {}};
  const Split parts = split<T>(device, view.groups, view.of_a_group(), outcome.neurons / view.groups, outcome.k);
  const int patches = parts.warps * warp_patches;
  arguments.share = parts.share;
  arguments.tiles = Divisor(cdiv(view.of_a_group(), patches));
  Outcome<T> heats = outcome;
  std::optional<Tensor> winners, responses;
  if (parts.shares > 1) {
    const Ints sizes{parts.shares, view.patches, outcome.k};
    winners = empty_like(like, sizes, ScalarType::Int);
    responses = empty_like(like, sizes, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
    heats = {pointer<int32_t>(*winners), pointer<T>(*responses), {}, outcome.k, outcome.neurons};
  }
  const size_t lists = outcome.k > 1 ? patches * outcome.k * (sizeof(T) + sizeof(int32_t)) : 0;
  launch<walk_kernel<S, T>>("compete", dim3(unsigned(view.groups * arguments.tiles.divisor), unsigned(parts.shares)),
                            32 * parts.warps, ring_bytes<T>(parts.warps) + lists, device, arguments, heats);
  if (parts.shares > 1) merge<T>(device, heats, outcome, view.patches, parts.shares);
}

#define WALK(S, T)                                                                                         \
  template void walk<S, T>(const Device&, const Tensor&, const PatchView<S>&, const T*, const Moments<T>&, \
                           const Mask&, const Outcome<T>&);
WALK(float, float)
WALK(double, double)
WALK(BFloat16, float)
WALK(Half, float)
#undef WALK

}  // namespace hebbkern
