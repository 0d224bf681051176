// dense_update: a dense rule's settings, its totals, and what the two orders of its sums share: gram_order.h is for
// many patches, residual_order.h for few.
#pragma once

#include "common/dense_update.h"
#include "cpu/products/factors.h"

namespace hebbkern {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The sums over the patches, and from them the result.
template <class T>
class Totals {
 public:
  Totals(const char* op, const Geometry& g, const Tensor& weight, const Dense& rule);

 private:
  const char* const op_;
  const Kernels<T>& kernel_ = kernels<T>();
  const Geometry g_;
  const Decay decay_;

 public:
  const Panels<T> panels;
  const int64_t width, columns, inputs;
  const int64_t rows_of_sum, rows_of_gram;  // whole tiles
  std::vector<double> diagonal, shift;      // [columns]: the decay's factor, the sum of y scale offset

  // YᵀX from input n on, a tile's first; YᵀY, up to the diagonal's panel, from neuron i on.
  T* sum(int64_t panel, int64_t n) const { return sum_.get() + (panel * rows_of_sum + n) * width; }
  T* gram(int64_t panel, int64_t i) const { return gram_.get() + (panel * rows_of_gram + i) * width; }

  // YᵀX - decay W of patches whose largest input is given, as a tensor like weight. Raises if it is not finite.
  void finish(const Mask& frozen, double largest, T* to);

 private:
  void subtract_triangle();
  void write(const Mask& frozen, T* to) const;

  Scratch<T> sum_, gram_;  // [panels][inputs or neurons][width]
};

// What multiplies for a rule: pairs of bfloat16, or null.
const PairUnit* pairs_for(const Tensor& x, const Dense& rule);
bool residual_is_cheaper(const Dense& rule, const Geometry& g);
std::tuple<Tensor, Tensor> dense_sums(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g,
                                      const Dense& rule, const OptionalTensor& frozen);

}  // namespace hebbkern
