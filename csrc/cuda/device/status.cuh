// Steps that were skipped because a number in them was not finite: kernels count them, whoever asks is told.
//
// A device has one count, made at its first step and kept for the life of the process, so that a CUDA graph may hold on
// to it. What a replayed graph skips is told by the next step outside of one, or by hebbkern.synchronize.
#pragma once

#include "cuda/device/device.cuh"

namespace hebbkern {

// Where kernels of this device count (a plain add by one thread of one block): memory that the host reads without
// waiting.
int* skipped(const Device& device);

// Before a step: raises if earlier steps on this device are known to have been skipped. Waits for nothing.
void look(const Device& device);

// After a step: raises if it was skipped, where that can be seen at once.
void settle(const char* op, const Device& device);

// How many steps were skipped on device `index` since last asked.
int take_skipped(int index);

// The devices that have a count.
std::vector<int> counted();

}  // namespace hebbkern
