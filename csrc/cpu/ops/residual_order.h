// dense_update with few patches: walk down blocks of neurons and keep the residual R = X - Y W of those passed so far,
//   sum_b = Y_b' R - tril(Y_b' Y_b) W_b, then R -= Y_b W_b          (of the other decays R stays X).
// Weights are read as they lie, twice, and no matrix of neurons x neurons is made. All responses come first, for they
// need no residual; then each strip of inputs walks down by itself, its residual in L2, so threads never meet and no
// sum is split: the same bits for any number of them. Y is kept negated, which makes every subtraction the register
// tile's addition; what it finds is -sum.
//
// By Pairs, responses are summed over pairs of inputs, sums over pairs of patches, the residual's loss over pairs of
// neurons. Besides y' = y (1 + e), |e| <= 2^-8, this loses: the residual R = X - Y'W is kept in float32 and rounded to
// bfloat16 where it is multiplied, and so are a block's products with itself, C. A sum is off by 2^-8 |Y|ᵀ|R| and
// 2^-8 |C||W| more, in all by twice what gram_order.h says: to first order 2^-7 |Y|ᵀ|X| + 2^-6 tril(|Y|ᵀ|Y|)|W|.
#pragma once

#include "cpu/ops/dense_update.h"

namespace hebbkern {

// Where sums go: inputs [input, input + count) of neurons [first, first + neurons), negated, their rows `step` apart.
// Called once for each entry and chunk of patches, from several threads.
template <class T>
struct Sink {
  virtual void take(int64_t first, int64_t neurons, int64_t input, int64_t count, const T* negated, int64_t step) = 0;
};

template <class P>
class ResidualOrder {
  using Sum = typename P::Sum;
  using Cell = typename P::Cell;
  using Entry = typename P::Entry;

 public:
  ResidualOrder(const char* op, const P& products, const Tensor& x, const Tensor& weight, const Geometry& g,
                const Dense& rule);

  bool in_order() const { return in_order_; }
  // Patches are taught in chunks whose sums add up; a step of the weights needs them all at once.
  bool one_chunk() const { return patches_ <= chunk_; }
  // The responses of the next chunk. Raises if a weight or a response is not finite.
  void respond();
  // The sums of that chunk, for which no entry of the weight may have been written before.
  void walk(Sink<Sum>& sink);
  bool done() const { return first_ >= patches_; }

  // Input n in a contiguous [channels, kh, kw] row of weights.
  int64_t in_weight(int64_t n) const { return hebbkern::in_weight(source_.g, n); }
  double heaviest() const { return weight_bound_; }
  // No entry of the sum over the chunks so far, nor any number on the way to it, is larger.
  double largest_sum() const { return sum_bound_; }

 private:
  static constexpr int64_t per = P::per;

  void spread();
  void read_patch(int64_t patch, Entry* row) const;
  void spread_group(int64_t group, Entry* rows);
  template <class S>
  void respond_rows(const S* weight, int64_t first, int64_t last, Sum* heaviest, Sum* strongest);
  void finish_block(int64_t first, Sum* y, int64_t step);
  void products_of_block(int64_t first, const Sum* y, int64_t step, const Sum* across);
  template <class S>
  void load(const S* weight, int64_t neuron, int64_t first, int64_t last) const;
  template <class S>
  void walk_strips(const S* weight, int64_t first, int64_t last, Sink<Sum>& sink) const;
  void sums(int64_t neuron, int64_t strip, Sum* out, int64_t step) const;
  void lessen(int64_t neuron, int64_t strip) const;

  int64_t neurons(int64_t first) const { return std::min(block_, neurons_ - first); }
  int64_t filled(int64_t strip) const { return std::min(width_, inputs_ - strip * width_); }
  int vectors(int64_t strip) const { return int((filled(strip) + products_.lanes - 1) / products_.lanes); }
  Cell* panel(int64_t strip) const { return panel_.get() + strip * (chunk_rows_ + block_) / per * width_; }
  Cell* weights(int64_t strip) const { return panel(strip) + rows_ / per * width_; }
  Sum* residual(int64_t strip) const;
  Entry* response(int64_t neuron) const { return y_.get() + neuron * y_step_; }
  Entry* turned(int64_t neuron) const { return turned_.get() + neuron * chunk_rows_; }

  const char* const op_;
  const P products_;
  const Kernels<Sum>& kernel_ = products_.kernel;
  const Dense rule_;
  const Source<typename P::Input> source_;
  const Tensor weight_;
  const std::vector<int64_t> entry_;  // of a row of weight, in the source's order
  const bool in_order_;
  std::optional<Moments<Sum>> moments_;
  const int64_t patches_, neurons_, inputs_, width_, strips_;
  const int64_t cells_;       // of a patch's inputs
  const int64_t block_;       // neurons between two updates of the residual
  const int64_t chunk_;       // patches at once
  const int64_t chunk_rows_;  // chunk_, to whole tiles
  const int64_t y_step_;
  int64_t first_ = 0, count_ = 0;             // the present chunk
  int64_t rows_ = 0, padded_ = 0, wide_ = 0;  // its patches to whole tiles, to whole vectors, and of a panel of xt_
  Scratch<Cell> xt_;                          // [panels of patches][cells of inputs][wide_]
  Scratch<Cell> panel_;                       // [strips][cells of patches' residuals, then of a block's weights][width]
  Scratch<Sum> r_;                            // of pairs, the residuals: [strips][patches][width]
  Scratch<Entry> y_;                          // [neurons][-responses, then the block's products with itself]
  Scratch<Entry> turned_;                     // of pairs, -responses: [blocks][patches][neurons of a block]
  // Steps: 1 apart; a cell apart; a neuron apart; responses, then products.
  std::vector<int64_t> each_, along_, across_, taught_;
  double weight_bound_ = 0, sum_bound_ = 0;
};

}  // namespace hebbkern
