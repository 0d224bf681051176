// The step of apply_, for operators that hold sums or new weights.
#pragma once

#include "common/apply.h"
#include "cuda/ops/accumulate.cuh"

namespace hebbkern {

// One number a row, or one for all: step 0; null: not given.
template <class T>
struct Column {
  const T* data = nullptr;
  int64_t step = 1;
};

template <class T>
struct Rates {
  Column<T> decay, denominator;
  double lr = 0, rate_power = 0;
  Normalise normalise = Normalise::none;
  Mask frozen{std::nullopt};
};

// The step of `weight` (any strides) by total [K, N], in two launches: all of it, or nothing and the step is counted as
// skipped (raised where values are known). With `lists` only of the neurons that they teach; total and decay are
// theirs, and where `average` the decay is the denominator too.
template <class S, class T>
void take(const char* op, const Device& device, const Tensor& weight, T* total, const Rates<T>& rates,
          const Lists<T>* lists = nullptr, bool average = false);

// Writes moved [K, N] into the rows of `weight` that are not frozen if every one of sound [blocks] is 1, in one launch.
template <class S>
void commit(const char* op, const Device& device, const Tensor& weight, const S* moved, const int32_t* sound,
            int64_t blocks, const Mask& frozen);

}  // namespace hebbkern
