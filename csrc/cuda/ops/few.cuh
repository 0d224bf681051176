// A competition in groups of few neurons.
#pragma once

#include "cuda/device/ranks.cuh"

namespace hebbkern {

// Neurons of a group. A thread reads about one number a product, the walk 12 for 32; but a tile of the walk, of 64
// neurons, would be at most an eighth full.
constexpr int most_few = 8;

// The winners and responses of `walk`, to the bit, in one launch; at most `most_few` neurons a group.
template <class S, class T>
void few(const Device& device, const PatchView<S>& view, const T* rows, const Moments<T>& known, const Mask& eligible,
         const Outcome<T>& outcome);

}  // namespace hebbkern
