// Checks of tensors' values, with the CPU kernels' messages, where values can be read (the emulation). On a GPU they do
// nothing.
#pragma once

#include "cuda/device/device.cuh"

namespace hebbkern {

// Raises unless every number of the tensor, of any strides, is finite.
void require_finite(const char* op, const char* argument, const Tensor& tensor);
void require_finite(const char* op, const char* argument, const OptionalTensor& tensor);

// Raises if a number that was computed from finite ones is not finite; sentence: finite_responses or finite_sums.
void require_no_overflow(const char* op, const char* sentence, const Tensor& result);

// Raises unless every number is the index of a neuron or -1; with groups, which own as many rows each, of a neuron of
// the row's group.
void require_indices(const char* op, const char* argument, const Tensor& named, int64_t neurons, int64_t groups = 1);

// Raises unless patches of these scales (0 for flat ones) have norms that are finite and can be divided by.
void require_norms(const char* op, const Tensor& scale);

}  // namespace hebbkern
