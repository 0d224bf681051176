// The walk of a competition: every neuron's response to patches, of which the strongest stay.
#pragma once

#include "cuda/device/ranks.cuh"

namespace hebbkern {

// All of rows [K, N] against all patches; one launch, or two where blocks share the neurons between them.
template <class S, class T>
void walk(const Device& device, const Tensor& like, const PatchView<S>& view, const T* rows, const Moments<T>& known,
          const Mask& eligible, const Outcome<T>& outcome);

// The k strongest of `shares` lists of each patch, [shares, P, k] of winners and responses each.
template <class T>
void merge(const Device& device, const Outcome<T>& lists, const Outcome<T>& outcome, int patches, int shares);

}  // namespace hebbkern
