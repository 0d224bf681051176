// Formulas that every device must compute alike, to the bit: ties, powers, scales, coefficients and steps.
#pragma once

#include <cmath>

#include "common/patches.h"

namespace hebbkern {

// Neurons rank by response, equal ones by the lower index; so do patches by nearness in nearest_patch.
template <class T>
HEBBKERN_HOST_DEVICE bool beats(T response, int32_t neuron, T other, int32_t than) {
  return response > other || (response == other && neuron < than);
}

// sign(w) |w|^(p - 1), the factor of an input in the response of Lebesgue exponent p. Whole p use multiplication, which
// is faster and exact to rounding.
template <class T>
HEBBKERN_HOST_DEVICE T powered(T w, double p) {
  if (p == 2) return w;
  if (p == 1) return T((w > 0) - (w < 0));
  const T size = std::abs(w);
  if (p == std::floor(p) && p <= 9) {
    T power = w;
    for (int i = 2; i < int(p); ++i) power *= size;
    return power;
  }
  return std::copysign(T(std::pow(size, T(p - 1))), w);
}

// 1 / length; 0 for length 0. NaN where the length overflowed: 1 / infinity would pass for a vector of zeros.
template <class T>
HEBBKERN_HOST_DEVICE T inverse_length(T length) {
  return length == 0 ? T(0) : length < T(INFINITY) ? T(1) / length : T(NAN);
}

// The scale of a patch of norm `length` and norm about its mean `spread` (`length` again for a raw patch): 0 for a flat
// one, else that to norm 1 if it is to be a `unit`, or 1. An infinite length is not known well enough to call it flat.
template <class T>
HEBBKERN_HOST_DEVICE T scale_of(T spread, T length, bool unit) {
  if (!(length < T(INFINITY))) return unit ? T(NAN) : T(1);
  if (spread <= T(flat) * length) return T(0);
  return unit ? inverse_length(spread) : T(1);
}

// The coefficient of an entry of a rank with coefficient c, where coefficients follow the responses.
template <class T>
HEBBKERN_HOST_DEVICE T rectified(T c, T response) {
  return response > 0 ? c * response : T(0);
}

// A weight after a step of `rate` times delta. An explicit fma, so that every compiler rounds once.
template <class T>
HEBBKERN_HOST_DEVICE T moved(T w, T rate, T delta) {
  return std::fma(rate, delta, w);
}

}  // namespace hebbkern
