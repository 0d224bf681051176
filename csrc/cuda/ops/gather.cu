// gather: each list's patches added up, straight from the image.
//
// A list of more than `piece` entries is cut at fixed multiples of that from its own start, and the pieces' sums are
// added in order; within a piece, which warp adds which entry depends on the list's length alone. So what a neuron
// learns depends on nothing but its own patches.
#include <climits>
#include <cstring>

#include "cuda/device/lists.cuh"
#include "cuda/ops/sort.cuh"

namespace hebbkern {
namespace {

constexpr int warps = 8, threads = 32 * warps;  // a thread stages an entry of a piece
constexpr int few = 32;                         // entries that one warp adds up alone: a lane stages each
static_assert(threads == piece);

// A list that was not cut.
template <class T>
__device__ __forceinline__ List list_of(const Sums<T>& sums, int neuron) {
  if (neuron >= sums.neurons) return {neuron, 0, -1, -1};
  const int start = sums.starts[neuron], size = sums.starts[neuron + 1] - start;
  return {neuron, start, size > piece || (size == 0 && !sums.empty) ? -1 : size, -1};
}

template <class T>
struct alignas(16) Staged {
  Corner corner;
  T coefficient, offset, scale;
};

// What has to be known of entry number `at` of a list, or of nothing behind its end; returns what it adds to the decay.
template <class S, class T>
__device__ __forceinline__ T stage(const Sums<T>& sums, const PatchView<S>& view, const Assignments<T>& assignments,
                                   const List& list, int at, Staged<T>& staged) {
  if (at >= list.size) {
    staged = {{0, INT_MIN, 0}, T(0), T(0), T(0)};  // a row that no image has
    return 0;
  }
  const int entry = sums.order[list.first + at], patch = sums.ranks.quotient(entry);
  const int rank = entry - patch * int(sums.ranks.divisor);
  const T c = coefficient_of(assignments, patch, rank, entry);
  staged = {view.corner(patch), c, sums.offset ? sums.offset[patch] : T(0), sums.scale ? sums.scale[patch] : T(1)};
  return c * decay_of(assignments, patch, rank);
}

// Neighbouring inputs that a lane adds up.
template <class S, int EACH>
struct alignas(EACH * sizeof(S)) Group {
  S at[EACH];
};

// Of the group at `column`, or of the last one.
template <int EACH, class S>
__device__ __forceinline__ Tap tap_at(const PatchView<S>& view, int64_t column) {
  return view.tap(column < view.inputs ? int(column) : view.inputs - EACH);
}

// Those of the patch at `corner`, 0 where it does not lie in the image; without branches, which would keep loads apart.
template <int EACH, class S>
__device__ __forceinline__ Group<S, EACH> load(const PatchView<S>& view, const S* at_tap, const Corner& corner,
                                               const Tap& tap) {
  const bool there = (unsigned(corner.row + tap.down) < unsigned(view.height)) &
                     (unsigned(corner.column + tap.right) < unsigned(view.width));
  Group<S, EACH> group{};
  if constexpr (EACH == 1) {
    if (there) group.at[0] = at_tap[corner.start];
  } else {
    uint4 bits{0, 0, 0, 0};
    if (there) bits = *reinterpret_cast<const uint4*>(at_tap + corner.start);
    std::memcpy(&group, &bits, sizeof(bits));
  }
  return group;
}

// Entries `first`, `first + step`, ... of those staged, in this order, several patches in flight.
template <int EACH, class S, class T>
__device__ __forceinline__ void add(const PatchView<S>& view, const Staged<T>* staged, int first, int size, int step,
                                    int64_t column, Group<T, EACH>& sum) {
  constexpr int flight = 4;  // of 4 to 16 bytes, by 1024 threads and more: what a multiprocessor needs on its way
  const Tap tap = tap_at<EACH>(view, column);
  const S* at_tap = view.x + tap.offset;
  for (int at = first; at < size; at += flight * step) {
    Group<S, EACH> ahead[flight];
#pragma unroll
    for (int u = 0; u < flight; ++u) ahead[u] = load<EACH>(view, at_tap, staged[at + u * step].corner, tap);
#pragma unroll
    for (int u = 0; u < flight; ++u) {
      const Staged<T>& one = staged[at + u * step];
#pragma unroll
      for (int n = 0; n < EACH; ++n)
        sum.at[n] = std::fma(one.coefficient, (T(wide(ahead[u].at[n])) - one.offset) * one.scale, sum.at[n]);
    }
  }
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

// To be added to all sums: NaN if an entry is broken.
template <class T>
__device__ __forceinline__ T spoilt(const Sums<T>& sums) {
  return sums.starts[sums.neurons + 2] > sums.starts[sums.neurons + 1] ? T(NAN) : T(0);
}

template <class T>
__device__ __forceinline__ T* row_of(const Sums<T>& sums, const List& list, int64_t inputs) {
  return list.slot < 0 ? sums.total + list.neuron * inputs : sums.partial + list.slot * inputs;
}

template <class T>
__device__ __forceinline__ T& decay_in(const Sums<T>& sums, const List& list) {
  return list.slot < 0 ? sums.decay[list.neuron] : sums.decay_partial[list.slot];
}

// A warp adds up a list of at most `few` entries.
template <int EACH, class S, class T>
__device__ __forceinline__ void alone(const Sums<T>& sums, const PatchView<S>& view, const Assignments<T>& assignments,
                                      const List& list, Staged<T>* staged) {
  const int lane = int(threadIdx.x) % 32;
  const T broken = spoilt(sums), share = sum_of_warp(stage(sums, view, assignments, list, lane, staged[lane]));
  if (blockIdx.y == 0 && lane == 0) decay_in(sums, list) = share + broken;
  __syncwarp();
  T* row = row_of(sums, list, view.inputs);
  for (int64_t tile = blockIdx.y; tile * 32 * EACH < view.inputs; tile += gridDim.y) {
    const int64_t column = (tile * 32 + lane) * EACH;
    Group<T, EACH> sum{};
    add<EACH>(view, staged, 0, list.size, 1, column, sum);
    for (int n = 0; n < EACH; ++n) sum.at[n] += broken;
    if (column < view.inputs) *reinterpret_cast<Group<T, EACH>*>(row + column) = sum;
  }
}

template <int EACH, class T>
struct Shared {
  Staged<T> staged[piece];
  T sums[warps][32 * EACH], shares[warps];
};

// The block does: warp w adds entries w, w + warps, ...; then the warps' sums are added in their order.
template <int EACH, class S, class T>
__device__ __forceinline__ void together(const Sums<T>& sums, const PatchView<S>& view,
                                         const Assignments<T>& assignments, const List& list, Shared<EACH, T>& shared) {
  const int at = int(threadIdx.x), warp = at / 32, lane = at % 32;
  const T broken = spoilt(sums);
  __syncthreads();  // what was staged before has been read
  const T share = sum_of_warp(stage(sums, view, assignments, list, at, shared.staged[at]));
  if (lane == 0) shared.shares[warp] = share;
  __syncthreads();
  if (at == 0 && blockIdx.y == 0) {
    T decay = broken;
    for (int w = 0; w < warps; ++w) decay += shared.shares[w];
    decay_in(sums, list) = decay;
  }
  T* row = row_of(sums, list, view.inputs);
  for (int64_t tile = blockIdx.y; tile * 32 * EACH < view.inputs; tile += gridDim.y) {
    Group<T, EACH> sum{};
    add<EACH>(view, shared.staged, warp, list.size, warps, (tile * 32 + lane) * EACH, sum);
    for (int n = 0; n < EACH; ++n) shared.sums[warp][lane * EACH + n] = sum.at[n];
    __syncthreads();
    const int64_t column = tile * 32 * EACH + at;
    if (at < 32 * EACH && column < view.inputs) {
      T whole = broken;
      for (int w = 0; w < warps; ++w) whole += shared.sums[w][at];
      row[column] = whole;
    }
    __syncthreads();
  }
}

// The first blocks, which have the most to do, own a slot of pieces each, the others one list or a list a warp; y:
// column tiles.
template <int EACH, class S, class T>
__global__ void __launch_bounds__(threads, 4)
    gather_kernel(Sums<T> sums, PatchView<S> view, const __grid_constant__ Assignments<T> assignments) {
  __shared__ Shared<EACH, T> shared;
  const int slot = int(blockIdx.x), warp = int(threadIdx.x) / 32, first = (slot - sums.slots) * sums.side_by_side;
  const bool cut = slot < sums.slots;
  if (!cut && warp < sums.side_by_side) {
    const List list = list_of(sums, first + warp);
    if (list.size >= 0 && list.size <= few) alone<EACH>(sums, view, assignments, list, shared.staged + warp * few);
  }
  for (int other = 0; other < (cut ? 1 : sums.side_by_side); ++other) {
    const List list = cut ? piece_in(sums, slot) : list_of(sums, first + other);
    if (list.size > (cut ? 0 : few)) together(sums, view, assignments, list, shared);
  }
}

template <int EACH, class S, class T>
void gather(const Device& device, const Sums<T>& sums, const PatchView<S>& view, const Assignments<T>& assignments) {
  const int64_t blocks = sums.slots + cdiv(sums.neurons, sums.side_by_side);
  launch<gather_kernel<EACH, S, T>>("accumulate.gather", dim3(unsigned(blocks), tiles(view.inputs, 32 * EACH)), threads,
                                    0, device, sums, view, assignments);
}

}  // namespace

template <class S, class T>
Lists<T> grouped(const Device& device, const Tensor& x, const PatchView<S>& view, const Entries& what, int ranks,
                 const Assignments<T>& assignments, int neurons, const T* offset, const T* scale, bool empty,
                 Lists<T> lists) {
  const int64_t entries = what.count, inputs = view.inputs;
  Sorted entry = sorted(device, x, what.keys, what.numbers, entries, int64_t(neurons) + 2);
  lists.starts = entry.starts;
  lists.keys = entry.keys;
  lists.memory = std::move(entry.memory);
  const auto numbers = [&](const Ints& sizes) {
    lists.memory.push_back(empty_like(x, sizes, result_dtype(x.scalar_type())));
    return pointer<T>(lists.memory.back());
  };
  if (!lists.total) lists.total = numbers({neurons, inputs});
  if (!lists.decay) lists.decay = numbers({neurons});
  if (entries > piece) {
    lists.partial = numbers({slots_of(entries), inputs});
    lists.decay_partial = numbers({slots_of(entries)});
  }
  Sums<T> sums = sums_of(lists, entries, neurons);
  sums.order = entry.order;
  sums.offset = offset;
  sums.scale = scale;
  sums.ranks = Divisor(std::max(ranks, 1));
  sums.empty = empty;
  sums.side_by_side = entries < int64_t(few) * neurons ? warps : 1;
  constexpr int each = 16 / sizeof(S);
  if (view.in_groups(each))
    gather<each>(device, sums, view, assignments);
  else
    gather<1>(device, sums, view, assignments);
  return lists;
}

#define GROUPED(S, T)                                                                                     \
  template Lists<T> grouped<S, T>(const Device&, const Tensor&, const PatchView<S>&, const Entries&, int, \
                                  const Assignments<T>&, int, const T*, const T*, bool, Lists<T>);
GROUPED(float, float)
GROUPED(double, double)
GROUPED(BFloat16, float)
GROUPED(Half, float)
#undef GROUPED

}  // namespace hebbkern
