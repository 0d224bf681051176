// dense_update with few patches: weights are read as they lie, twice, and no matrix of neurons x neurons is made.
#pragma once

#include "cpu/ops/dense_update.h"

namespace hebbkern {

// Patches at once: 48 inputs' residuals fill a seventh of L2 (1536 x 48 x 4 bytes).
constexpr int64_t longest_chunk = 1536;

// Strips of inputs, of so many bytes each, that a thread walks down together: three eighths of L2, and no thread idle.
int64_t strips_at_once(int64_t bytes, int64_t strips);

// Where sums go: inputs [input, input + count) of neurons [first, first + neurons), negated, their rows `step` apart.
// Called once for each entry and chunk of patches, from several threads.
template <class T>
struct Sink {
  virtual void take(int64_t first, int64_t neurons, int64_t input, int64_t count, const T* negated, int64_t step) = 0;
};

template <class T>
class Residual {
 public:
  Residual(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g, const Dense& rule);

  bool in_order() const { return in_order_; }
  // Patches are taught in chunks whose sums add up; a step of the weights needs them all at once.
  bool one_chunk() const { return patches_ <= chunk_; }
  // The responses of the next chunk. Raises if a weight or a response is not finite.
  void respond();
  // The sums of that chunk, for which no entry of the weight may have been written before.
  void walk(Sink<T>& sink);
  bool done() const { return first_ >= patches_; }

  // Input n in a contiguous [channels, kh, kw] row of weights.
  int64_t in_weight(int64_t n) const { return hebbkern::in_weight(source_.g, n); }
  double heaviest() const { return weight_bound_; }
  // No entry of the sum over the chunks so far, nor any number on the way to it, is larger.
  double largest_sum() const { return sum_bound_; }

 private:
  void spread();
  template <class S>
  void respond_rows(const S* weight, int64_t first, int64_t last, T* heaviest, T* strongest);
  void finish_rows(int64_t first);
  template <class S>
  void load(const S* weight, int64_t neuron, int64_t strip, T* to) const;
  template <class S>
  void walk_strips(const S* weight, int64_t first, int64_t last, Sink<T>& sink) const;
  void sums(int64_t neuron, int64_t strip, T* out, int64_t step) const;
  void lessen(int64_t neuron, int64_t strip) const;

  int64_t neurons(int64_t first) const { return std::min(block_, neurons_ - first); }
  int vectors(int64_t strip) const {
    return int((std::min(width_, inputs_ - strip * width_) + kernel_.lanes - 1) / kernel_.lanes);
  }
  T* residual(int64_t strip) const { return r_.get() + strip * (chunk_rows_ + block_) * width_; }
  T* weights(int64_t strip) const { return residual(strip) + rows_ * width_; }
  T* response(int64_t neuron) const { return y_.get() + neuron * y_step_; }

  const char* const op_;
  const Kernels<T>& kernel_ = kernels<T>();
  const Dense rule_;
  const Source<T> source_;
  const Tensor weight_;
  const std::vector<int64_t> entry_;  // of a row of weight, in the source's order
  const bool in_order_;
  std::optional<Moments<T>> moments_;
  const int64_t patches_, neurons_, inputs_, width_, strips_;
  const int64_t block_;       // neurons between two updates of the residual
  const int64_t chunk_;       // patches at once
  const int64_t chunk_rows_;  // chunk_, to whole tiles
  const int64_t y_step_;
  int64_t first_ = 0, count_ = 0;                 // the present chunk
  int64_t rows_ = 0, padded_ = 0, wide_ = 0;      // its patches to whole tiles, to whole vectors, and of a panel of xt_
  Scratch<T> xt_;                                 // [panels of patches][inputs][wide_]
  Scratch<T> r_;                                  // [strips][patches, then a block of weights][width]
  Scratch<T> y_;                                  // [neurons][-responses, then the block's products with itself]
  std::vector<int64_t> along_, across_, taught_;  // steps: 1 apart; a neuron apart; responses, then products
  double weight_bound_ = 0, sum_bound_ = 0;
};

}  // namespace hebbkern
