// Steps that were skipped because a number in them was not finite: kernels count them on their device, and the host
// reports them.
//
// A device has one count, made at its first step and kept for the life of the process, so that a CUDA graph may keep
// its address. Steps that a replayed graph skips are reported by the next step outside a graph, or by
// hebbkern.synchronize.
#pragma once

#include "cuda/device/device.cuh"

namespace hebbkern {

// Where kernels of this device count (a plain add by one thread of one block): memory that the host reads without
// waiting.
int* skipped(const Device& device);

// Before a step: raises if earlier steps on this device are known to have been skipped. Waits for nothing.
void raise_if_skipped(const Device& device);

// After a step: raises if it was skipped, where that can be seen at once.
void raise_if_step_skipped(const char* op, const Device& device);

// How many steps were skipped on device `index` since the last call.
int take_skipped(int index);

// The devices that have a count.
std::vector<int> counted();

}  // namespace hebbkern
