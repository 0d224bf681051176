// The entries of lists, as accumulate's kernels see them: whole lists, or their pieces by the slots of their sums.
#pragma once

#include "cuda/ops/accumulate.cuh"

namespace hebbkern {
namespace {

template <class T>
__device__ __forceinline__ T coefficient_of(const Assignments<T>& assignments, int patch, int rank, int entry) {
  const T c = assignments.values ? assignments.values[patch * assignments.down + rank * assignments.right]
                                 : assignments.of_rank[rank];
  return assignments.rectify ? rectified(c, assignments.rectify[entry]) : c;
}

template <class T>
__device__ __forceinline__ T decay_of(const Assignments<T>& assignments, int patch, int rank) {
  return assignments.decays ? assignments.decays[patch * assignments.decays_down + rank * assignments.decays_right]
                            : T(1);
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

inline int slots_of(int64_t entries) { return int(2 * cdiv(entries, piece)); }

// y of a grid for so many columns.
inline unsigned tiles(int64_t inputs, int64_t width) { return unsigned(std::min<int64_t>(cdiv(inputs, width), 65535)); }

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
}  // namespace hebbkern
