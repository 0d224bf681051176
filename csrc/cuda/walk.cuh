// The walk of a competition: every neuron's response to patches, of which the strongest stay.
#pragma once

#include "ranks.cuh"

namespace hebbkern {

// Patches that a kernel put on a list, in any order but each once, and how many these are; null: all there are.
struct Listed {
  const int32_t* patches = nullptr;  // [P]
  const int32_t* count = nullptr;
};

// All of rows [K, N] against the patches that are `listed`, the others' winners stay as they are; one launch, or two
// where blocks share the neurons between them. How many are listed is not known before the kernel runs.
template <class S, class T>
void walk(const Device& device, const Tensor& like, const Place<S>& place, const T* rows, const Moments<T>& known,
          const Mask& mask, const Outcome<T>& outcome, const Listed& listed = {});

// The k strongest of `shares` lists of each patch, [shares, P, k] of winners and responses each.
template <class T>
void merge(const Device& device, const Outcome<T>& lists, const Outcome<T>& outcome, int patches, int shares,
           const Listed& listed = {});

}  // namespace hebbkern
