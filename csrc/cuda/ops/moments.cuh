// Means and norms of patches, sums and norms of neurons' weights.
#pragma once

#include "cuda/device/patch_view.cuh"

namespace hebbkern {

// null: the same everywhere, offset 0, scale 1, total not asked for, inverse 1.
template <class T>
struct Moments {
  T* offset = nullptr;   // [P], x~ = (x - offset) * scale
  T* scale = nullptr;    // [P], of a patch to norm 1 (centred alone: 1), 0 where it is flat or zero
  T* total = nullptr;    // [K], sum of a neuron's weights
  T* inverse = nullptr;  // [K], 1 / norm of its weights, 0 for zeros
  std::vector<Tensor> memory;
};

// In at most one launch. `unit` scales patches to norm 1 (cosines), about the mean if they are centred, and asks for
// the rows' inverse norms; rows: [K, N] or null, W being S or the type S is computed in.
template <class S, class W, class T>
Moments<T> moments(const char* op, const Device& device, const Tensor& like, const PatchView<S>& view, Patches kind,
                   const PatchView<W>* rows = nullptr, bool unit = false);

}  // namespace hebbkern
