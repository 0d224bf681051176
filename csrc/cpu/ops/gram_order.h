// dense_update with many patches: responses, then YᵀX and the Gram matrix YᵀY, then the decay. Responses, weight
// gradient, Gram matrix and triangular decay are the same register tile with its operands exchanged; the Gram matrix
// and its product stop at the diagonal's panel.
//
// By Pairs, responses are summed over pairs of a patch's inputs, YᵀX and YᵀY over pairs of patches: the same place in
// two images, or two samples of a linear layer. y is summed in float32, then rounded to bfloat16, y' = y (1 + e), |e|
// <= 2^-8, for all that follows. So YᵀX is off by at most 2^-8 |Y|ᵀ|X|, YᵀY by (2^-7 + 2^-16) |Y|ᵀ|Y|, besides
// float32's roundings; weights and inputs are bfloat16 already, and the decay's product with W is float32's.
#pragma once

#include "cpu/ops/dense_update.h"

namespace hebbkern {

// Patches whose responses one thread computes against one panel: their rows stay in L2 while the panel runs by.
constexpr int64_t block = 64;

// A slot is one place in P::per images: a patch, or two.
template <class P>
class GramOrder {
  using Sum = typename P::Sum;
  using Cell = typename P::Cell;
  using Entry = typename P::Entry;

 public:
  GramOrder(const char* op, const P& products, const Tensor& x, const Tensor& weight, const Geometry& g,
            const Dense& rule);
  // The sums as a tensor like weight, zeros for frozen neurons.
  void run(const Mask& frozen, Sum* sum);

 private:
  static constexpr int64_t per = P::per, slots_of_block = block / per;

  void pack_weights();
  void join_images();
  void gather_samples(int64_t first, int64_t count);
  void respond(int64_t first, int64_t count);
  void respond_block(int64_t part, int64_t panel, int64_t first, int64_t count);
  void finish_block(int64_t part, int64_t panel, int64_t first, int64_t count, Sum* y);
  void soften(int64_t part, int64_t first, int64_t count);
  void scale_and_shift(int64_t part, int64_t panel, int64_t first, int64_t count);
  void gradient_tile(int64_t panel, int64_t n, int64_t count);
  void gram_tile(int64_t panel, int64_t i, int64_t count);
  void add_products(int64_t count);

  // Whether the second image of this slot is missing: its responses are zeros.
  bool lone(int64_t slot) const { return per > 1 && slot >= source_.g.batch / per * per_image_; }
  const Entry* patch(int64_t first, int64_t at, int64_t image) const;
  const Cell* weights(int64_t panel) const;
  Cell* response(int64_t panel) const { return y_.get() + panel * chunk_ * width_; }
  Cell* taught(int64_t panel) const { return (scaled_ ? ys_.get() : y_.get()) + panel * chunk_ * width_; }
  Sum* kept(int64_t part, int64_t panel) const;

  const char* const op_;
  const P products_;
  const Kernels<Sum>& kernel_ = products_.kernel;
  const Dense rule_;
  const Source<typename P::Input> source_;
  Totals<Sum> to_;
  const Panels<Sum>& panels_ = to_.panels;
  const int64_t width_ = to_.width, columns_ = to_.columns, inputs_ = to_.inputs;
  const int64_t per_image_, slots_;
  const int64_t chunk_;  // slots whose responses are kept at once
  const bool soft_;      // responses of all panels are needed before any is final
  const bool scaled_;    // standardised: what is taught is y * scale
  std::optional<Moments<Sum>> moments_;
  std::vector<int64_t> in_patch_;  // a patch's cells of inputs: where they lie from its base
  Scratch<Cell> weights_;          // of pairs: [panels][pairs of inputs][width]
  Scratch<Cell> joined_;           // pairs of images; of samples [inputs / rows of a tile][chunk + 2][rows of a tile]
  std::vector<int64_t> offset_;    // [inputs], from a slot's base in there, as steps_, from slot to slot
  Scratch<int64_t> bases_, steps_;
  Scratch<Cell> y_, ys_;                     // [panels][chunk][width]
  Scratch<Sum> kept_;                        // of pairs before the softmax: [panels][2 chunk][width]
  Scratch<Sum> part_diagonal_, part_shift_;  // [blocks of a chunk][columns]
  std::vector<int64_t> along_;               // steps from slot to slot of a panel's responses
  std::atomic<bool> overflow_{false};        // of a response
};

}  // namespace hebbkern
