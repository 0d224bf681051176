// winner_step_: its settings and the argument checks of every device.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/apply.h"

namespace hebbkern {

struct WinnerStep {
  Geometry g;
  Patches patches;
  const OptionalTensor& labels;             // given: they name the neurons, and no competition takes place
  const std::vector<double>& coefficients;  // one a rank
  double p;
  bool cosine, by_response, decay_by_response, average;
  Normalise normalise;
  double lr;
  const OptionalTensor& frozen;

  int64_t ranks() const { return int64_t(coefficients.size()); }
};

inline void check_labels(const char* op, const Tensor& labels, const Tensor& x, int64_t k, const WinnerStep& step) {
  if (!is_index(labels.scalar_type()) || !has_shape(labels, {x.size(0)}))
    fail(op, "labels must be int64 or int32 of shape [", x.size(0), "], the class of each sample, got ",
         describe(labels));
  check_device(op, "labels", labels, "x", x);
  if (k != 1) fail(op, "k must be 1 with labels, got ", k);
  if (step.by_response) fail(op, "by_response must be False with labels, got True");
  if (step.decay_by_response) fail(op, "decay_by_response must be False with labels, got True");
}

// The kernel of the operator, whose arguments stand here in the order of the schema. Device::run<S, T>(weight, x, step)
// takes the step of checked arguments: S is how numbers are stored, T how they are computed.
template <class Device>
void winner_step_(Tensor weight, Tensor x, OptionalTensor labels, int64_t k, double p, bool cosine,
                  std::vector<double> coefficients, bool by_response, bool decay_by_response, bool average,
                  std::string normalise, double lr, std::string patches, Ints stride, Ints padding, Ints dilation,
                  int64_t groups, OptionalTensor frozen) {
  const char* op = "winner_step_";
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation, groups);
  check_apart(op, weight);
  const Normalise divisor = check_normalise(op, normalise);
  const WinnerStep step{g,           check_patches(op, patches), labels,  coefficients, p,  cosine,
                        by_response, decay_by_response,          average, divisor,      lr, frozen};
  check_contest(op, k, p, cosine, g);
  const double most = x.scalar_type() == ScalarType::Double ? std::numeric_limits<double>::max()
                                                            : double(std::numeric_limits<float>::max());
  const auto fits = [&](double c) { return std::abs(c) <= most; };
  if (step.ranks() != k || !std::all_of(coefficients.begin(), coefficients.end(), fits))
    fail(op, "coefficients must be k = ", k, " finite numbers, got ", list(coefficients));
  if (labels) check_labels(op, *labels, x, k, step);
  check_rate(op, lr);
  check_mask(op, "frozen", frozen, weight.size(0), x);
  with_dtype(x.scalar_type(),
             [&](auto stored, auto tag) { Device::template run<decltype(stored), decltype(tag)>(weight, x, step); });
}

}  // namespace hebbkern
