// dense_update's state, with many patches; residual.h is for few.
#pragma once

#include "common/dense_update.h"
#include "cpu/products/pairs.h"
#include "cpu/products/panels.h"

namespace hebbkern {

struct Dense {
  Activation activation;
  Decay decay;
  double temperature;
  Patches patches;
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Patches whose responses one thread computes against one panel: their rows stay in L2 while the panel runs by.
constexpr int64_t block = 64;

// What the patches add up to, and what the decay makes of it.
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
  std::vector<double> diagonal, shift;      // [columns]: sum of r u, sum of y scale offset

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

template <class T>
class Sanger {
 public:
  Sanger(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g, const Dense& rule);
  void run(const Mask& frozen, T* sum);

 private:
  void respond(int64_t first, int64_t count);
  void respond_block(int64_t part, int64_t panel, int64_t first, int64_t count);
  void soften(int64_t part, int64_t count);
  void gather_inputs(int64_t count);
  void gradient_tile(int64_t panel, int64_t n, int64_t count);
  void gram_tile(int64_t panel, int64_t i, int64_t count);
  void add_products(int64_t count);

  T* response(int64_t panel) const { return y_.get() + panel * chunk_ * width_; }
  T* taught(int64_t panel) const { return (scaled_ ? ys_.get() : y_.get()) + panel * chunk_ * width_; }

  const char* const op_;
  const Kernels<T>& kernel_ = kernels<T>();
  const Dense rule_;
  const Source<T> source_;
  Totals<T> to_;
  const Panels<T>& panels_ = to_.panels;
  std::optional<Moments<T>> moments_;
  const int64_t width_ = to_.width, columns_ = to_.columns, inputs_ = to_.inputs;
  const int64_t chunk_;  // patches whose responses are kept at once
  const bool scaled_;    // standardised: what is taught is y * scale
  Scratch<T> y_, ys_;    // [panels][chunk][width]
  Scratch<T> xt_;        // linear layers: [inputs / rows of a tile][chunk + 2][rows of a tile]
  Scratch<int64_t> bases_, steps_;
  Scratch<T> part_diagonal_, part_shift_;  // [blocks of a chunk][columns]
  std::vector<int64_t> along_;             // steps from patch to patch of a panel's responses
  std::atomic<bool> overflow_{false};      // of a response
};

Dense check_rule(const char* op, const std::string& activation, const std::string& decay, double temperature,
                 Patches patches);
// Whether pairs of bfloat16 make these sums, and the sums.
const PairUnit* pairs_for(const Tensor& x, const Dense& rule);
void paired_sums(const char* op, const PairUnit& unit, const Tensor& x, const Tensor& weight, const Geometry& g,
                 const Dense& rule, const Mask& frozen, float* to);
bool residual_is_cheaper(const Dense& rule, const Geometry& g);
std::tuple<Tensor, Tensor> dense_sums(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g,
                                      const Dense& rule, const OptionalTensor& frozen);

}  // namespace hebbkern
