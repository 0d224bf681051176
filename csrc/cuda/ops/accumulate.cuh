// The sums of accumulate, for operators that hold the entries' keys and use the sums.
#pragma once

#include "cuda/device/patch_view.cuh"

namespace hebbkern {

constexpr int piece = 256;      // entries of a neuron's list that are added in one go
constexpr int most_ranks = 64;  // of a contest

// The weight of entry (p, r): values[p, r], or of_rank[r] without values, times its response where that is positive
// if `rectify` is given. The decay adds up the same times `decays`, or without them alone.
template <class T>
struct Assignments {
  const T* values = nullptr;
  int64_t down = 0, right = 0;  // strides; 0 for the same in every patch
  T of_rank[most_ranks] = {};   // by value: no copy to wait for
  const T* rectify = nullptr;   // responses, [P, R] contiguous
  const T* decays = nullptr;
  int64_t decays_down = 0, decays_right = 0;
};

// Sums of lists, before those that were cut into pieces are put together.
template <class T>
struct Lists {
  const int32_t* starts =
      nullptr;                    // [K + 3]: where the entries of each key begin, once sorted; K: none, K + 1: invalid
  const int32_t* keys = nullptr;  // of all entries, rising
  T* partial = nullptr;           // [slots, N], pieces of lists longer than `piece`; null where none can be
  T* decay_partial = nullptr;     // [slots]
  T* total = nullptr;             // [K, N] of the other lists
  T* decay = nullptr;             // [K]
  std::vector<Tensor> memory;
};

// Where the sum of a piece of a list that begins at `start` is kept, if the list is longer than a piece. Two slots for
// each `piece` entries of all lists: at most two long lists have a piece that begins among them, and only one of these
// two pieces can be its list's first.
HEBBKERN_HOST_DEVICE inline int slot_of(int start, int number) {
  return 2 * (start / piece + number) + (number == 0 ? 1 : 0);
}

// One number of the sum of a list of entries [start, end) that was cut: its pieces' sums, in their order. `partial` has
// `inputs` numbers a slot.
template <class T>
__device__ __forceinline__ T of_pieces(const T* partial, int64_t inputs, int64_t input, int start, int end) {
  const int pieces = (end - start + piece - 1) / piece;
  T sum = 0;
#pragma unroll 4
  for (int number = 0; number < pieces; ++number) sum += partial[slot_of(start, number) * inputs + input];
  return sum;
}

// What is sorted: each entry's key, 0 to K + 1, and its own number.
struct Entries {
  int64_t count;
  Tensor memory;
  int32_t *keys, *numbers;  // [P * ranks]

  // Raises where there are more of them, or of neurons, than kernels can number.
  Entries(const char* op, const Tensor& x, const Geometry& g, int64_t ranks) : count(g.groups * g.patches() * ranks) {
    if (count > most_numbered) fail(op, "x must have at most ", most_numbered, " patches times ranks, got ", count);
    const int64_t neurons = g.groups * g.neurons;
    if (neurons > largest_extent - 3) fail(op, "there must be fewer than 2^31 - 3 neurons, got ", neurons);
    memory = empty_like(x, {2, count}, ScalarType::Int);
    keys = pointer<int32_t>(memory);
    numbers = keys + count;
  }
};

// Fills in the entries in one launch. Their keys: the neuron that an entry teaches, K for none or where the patch is
// blank, K + 1 where a number of it is invalid. `named` int32 or int64: targets [P, ranks], each of its patch's group,
// or labels [B], of any group, which teach a patch of another group nothing. scale: of patches that are not raw, else
// null.
template <class S, class T>
void name_entries(const Device& device, const PatchView<S>& view, const T* scale, const Tensor& named, int64_t ranks,
                  const Assignments<T>& assignments, int neurons, const Mask& frozen, const Entries& entries);

// Lists of the patches by their entries' keys; offset and scale [P] or null. Without `empty`, rows of neurons that
// no entry teaches stay unwritten. total and decay are new where `into` has none. At most two launches beside CUB's.
template <class S, class T>
Lists<T> grouped(const Device& device, const Tensor& x, const PatchView<S>& view, const Entries& entries, int ranks,
                 const Assignments<T>& assignments, int neurons, const T* offset, const T* scale, bool empty,
                 Lists<T> into = {});

}  // namespace hebbkern
