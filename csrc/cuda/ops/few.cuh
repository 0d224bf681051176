// A competition in groups of few neurons.
#pragma once

#include "cuda/device/ranks.cuh"

namespace hebbkern {

// Neurons of a group for which every weight that a thread reads is worth its time: the walk reads an eighth as many
// numbers for a product, and fills an eighth of its tile.
constexpr int most_few = 8;

// The winners and responses of `walk`, to the bit, in one launch; at most `most_few` neurons a group.
template <class S, class T>
void few(const Device& device, const PatchView<S>& view, const T* rows, const Moments<T>& known, const Mask& eligible,
         const Outcome<T>& outcome);

}  // namespace hebbkern
