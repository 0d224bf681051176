// What can be said of values where they can be looked at: the sentences of the CPU's kernels. On a GPU these are empty.
#pragma once

#include "cuda/device/device.cuh"

namespace hebbkern {

// Raises unless every number of the tensor, of any strides, is finite.
void require_finite(const char* op, const char* argument, const Tensor& tensor);
void require_finite(const char* op, const char* argument, const OptionalTensor& tensor);

// Raises if a number that was computed from finite ones is not finite; sentence: finite_responses or finite_sums.
void require_no_overflow(const char* op, const char* sentence, const Tensor& result);

// Raises unless every number names a neuron, or nobody by -1.
void require_named(const char* op, const char* argument, const Tensor& named, int64_t neurons);

// Raises unless patches of these scales (0 for flat ones) have norms that are finite and can be divided by.
void require_norms(const char* op, const Tensor& scale);

}  // namespace hebbkern
