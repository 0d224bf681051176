// winner_step_: what it is asked for, and what host and device ask of its arguments.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/apply.h"

namespace hebbkern {

struct Lesson {
  const OptionalTensor& labels;             // given: nobody competes
  const std::vector<double>& coefficients;  // one a rank
  double p;
  bool cosine, by_response, decay_by_response, average;
  Normalise normalise;
  double lr;
  Patches patches;
  const OptionalTensor& frozen;

  int64_t ranks() const { return int64_t(coefficients.size()); }
};

inline void check_labels(const char* op, const Tensor& labels, const Tensor& x, int64_t k, const Lesson& lesson) {
  if ((labels.scalar_type() != ScalarType::Int && labels.scalar_type() != ScalarType::Long) ||
      !has_shape(labels, {x.size(0)}))
    fail(op, "labels must be int64 or int32 of shape [", x.size(0), "], the class of each sample, got ",
         describe(labels));
  check_device(op, "labels", labels, "x", x);
  if (k != 1) fail(op, "k must be 1 with labels, got ", k);
  if (lesson.by_response) fail(op, "by_response must be False with labels, got True");
  if (lesson.decay_by_response) fail(op, "decay_by_response must be False with labels, got True");
}

inline void check_lesson(const char* op, const Lesson& lesson, int64_t k, const Geometry& g, const Tensor& x) {
  check_contest(op, k, lesson.p, lesson.cosine, g.neurons);
  const double most = x.scalar_type() == ScalarType::Double ? std::numeric_limits<double>::max()
                                                            : double(std::numeric_limits<float>::max());
  const auto sound = [&](double c) { return std::abs(c) <= most; };
  if (lesson.ranks() != k || !std::all_of(lesson.coefficients.begin(), lesson.coefficients.end(), sound))
    fail(op, "coefficients must be k = ", k, " finite numbers, got ", list(lesson.coefficients));
  if (lesson.labels) check_labels(op, *lesson.labels, x, k, lesson);
  check_rate(op, lesson.lr);
  check_mask(op, "frozen", lesson.frozen, g.neurons, x);
}

}  // namespace hebbkern
