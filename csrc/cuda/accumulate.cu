// accumulate: entries grouped by the neuron they teach, then each neuron's patches added up, straight from the image.
//
// A list of more than `piece` entries is cut at fixed multiples of that from its own start, and the pieces' sums are
// added in order; within a piece, which warp adds which entry depends on the list's length alone. So what a neuron
// learns depends on nothing but its own patches.
#include "accumulate.cuh"

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

// What has to be known of the entry at `at`; returns what it adds to the decay.
template <class S, class T>
__device__ __forceinline__ T stage(const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught, int at,
                                   Staged<T>& staged) {
  const int entry = sums.order[at], patch = sums.ranks.quotient(entry);
  const int rank = entry - patch * int(sums.ranks.divisor);
  staged.corner = place.corner(patch);
  staged.coefficient = coefficient_of(taught, patch, rank, entry);
  staged.offset = sums.offset ? sums.offset[patch] : T(0);
  staged.scale = sums.scale ? sums.scale[patch] : T(1);
  return staged.coefficient * decay_of(taught, patch, rank);
}

// Neighbouring inputs that a lane adds up.
template <class S, int EACH>
struct alignas(EACH * sizeof(S)) Group {
  S at[EACH];
};

template <int EACH, class S>
__device__ __forceinline__ Group<S, EACH> load(const Place<S>& place, const Corner& corner, const Tap& tap) {
  Group<S, EACH> group;
  if constexpr (EACH == 1) {
    group.at[0] = place.load(corner, tap);
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(place.x + corner.start + tap.offset);
    std::memcpy(&group, &bits, sizeof(bits));
  }
  return group;
}

// Of the group at `column`, or of the last one.
template <int EACH, class S>
__device__ __forceinline__ Tap tap_at(const Place<S>& place, int64_t column) {
  return place.tap(column < place.inputs ? int(column) : place.inputs - EACH);
}

// Entries `first`, `first + step`, ... of those staged, in this order, several patches in flight.
template <int EACH, class S, class T>
__device__ __forceinline__ void add(const Place<S>& place, const Staged<T>* staged, int first, int size, int step,
                                    const Tap& tap, T (&sum)[EACH]) {
  constexpr int flight = EACH == 1 ? 8 : 4;  // 64 bytes a thread, or as many registers of addresses
  for (int n = 0; n < EACH; ++n) sum[n] = 0;
  for (int at = first; at < size; at += flight * step) {
    Group<S, EACH> ahead[flight];
#pragma unroll
    for (int u = 0; u < flight; ++u) ahead[u] = load<EACH>(place, staged[min(at + u * step, size - 1)].corner, tap);
#pragma unroll
    for (int u = 0; u < flight; ++u) {
      if (at + u * step >= size) break;
      const Staged<T>& one = staged[at + u * step];
#pragma unroll
      for (int n = 0; n < EACH; ++n)
        sum[n] = std::fma(one.coefficient, (T(wide(ahead[u].at[n])) - one.offset) * one.scale, sum[n]);
    }
  }
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

// NaN if an entry is broken.
template <class T>
__device__ __forceinline__ T spoilt(const Sums<T>& sums) {
  return sums.starts[sums.neurons + 2] > sums.starts[sums.neurons + 1] ? T(NAN) : T(0);
}

template <class T>
__device__ __forceinline__ T* row_of(const Sums<T>& sums, const List& list, int64_t inputs) {
  return list.slot < 0 ? sums.total + list.neuron * inputs : sums.partial + list.slot * inputs;
}

template <class T>
__device__ __forceinline__ void write_decay(const Sums<T>& sums, const List& list, T decay) {
  (list.slot < 0 ? sums.decay[list.neuron] : sums.decay_partial[list.slot]) = decay + spoilt(sums);
}

// A warp adds up a list of at most `few` entries.
template <int EACH, class S, class T>
__device__ __forceinline__ void alone(const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught,
                                      const List& list, Staged<T>* staged) {
  const int lane = int(threadIdx.x) % 32;
  T share = 0;
  if (lane < list.size) share = stage(sums, place, taught, list.first + lane, staged[lane]);
  if (blockIdx.y == 0) {
    share = sum_of_warp(share);
    if (lane == 0) write_decay(sums, list, share);
  }
  __syncwarp();
  T* row = row_of(sums, list, place.inputs);
  for (int64_t tile = blockIdx.y; tile * 32 * EACH < place.inputs; tile += gridDim.y) {
    const int64_t column = (tile * 32 + lane) * EACH;
    T sum[EACH];
    add<EACH>(place, staged, 0, list.size, 1, tap_at<EACH>(place, column), sum);
    if (column < place.inputs)
      for (int n = 0; n < EACH; ++n) row[column + n] = sum[n] + spoilt(sums);
  }
}

// The block does: warp w adds entries w, w + warps, ...; then the warps' sums are added in their order.
template <int EACH, class S, class T>
__device__ __forceinline__ void together(const Sums<T>& sums, const Place<S>& place, const Taught<T>& taught,
                                         const List& list, Staged<T>* staged, T (*part)[32 * EACH]) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  __syncthreads();  // what was staged before has been read
  T share = 0;
  if (int(threadIdx.x) < list.size)
    share = stage(sums, place, taught, list.first + int(threadIdx.x), staged[threadIdx.x]);
  share = sum_of_warp(share);
  if (lane == 0) part[warp][0] = share;
  __syncthreads();
  if (threadIdx.x == 0 && blockIdx.y == 0) {
    for (int w = 1; w < warps; ++w) share += part[w][0];
    write_decay(sums, list, share);
  }
  __syncthreads();
  T* row = row_of(sums, list, place.inputs);
  for (int64_t tile = blockIdx.y; tile * 32 * EACH < place.inputs; tile += gridDim.y) {
    const int64_t column = (tile * 32 + lane) * EACH;
    T sum[EACH];
    add<EACH>(place, staged, warp, list.size, warps, tap_at<EACH>(place, column), sum);
    for (int n = 0; n < EACH; ++n) part[warp][lane * EACH + n] = sum[n];
    __syncthreads();
    for (int n = int(threadIdx.x); n < 32 * EACH; n += threads) {
      T whole = part[0][n];
      for (int w = 1; w < warps; ++w) whole += part[w][n];
      if (tile * 32 * EACH + n < place.inputs) row[tile * 32 * EACH + n] = whole + spoilt(sums);
    }
    __syncthreads();
  }
}

// The first blocks, which have the most to do, own a slot of pieces each, the others one list or a list a warp; y:
// column tiles.
template <int EACH, class S, class T>
__global__ void __launch_bounds__(threads)
    gather_kernel(Sums<T> sums, Place<S> place, const __grid_constant__ Taught<T> taught) {
  __shared__ Staged<T> staged[piece];
  __shared__ T part[warps][32 * EACH];
  const int slot = int(blockIdx.x), warp = int(threadIdx.x) / 32;
  if (slot < sums.slots) {
    const List list = piece_in(sums, slot);
    if (list.size > 0) together<EACH>(sums, place, taught, list, staged, part);
    return;
  }
  const int first = (slot - sums.slots) * sums.side_by_side;
  if (warp < sums.side_by_side) {
    const List list = list_of(sums, first + warp);
    if (list.size >= 0 && list.size <= few) alone<EACH>(sums, place, taught, list, staged + warp * few);
  }
  for (int other = 0; other < sums.side_by_side; ++other) {
    const List list = list_of(sums, first + other);
    if (list.size > few) together<EACH>(sums, place, taught, list, staged, part);
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
