// accumulate, for those who hold the keys of its entries and go on with its sums.
#pragma once

#include "place.cuh"

namespace hebbkern {

constexpr int piece = 256;  // entries of a neuron's list that are added in one go

// How much entry (p, r) teaches: values[p, r], times its response where that is positive if `rectified` is given. The
// decay adds up the same times `decays`, or without them alone.
template <class T>
struct Taught {
  const T* values;
  int64_t down, right;           // strides; 0 for the same in every patch
  const T* rectified = nullptr;  // [P, R] contiguous
  const T* decays = nullptr;
  int64_t decays_down = 0, decays_right = 0;
};

// Sums of lists, before those that were cut into pieces are put together.
template <class T>
struct Lists {
  const int32_t* starts =
      nullptr;                 // [K + 3]: where the entries of each key begin, once sorted; K: nobody, K + 1: broken
  const T* partial = nullptr;  // [slots, N], pieces of lists longer than `piece`
  const T* decay_partial = nullptr;  // [slots]
  T* total = nullptr;                // [K, N] of the other lists
  T* decay = nullptr;                // [K]
  std::vector<Tensor> memory;
};

// Where the sum of a piece of a list that begins at `start` is kept, if the list is longer than a piece. Two slots for
// each `piece` entries of all lists: at most two long lists have a piece that begins among them, and only one of these
// two pieces can be its list's first.
HEBBKERN_HOST_DEVICE inline int slot_of(int start, int number) {
  return 2 * (start / piece + number) + (number == 0 ? 1 : 0);
}

// Lists of the patches by their keys, int32 [P * ranks] with values 0 to K + 1; offset and scale [P] or null. Without
// `empty`, rows of neurons that nobody teaches stay unwritten.
template <class S, class T>
Lists<T> grouped(const char* op, const Device& device, const Tensor& x, const Place<S>& place, const int32_t* keys,
                 int ranks, const Taught<T>& taught, int neurons, const T* offset, const T* scale, bool empty);

}  // namespace hebbkern
