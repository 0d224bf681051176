// The terms of screen.cuh's bound, for the kernel that screens and the kernel that decides.
#pragma once

#include "cuda/device/response.cuh"
#include "cuda/ops/screen.cuh"

namespace hebbkern {

// Norms of what bfloat16 keeps and loses of each patch, and of each neuron before it and of what it loses.
struct Rounding {
  float *kept, *lost;  // [P]
  float *size, *slip;  // [K]
  uint16_t* rows;      // [K, stride], the neurons rounded, zeros behind
  int64_t stride;
};

// A patch's candidates of all shares: [shares, P, most] each, in falling order of their bounds.
struct Candidates {
  int32_t* neurons;
  float* bounds;
  int shares, most;
};

// Arguments of the kernel that decides.
struct DecideArguments {
  PatchView<float> view;
  const float* rows;  // [K, N]
  Known<float> known;
  Mask eligible;
  Rounding rounding;
  Candidates candidates;
  int32_t* undecided;  // [P], null, or marks the patches that competed again
  Outcome<float> to;
  bool grouped, rows_grouped;  // whether four entries, or weights, are loaded at once
};

void decide(const Device& device, const DecideArguments& arguments);

namespace {

constexpr float least = 0x1p-20f, most = 0x1p+20f;  // norms

// The response of a patch to w is off by at most near |w| + wide |w - w^|.
struct Reach {
  float near, wide;
};

__device__ __forceinline__ Reach reach(float kept, float lost, float offset, int inputs) {
  const float size = kept < least ? least : kept, count = float(inputs);
  const float far = std::fabs(offset) * std::sqrt(count);
  const float rounding = (count + 16) * (size * (0x1p-22f + 0x1p-23f) + (lost + 2 * far) * 0x1p-23f);
  return {(lost + rounding) * (1 + 0x1p-7f), size <= most ? size * (1 + 0x1p-7f) : INFINITY};
}

__device__ __forceinline__ float doubt(const Reach& of, float size, float slip) {
  const float norm = size < least ? least : size;
  return of.near * (norm <= most ? norm : INFINITY) + of.wide * slip;
}

}  // namespace
}  // namespace hebbkern
