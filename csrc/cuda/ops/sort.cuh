// Entries sorted by their keys.
#pragma once

#include "cuda/device/device.cuh"

namespace hebbkern {

struct Sorted {
  const int32_t* keys = nullptr;    // [count], rising
  const int32_t* order = nullptr;   // [count], the entries; equal keys keep theirs
  const int32_t* starts = nullptr;  // [kinds + 1], where each key begins; the end
  std::vector<Tensor> memory;
};

// keys: [count], 0 to kinds - 1; numbers: [count], 0 to count - 1, the entries; memory comes from where `like` is.
Sorted sorted(const Device& device, const Tensor& like, const int32_t* keys, const int32_t* numbers, int64_t count,
              int64_t kinds);

}  // namespace hebbkern
