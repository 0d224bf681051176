// Certified winners: bf16 products on a matrix unit rule out most neurons, float32 decides among the rest.
//
// Let F be the float32 response of neuron w to patch x (compete.cpp: the register tile adds x[n] w[n] one by one, then
// subtracts offset * wsum from centred patches), and s the matrix unit's, of x~ = x - offset and w rounded to bf16: x^,
// w^. bf16 keeps 8 bits, so an entry is off by up to 2^-8 of itself; what it is off by is measured, not assumed:
//
//     x~.w - x^.w^ = (x~ - x^).w^ + x~.(w - w^),  at most |x~ - x^| |w^| + |x~| |w - w^|      (Cauchy-Schwarz)
//
// |.| being Euclidean norms. A sum of N products, added up in whatever order with a relative error of u a step, is off
// by at most N u sum |x[n] w[n]| <= N u |x| |w| to first order. With u = 2^-23, twice what rounding to nearest needs,
// and N + 64 steps there is room for the second order (N u <= 1/16), for the roundings of offset, wsum, x - offset
// and offset * wsum (|offset| sqrt(N) <= |x|, |wsum| <= sqrt(N) |w|), of these bounds and of the comparisons:
//
//     |F - s| <= e = (|x~ - x^| + g (|x~| + |x~ - x^| + |x|)) max(|w|, |w^|) + |x~| |w - w^|,   g = (N + 64) 2^-23.
//
// What underflows or is flushed to zero, as AMX does, is at most 2^-126 for each of 2 N operations and 2^-126 |w[n]| or
// |x[n]| for each entry: no length is taken to be less than sqrt(N) 2^-61.5, hence no e less than N 2^-123, which
// covers it. Where |x| or |w| exceeds 2^48 there is no screening, so nothing overflows.
//
// With |F - s| <= e for all neurons: k of them have F >= L, the k-th highest s - e, and each of the k best has
// s + e >= F >= L. These are the candidates. rescore() computes their F bit for bit, and the k best of them, ties to
// the lower index, are the winners.
//
// What all neurons have in common cannot decide who wins: where they are alike (positive weights, learnt ones), the
// matrix unit multiplies by d = w - m, m about the mean of neurons that win, and s falls short of F by x~.m, the same
// for all. Then
//
//     e = |x~ - x^| |d^| + |x~| |d - d^| + g (|x~| + |x~ - x^| + |x|) (|d| + |d - d^| + |m|),
//
// in which |d| + |d - d^| stands for |d^|, and g has room for the rounding of w - m. m = 0 gives the bound above.
//
// To cost one multiply-add a response, e <= size * error: with a = |x~ - x^|, b = |x~|, c = g (..) and any r, q > 0,
// a |d^| + b |d - d^| + c |w| <= max(b, a / r, c / q) (r |d^| + |d - d^| + q |w|). r = a / b and q = c / b of a block's
// patches lose next to nothing for each of them.
//
// docs/speed.md counts the candidates that this bound and others leave.
#pragma once

#include "cpu/products/matrix.h"
#include "cpu/products/panels.h"

namespace hebbkern {

// Images of which bf16 and lengths are computed once for all the patches that overlap.
struct Rounded {
  Rounded(const Source<float>& source, int64_t entries)
      : x(entries + 32), size(source.g.patches() + 16), rest(source.g.patches() + 16), zero(source.g.patches()) {}
  Scratch<uint16_t> x;  // laid out as the source's
  Scratch<float> size, rest;
  Scratch<bool> zero;
  std::vector<Piece> pieces;  // of a patch, of up to 32 entries
};

class Screen {
 public:
  // Weights rounded to bf16 and measured. `source` and `names` must outlive it.
  Screen(const MatrixUnit& unit, const Source<float>& source, const Tensor& weight, const std::vector<int32_t>& names,
         const Prepare& prepare);

  bool usable() const { return usable_; }  // false: entries that are not finite, or too large to be certain of

  // Patches of a block: their bf16 tiles and one sweep's share of the neurons stay in L2.
  static constexpr int64_t block = 256;

  // The k winners of patches [first, first + count) as F and neuron, [count][k] each, except for those
  // whose candidates are too many: they are appended to `left`. offset, scale: of centred and standardised patches, or
  // null. Without `responses` best holds nothing of use.
  void compete(int64_t first, int64_t count, int k, const float* offset, const float* scale, bool responses,
               float* best, int32_t* winners, std::vector<int64_t>& left) const;

 private:
  struct Block;
  struct Rescored;
  void round_images();
  std::vector<float> typical_patch() const;
  void find_common();
  void prepare_rows(const Tensor& weight, const Prepare& prepare);
  void pack_neurons(int64_t group, const std::vector<Piece>& pieces, uint16_t* packed);
  void pack_patches(Block& block, const float* offset, const float* scale) const;
  void start_races(Block& block) const;
  void sweep(Block& block, int k) const;
  void decide(Block& block, int k, const float* offset, bool responses, float* best, int32_t* winners,
              std::vector<int64_t>& left) const;
  void rescore(const Block& block, const Rescored* pairs, int count, int k, const float* offset, float* best,
               int32_t* winners) const;

  const MatrixUnit& unit_;
  const Source<float>& source_;
  const std::vector<int32_t>& names_;
  const bool centred_;                     // or standardised: the patches
  const int64_t inputs_, steps_, padded_;  // padded_: inputs to a whole number of tiles, steps_ of 32
  const int64_t groups_;                   // of 16 neurons
  const Grain grain_;
  const float noise_, root_;        // g, sqrt(inputs)
  std::vector<Stretch> stretches_;  // of a patch
  std::vector<Piece> pieces_;
  std::optional<Rounded> rounded_;
  const float* rows_ = nullptr;  // neuron j of `names` at rows_ + place(j)
  int64_t row_step_ = 0;
  bool by_name_ = true;  // rows_ holds all neurons of the layer, not only those of `names`
  std::optional<Scratch<float>> copied_;
  Scratch<uint16_t> tiles_;      // [groups][steps][16][32]
  std::vector<float> common_;    // m, empty for 0
  float common_length_ = 0;      // |m|
  Scratch<float> whole_, rest_;  // [neurons] |d| + |d - d^|, |d - d^|
  Scratch<float> wsum_;          // [neurons], of centred patches
  std::atomic<bool> usable_{true};

  const float* row(int64_t j) const { return rows_ + (by_name_ ? names_[j] : j) * row_step_; }
};

// Whether float32 competitions are screened: never; where it is faster; wherever it can be.
enum class Screening { off, automatic, always };
void set_screening(Screening mode);

// The unit to screen a competition on, or null.
const MatrixUnit* worth_screening(const Geometry& g, int64_t contenders, int k);

// For tests and reports: the patches of screened competitions since the process began, and how many of them were left
// to float32.
struct Screened {
  std::atomic<int64_t> patches{0}, left{0};
};
Screened& screened();

// Reports how many patches a screen left undecided. After a competition that left most of them, the next ones of its
// kind are not screened.
void count_screened(const Geometry& g, int k, int64_t left);

}  // namespace hebbkern
