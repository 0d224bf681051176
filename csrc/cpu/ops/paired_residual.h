// residual.h on pairs of bfloat16, as paired.cpp: raw patches of bfloat16, weights of bfloat16 or rounded to it.
#pragma once

#include "cpu/ops/residual.h"

namespace hebbkern {

class PairedResidual {
 public:
  PairedResidual(const char* op, const PairUnit& unit, const Tensor& x, const Tensor& weight, const Geometry& g,
                 const Dense& rule);

  // As of Residual.
  bool in_order() const { return in_order_; }
  bool one_chunk() const { return patches_ <= chunk_; }
  void respond();
  void walk(Sink<float>& sink);
  bool done() const { return first_ >= patches_; }
  int64_t in_weight(int64_t n) const { return hebbkern::in_weight(source_.g, n); }
  double heaviest() const { return weight_bound_; }
  double largest_sum() const { return sum_bound_; }

 private:
  void spread();
  void spread_group(int64_t group, uint16_t* rows);
  template <class S>
  void read_row(const S* weight, int64_t neuron, uint16_t* row) const;
  template <class S>
  void respond_rows(const S* weight, int64_t first, int64_t last, float* heaviest, float* strongest);
  void finish_block(int64_t first, float* y);
  template <class S>
  void load(const S* weight, int64_t neuron, int64_t strip) const;
  template <class S>
  void walk_strips(const S* weight, int64_t first, int64_t last, Sink<float>& sink) const;
  void sums(int64_t neuron, int64_t strip, float* out, int64_t step) const;
  void lessen(int64_t neuron, int64_t strip) const;

  static constexpr int64_t block_ = 32;  // neurons between two updates of the residual

  int64_t neurons(int64_t first) const { return std::min(block_, neurons_ - first); }
  int vectors(int64_t strip) const {
    return int((std::min(width_, inputs_ - strip * width_) + unit_.lanes - 1) / unit_.lanes);
  }
  float* residual(int64_t strip) const { return r_.get() + strip * chunk_rows_ * width_; }
  Pair* joined(int64_t strip) const { return joined_.get() + strip * (chunk_rows_ + block_) / 2 * width_; }
  Pair* weights(int64_t strip) const { return joined(strip) + padded_ / 2 * width_; }
  uint16_t* response(int64_t neuron) const { return y_.get() + neuron * (chunk_rows_ + block_); }
  uint16_t* turned(int64_t neuron) const { return turned_.get() + neuron * chunk_rows_; }

  const char* const op_;
  const PairUnit& unit_;
  const Kernels<float>& kernel_ = kernels<float>();
  const Dense rule_;
  const Source<BFloat16> source_;
  const Tensor weight_;
  const std::vector<int64_t> entry_;  // of a row of weight, in the source's order
  const bool in_order_;
  const int64_t patches_, neurons_, inputs_, width_, strips_;
  const int64_t pairs_;                         // of inputs
  const int64_t chunk_, chunk_rows_;            // patches at once, and to whole vectors
  int64_t first_ = 0, count_ = 0, padded_ = 0;  // the present chunk: its first patch, its patches, to whole vectors
  int64_t wide_ = 0;                            // patches of a panel of patches_by_input_
  Scratch<Pair> by_input_;                      // [panels of patches][pairs of inputs][wide_]
  Scratch<float> r_;                            // [strips][patches][width]
  Scratch<Pair> joined_;                        // [strips][pairs of patches, then pairs of a block's neurons][width]
  Scratch<uint16_t> y_;                         // [neurons][-responses, then the block's products with itself]
  Scratch<uint16_t> turned_;                    // [blocks][patches][neurons of a block], -responses
  std::vector<int64_t> by_two_;                 // 0, 2, 4 ...
  double weight_bound_ = 0, sum_bound_ = 0;
};

}  // namespace hebbkern
