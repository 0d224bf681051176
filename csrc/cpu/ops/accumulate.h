// The sums of accumulate, for operators that have read the patches already: each taught neuron adds its patches in
// patch order. There are no atomics on sums, and no sum depends on the threads.
#pragma once

#include <functional>

#include "cpu/products/source.h"

namespace hebbkern {

// [P, R] numbers behind any strides; without data each of them is 1.
template <class T>
struct Numbers {
  const T* data = nullptr;
  int64_t down = 0, right = 0;
  T operator()(int64_t p, int64_t r) const { return data ? data[p * down + r * right] : T(1); }
  Numbers from(int64_t p) const { return {data ? data + p * down : nullptr, down, right}; }
};

// Entry (p, r): patch p, which is not blank, teaches neuron targets[p * ranks + r], -1: none. Entries of coefficient 0
// teach no neuron.
template <class T>
struct Assignments {
  int64_t ranks;
  const int32_t* targets;
  Numbers<T> coefficients, responses;  // the decay is sum of coefficient * response
  Mask frozen;                         // these learn nothing
};

// Patches grouped by the neuron that they teach: list i holds entries [start[i], start[i + 1]), in patch order.
template <class T>
struct Lists {
  Lists(std::vector<int32_t> names, std::vector<int64_t> starts)
      : neurons(std::move(names)),
        start(std::move(starts)),
        base(start.back()),
        coefficient(start.back()),
        shift(start.back()),
        decay(int64_t(neurons.size())) {}
  int64_t size() const { return int64_t(neurons.size()); }

  const std::vector<int32_t> neurons;  // those that any patch teaches, rising
  const std::vector<int64_t> start;
  Scratch<int64_t> base;
  Scratch<T> coefficient;  // coefficient * scale
  Scratch<T> shift;        // coefficient * scale * offset, where patches have an offset
  Scratch<T> decay;        // one a list
};

// Of targets that `group` is to read: those of blank patches become -1. compete names none.
template <class T>
void forget_blank(const Source<T>& source, const Moments<T>* moments, int64_t ranks, int32_t* targets);

template <class T>
Lists<T> group(const Source<T>& source, const Moments<T>* moments, const Assignments<T>& assignments);

// Adds up every list into row(list), [N] in the order of a contiguous weight, and calls done(list, row) while that row
// is in cache. Both are called from several threads, once a list.
template <class T>
void add_lists(const Source<T>& source, const Lists<T>& lists, const std::function<T*(int64_t)>& row,
               const std::function<void(int64_t, const T*)>& done);

// Neurons of int32 or int64 tensors [rows, columns], each row `repeat` times, in the order of Assignments::targets.
// Raises if one is neither a neuron nor -1; with groups, rows are group after group, and a neuron is one of the row's.
Scratch<int32_t> checked_indices(const char* op, const char* argument, const Tensor& tensor, int64_t repeat,
                                 int64_t neurons, int64_t groups = 1);

}  // namespace hebbkern
