// Certified winners: float32 competitions sorted out in bfloat16, on tensor cores, and decided in float32.
//
//     round      what bfloat16 keeps and loses of each patch and each neuron; the neurons' weights, rounded
//     screen     a bound u above every response, from a product of rounded numbers; the CAP highest u of each patch
//     decide     float32 responses of those that may still win; a patch whose k-th is above every other neuron's
//                bound is decided, the others compete again in float32, in the same kernel
//
// The bound. Let x be a patch (its offset taken off) and x^ the same rounded, w and w^ likewise, N their length. By
// Cauchy and Schwarz |x.w - x^.w^| <= |x - x^| |w| + |x^| |w - w^|, with norms that are measured. Products of bfloat16
// are exact in float32; their sum is off by at most N 2^-22 |x^| |w^|, even where tensor cores cut off instead of
// rounding. The float32 response itself, with its offset o folded in, is off by at most N 2^-23 |w| (|x| + 2 |o|
// sqrt(N)). The sum of the three, a little enlarged for the rounding of the norms, of u and of the factors of cosines,
// is what is added to x^.w^. Below 2^-20 norms count as 2^-20, so that denormal numbers are far below the bound; above
// 2^20 nothing is certified.
#pragma once

#include "cuda/device/ranks.cuh"
#include "cuda/ops/moments.cuh"

namespace hebbkern {

// Whether float32 competitions are screened: never; where it is surely faster, which is nowhere; wherever it can be.
enum class Screening { off, automatic, always };
void set_screening(Screening mode);

// Whether a competition for k winners is, by the mode that was set last.
bool worth_screening(int k);

// The winners and responses of `walk`, to the bit, in three launches.
void screened(const Device& device, const Tensor& like, const PatchView<float>& view, const float* rows,
              const Moments<float>& known, const Mask& eligible, const Outcome<float>& outcome);

// Patches that were screened since the process began, and those that competed again: counted where values are known.
struct Screened {
  int64_t patches = 0, left = 0;
};
Screened& screened_so_far();

}  // namespace hebbkern
