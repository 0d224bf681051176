// accumulate: entries grouped by the neuron they teach, then each neuron's patches added up, straight from the image.
//
// A list of more than `piece` entries is cut at fixed multiples of that from its own start, and the pieces' sums are
// added in order; within a piece, which warp adds which entry depends on the list's length alone. So what a neuron
// learns depends on nothing but its own patches.
#include "accumulate.cuh"

#include <climits>
#include <cstring>

#include "../accumulate.h"
#include "moments.cuh"
#include "sort.cuh"
#include "values.cuh"

namespace hebbkern {
namespace {

constexpr int warps = 8, threads = 32 * warps;  // a thread stages an entry of a piece
constexpr int few = 32;                         // entries that one warp adds up alone: a lane stages each
static_assert(threads == piece);

template <class T>
struct Named {
  const void* names;
  bool long_names;  // int64
  int64_t down, right;
  Divisor share, ranks;
  Mask frozen;
  int neurons, count;
};

template <class T>
__device__ __forceinline__ bool finite(T a) {
  return (a < 0 ? -a : a) < T(INFINITY);
}

template <class T>
__device__ __forceinline__ T coefficient_of(const Taught<T>& taught, int patch, int rank, int entry) {
  const T c = taught.values ? taught.values[patch * taught.down + rank * taught.right] : taught.of_rank[rank];
  return taught.rectify ? rectified(c, taught.rectify[entry]) : c;
}

template <class T>
__device__ __forceinline__ T decay_of(const Taught<T>& taught, int patch, int rank) {
  return taught.decays ? taught.decays[patch * taught.decays_down + rank * taught.decays_right] : T(1);
}

template <class T>
__global__ void __launch_bounds__(threads)
    name_kernel(Named<T> named, const __grid_constant__ Taught<T> taught, int32_t* keys) {
  const int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (i >= named.count) return;
  const int entry = int(i), patch = named.ranks.quotient(entry), rank = entry - patch * int(named.ranks.divisor);
  const int64_t spot = named.share.quotient(patch) * named.down + rank * named.right;
  const int64_t neuron = named.long_names ? static_cast<const int64_t*>(named.names)[spot]
                                          : static_cast<const int32_t*>(named.names)[spot];
  const T c = coefficient_of(taught, patch, rank, entry);
  int key = int(neuron);
  if (neuron < -1 || neuron >= named.neurons || !finite(c) || !finite(decay_of(taught, patch, rank)))
    key = named.neurons + 1;
  else if (neuron == -1 || c == 0 || named.frozen[neuron])
    key = named.neurons;
  keys[entry] = key;
}

// What a kernel of sums reads and writes beside the patches.
template <class T>
struct Sums {
  const int32_t *starts, *keys, *order;
  const T *offset, *scale;
  T *total, *decay, *partial, *decay_partial;
  int entries, neurons, slots;
  int side_by_side;  // lists a block
  Divisor ranks;
  bool empty;
};

// Entries [first, first + size) in the order of keys; size -1: nothing to write.
struct List {
  int neuron, first, size;
  int slot;  // -1: the whole list
};

// The piece whose sum is kept in this slot.
template <class T>
__device__ __forceinline__ List piece_in(const Sums<T>& sums, int slot) {
  const int low = slot / 2 * piece;
  // A piece beginning in here holds the entry at the low end, or begins its list, which then reaches past the end.
  const int at = slot % 2 == 0 ? low : low + piece - 1;
  const int neuron = at < sums.entries ? sums.keys[at] : sums.neurons;
  if (neuron >= sums.neurons) return {neuron, 0, -1, slot};
  const int start = sums.starts[neuron], end = sums.starts[neuron + 1];
  const int number = slot % 2 == 0 ? (low - start + piece - 1) / piece : 0, first = start + number * piece;
  const bool mine = end - start > piece && first < end && slot_of(start, number) == slot;
  return {neuron, first, mine ? min(piece, end - first) : -1, slot};
}

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
__device__ __forceinline__ T stage(const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught,
                                   const List& list, int at, Staged<T>& staged) {
  if (at >= list.size) {
    staged = {{0, INT_MIN, 0}, T(0), T(0), T(0)};  // a row that no image has
    return 0;
  }
  const int entry = sums.order[list.first + at], patch = sums.ranks.quotient(entry);
  const int rank = entry - patch * int(sums.ranks.divisor);
  const T c = coefficient_of(taught, patch, rank, entry);
  staged = {place.corner(patch), c, sums.offset ? sums.offset[patch] : T(0), sums.scale ? sums.scale[patch] : T(1)};
  return c * decay_of(taught, patch, rank);
}

// Neighbouring inputs that a lane adds up.
template <class S, int EACH>
struct alignas(EACH * sizeof(S)) Group {
  S at[EACH];
};

// Of the group at `column`, or of the last one.
template <int EACH, class S>
__device__ __forceinline__ Tap tap_at(const Place<S>& place, int64_t column) {
  return place.tap(column < place.inputs ? int(column) : place.inputs - EACH);
}

// Those of the patch at `corner`, 0 where it does not lie in the image; without branches, which would keep loads apart.
template <int EACH, class S>
__device__ __forceinline__ Group<S, EACH> load(const Place<S>& place, const S* at_tap, const Corner& corner,
                                               const Tap& tap) {
  const bool there = (unsigned(corner.row + tap.down) < unsigned(place.height)) &
                     (unsigned(corner.column + tap.right) < unsigned(place.width));
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
__device__ __forceinline__ void add(const Place<S>& place, const Staged<T>* staged, int first, int size, int step,
                                    int64_t column, Group<T, EACH>& sum) {
  constexpr int flight = EACH == 1 ? 8 : 4;  // 64 bytes a thread, or as many registers of addresses
  const Tap tap = tap_at<EACH>(place, column);
  const S* at_tap = place.x + tap.offset;
  for (int at = first; at < size; at += flight * step) {
    Group<S, EACH> ahead[flight];
#pragma unroll
    for (int u = 0; u < flight; ++u) ahead[u] = load<EACH>(place, at_tap, staged[at + u * step].corner, tap);
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
__device__ __forceinline__ void alone(const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught,
                                      const List& list, Staged<T>* staged) {
  const int lane = int(threadIdx.x) % 32;
  const T broken = spoilt(sums), share = sum_of_warp(stage(sums, place, taught, list, lane, staged[lane]));
  if (blockIdx.y == 0 && lane == 0) decay_in(sums, list) = share + broken;
  __syncwarp();
  T* row = row_of(sums, list, place.inputs);
  for (int64_t tile = blockIdx.y; tile * 32 * EACH < place.inputs; tile += gridDim.y) {
    const int64_t column = (tile * 32 + lane) * EACH;
    Group<T, EACH> sum{};
    add<EACH>(place, staged, 0, list.size, 1, column, sum);
    for (int n = 0; n < EACH; ++n) sum.at[n] += broken;
    if (column < place.inputs) *reinterpret_cast<Group<T, EACH>*>(row + column) = sum;
  }
}

template <int EACH, class T>
struct Shared {
  Staged<T> staged[piece];
  T sums[warps][32 * EACH], shares[warps];
};

// The block does: warp w adds entries w, w + warps, ...; then the warps' sums are added in their order.
template <int EACH, class S, class T>
__device__ __forceinline__ void together(const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught,
                                         const List& list, Shared<EACH, T>& shared) {
  const int at = int(threadIdx.x), warp = at / 32, lane = at % 32;
  const T broken = spoilt(sums);
  __syncthreads();  // what was staged before has been read
  const T share = sum_of_warp(stage(sums, place, taught, list, at, shared.staged[at]));
  if (lane == 0) shared.shares[warp] = share;
  __syncthreads();
  if (at == 0 && blockIdx.y == 0) {
    T decay = broken;
    for (int w = 0; w < warps; ++w) decay += shared.shares[w];
    decay_in(sums, list) = decay;
  }
  T* row = row_of(sums, list, place.inputs);
  for (int64_t tile = blockIdx.y; tile * 32 * EACH < place.inputs; tile += gridDim.y) {
    Group<T, EACH> sum{};
    add<EACH>(place, shared.staged, warp, list.size, warps, (tile * 32 + lane) * EACH, sum);
    for (int n = 0; n < EACH; ++n) shared.sums[warp][lane * EACH + n] = sum.at[n];
    __syncthreads();
    const int64_t column = tile * 32 * EACH + at;
    if (at < 32 * EACH && column < place.inputs) {
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
__global__ void __launch_bounds__(threads)
    gather_kernel(Sums<T> sums, Place<S> place, const __grid_constant__ Taught<T> taught) {
  __shared__ Shared<EACH, T> shared;
  const int slot = int(blockIdx.x), warp = int(threadIdx.x) / 32, first = (slot - sums.slots) * sums.side_by_side;
  const bool cut = slot < sums.slots;
  if (!cut && warp < sums.side_by_side) {
    const List list = list_of(sums, first + warp);
    if (list.size >= 0 && list.size <= few) alone<EACH>(sums, place, taught, list, shared.staged + warp * few);
  }
  for (int other = 0; other < (cut ? 1 : sums.side_by_side); ++other) {
    const List list = cut ? piece_in(sums, slot) : list_of(sums, first + other);
    if (list.size > (cut ? 0 : few)) together(sums, place, taught, list, shared);
  }
}

// Puts the sums of lists that were cut together, a block a list that begins among `piece` entries and a column tile;
// the blocks behind those count every list.
template <class T>
__global__ void __launch_bounds__(threads) combine_kernel(Sums<T> sums, T* count, int inputs) {
  const int cut = sums.slots / 2, at = int(threadIdx.x);
  if (int(blockIdx.x) >= cut) {
    const int64_t neuron = int64_t(int(blockIdx.x) - cut) * threads + at;
    if (blockIdx.y == 0 && neuron < sums.neurons) count[neuron] = T(sums.starts[neuron + 1] - sums.starts[neuron]);
    return;
  }
  const List list = piece_in(sums, 2 * int(blockIdx.x) + 1);
  if (list.size < 0) return;
  const int end = sums.starts[list.neuron + 1];
  if (blockIdx.y == 0 && at == 0) sums.decay[list.neuron] = of_pieces(sums.decay_partial, 1, 0, list.first, end);
  for (int64_t column = int64_t(blockIdx.y) * threads + at; column < inputs; column += int64_t(gridDim.y) * threads)
    sums.total[list.neuron * int64_t(inputs) + column] = of_pieces(sums.partial, inputs, column, list.first, end);
}

int slots_of(int64_t entries) { return int(2 * cdiv(entries, piece)); }

// y of a grid for so many columns.
unsigned tiles(int64_t inputs, int64_t width) { return unsigned(std::min<int64_t>(cdiv(inputs, width), 65535)); }

template <int EACH, class S, class T>
void gather(const Device& device, const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught) {
  const int64_t blocks = sums.slots + cdiv(sums.neurons, sums.side_by_side);
  launch<gather_kernel<EACH, S, T>>("accumulate.gather", dim3(unsigned(blocks), tiles(place.inputs, 32 * EACH)),
                                    threads, 0, device, sums, place, taught);
}

// For kernels; what it does not set is not there.
template <class T>
Sums<T> sums_of(const Lists<T>& lists, int64_t entries, int neurons) {
  Sums<T> sums{};
  sums.starts = lists.starts;
  sums.keys = lists.keys;
  sums.total = lists.total;
  sums.decay = lists.decay;
  sums.partial = lists.partial;
  sums.decay_partial = lists.decay_partial;
  sums.entries = int(entries);
  sums.neurons = neurons;
  sums.slots = lists.partial ? slots_of(entries) : 0;
  return sums;
}

}  // namespace

template <class T>
void name_entries(const Device& device, const Tensor& named, int64_t share, int64_t ranks, const Taught<T>& taught,
                  int neurons, const Mask& frozen, int32_t* keys, int64_t count) {
  Named<T> names{named.const_data_ptr(),
                 named.scalar_type() == ScalarType::Long,
                 named.stride(0),
                 named.dim() == 2 ? named.stride(1) : 0,
                 Divisor(std::max<int64_t>(share, 1)),
                 Divisor(std::max<int64_t>(ranks, 1)),
                 frozen,
                 neurons,
                 int(count)};
  launch<name_kernel<T>>("accumulate.name", dim3(unsigned(cdiv(count, threads))), threads, 0, device, names, taught,
                         keys);
}

template <class S, class T>
Lists<T> grouped(const Device& device, const Tensor& x, const Place<S>& place, const int32_t* keys, int ranks,
                 const Taught<T>& taught, int neurons, const T* offset, const T* scale, bool empty, Lists<T> lists) {
  const int64_t entries = int64_t(place.patches) * ranks, inputs = place.inputs;
  Sorted entry = sorted(device, x, keys, entries, int64_t(neurons) + 2);
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
  if (place.in_groups(each))
    gather<each>(device, sums, place, taught);
  else
    gather<1>(device, sums, place, taught);
  return lists;
}

template <class S, class T>
static void accumulate_typed(const Tensor& x, const Asked& asked, const Tensor& named, const Tensor& coefficients,
                             const OptionalTensor& responses, const OptionalTensor& frozen, Lists<T> lists, T* count) {
  const char* op = "accumulate";
  const Device device(x);
  const Place<S> place(op, x, asked.g);
  const int neurons = int(asked.g.neurons), ranks = int(named.size(1));
  const int64_t entries = entries_of(op, asked.g.patches(), named.size(1));
  const Moments<T> known = moments<S, S, T>(op, device, x, place, asked.patches);
  Taught<T> taught;
  taught.values = const_pointer<T>(coefficients);
  taught.down = coefficients.dim() == 2 ? coefficients.stride(0) : 0;
  taught.right = coefficients.stride(coefficients.dim() - 1);
  if (responses) {
    taught.decays = const_pointer<T>(*responses);
    taught.decays_down = responses->stride(0);
    taught.decays_right = responses->stride(1);
  }
  const Tensor keys = empty_like(x, {entries}, ScalarType::Int);
  name_entries(device, named, 1, ranks, taught, neurons, Mask(frozen), pointer<int32_t>(keys), entries);
  lists =
      grouped(device, x, place, pointer<int32_t>(keys), ranks, taught, neurons, known.offset, known.scale, true, lists);
  const Sums<T> sums = sums_of(lists, entries, neurons);
  const int64_t blocks = sums.slots / 2 + cdiv(neurons, threads);
  launch<combine_kernel<T>>("accumulate.combine",
                            dim3(unsigned(blocks), sums.slots ? tiles(place.inputs, threads) : 1u), threads, 0, device,
                            sums, count, place.inputs);
}

static std::tuple<Tensor, Tensor, Tensor> accumulate(Tensor x, Tensor taught, Tensor coefficients,
                                                     OptionalTensor responses, int64_t neurons, Ints kernel,
                                                     std::string patches, Ints stride, Ints padding, Ints dilation,
                                                     OptionalTensor frozen) {
  const char* op = "accumulate";
  const Asked asked =
      check_accumulate(x, taught, coefficients, responses, neurons, kernel, patches, stride, padding, dilation, frozen);
  require_finite(op, "x", x);
  require_finite(op, "coefficients", coefficients);
  require_finite(op, "responses", responses);
  require_named(op, "taught", taught, neurons);
  const Geometry& g = asked.g;
  const ScalarType result = result_dtype(x.scalar_type());
  const Ints shape = g.image ? Ints{neurons, g.channels, g.kh, g.kw} : Ints{neurons, g.channels};
  Tensor sum = empty_like(x, shape, result), decay = empty_like(x, {neurons}, result);
  Tensor count = empty_like(x, {neurons}, result);
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    using T = decltype(tag);
    Lists<T> lists;
    lists.total = pointer<T>(sum);
    lists.decay = pointer<T>(decay);
    accumulate_typed<decltype(stored), T>(x, asked, taught, coefficients, responses, frozen, lists, pointer<T>(count));
  });
  return {sum, decay, count};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("accumulate.cuda", TORCH_BOX(&accumulate)); }

#define GROUPED(S, T)                                                                                 \
  template Lists<T> grouped<S, T>(const Device&, const Tensor&, const Place<S>&, const int32_t*, int, \
                                  const Taught<T>&, int, const T*, const T*, bool, Lists<T>);
GROUPED(float, float)
GROUPED(double, double)
GROUPED(BFloat16, float)
GROUPED(Half, float)
#undef GROUPED
#define NAME_ENTRIES(T)                                                                                             \
  template void name_entries<T>(const Device&, const Tensor&, int64_t, int64_t, const Taught<T>&, int, const Mask&, \
                                int32_t*, int64_t);
NAME_ENTRIES(float)
NAME_ENTRIES(double)
#undef NAME_ENTRIES

}  // namespace hebbkern
