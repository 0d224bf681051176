// sanger's state, with many patches; residual.h is for few.
#pragma once

#include "../sanger.h"
#include "panels.h"

namespace hebbkern {

struct Dense {
  Activation activation;
  Decay decay;
  double temperature;
  Patches patches;
};

// Patches whose responses one thread computes against one panel: their rows stay in L2 while the panel runs by.
constexpr int64_t block = 64;

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
  void subtract_triangle();
  void write(const Mask& frozen, T* sum) const;

  T* response(int64_t panel) const { return y_.get() + panel * chunk_ * width_; }
  T* taught(int64_t panel) const { return (scaled_ ? ys_.get() : y_.get()) + panel * chunk_ * width_; }

  const char* const op_;
  const Kernels<T>& kernel_ = kernels<T>();
  const Dense rule_;
  const Source<T> source_;
  const Panels<T> panels_;
  std::optional<Moments<T>> moments_;
  const int64_t width_, columns_, inputs_, rows_of_sum_, rows_of_gram_;
  const int64_t chunk_;  // patches whose responses are kept at once
  const bool scaled_;    // standardised: what is taught is y * scale
  Scratch<T> y_, ys_;    // [panels][chunk][width]
  Scratch<T> xt_;        // linear layers: [inputs / rows of a tile][chunk + 2][rows of a tile]
  Scratch<int64_t> bases_, steps_;
  Scratch<T> sum_;                         // [panels][inputs][width], YᵀX
  Scratch<T> gram_;                        // [panels][neurons][width], YᵀY up to the diagonal's panel
  Scratch<T> part_diagonal_, part_shift_;  // [blocks of a chunk][columns]
  std::vector<double> diagonal_, shift_;   // [columns]: sum of r u, sum of y scale offset
  std::vector<int64_t> along_;             // steps from patch to patch of a panel's responses
  std::atomic<bool> overflow_{false};      // of a response
};

Dense check_rule(const char* op, const std::string& activation, const std::string& decay, double temperature,
                 Patches patches);
bool residual_is_cheaper(const Dense& rule, const Geometry& g);
std::tuple<Tensor, Tensor> dense_sums(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g,
                                      const Dense& rule, const OptionalTensor& frozen);

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace hebbkern
