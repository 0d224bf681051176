// What host and device must decide alike: geometry (patches.h), who wins a tie, what a patch teaches, how a weight
// moves.
#pragma once

#include <cmath>

#include "common/patches.h"

namespace hebbkern {

// Neurons rank by response, equal ones by the lower index; so do patches by nearness in nearest_patch.
template <class T>
HEBBKERN_HOST_DEVICE bool beats(T response, int32_t neuron, T other, int32_t than) {
  return response > other || (response == other && neuron < than);
}

// sign(w) |w|^(p - 1), what a weight counts in the response of Lebesgue exponent p; whole p by multiplication, which is
// faster and exact to rounding.
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

// 1 / length, 0 for nothing. NaN where the length overflowed: an infinite one would pass for a vector of zeros.
template <class T>
HEBBKERN_HOST_DEVICE T inverse_length(T length) {
  return length == 0 ? T(0) : length < T(INFINITY) ? T(1) / length : T(NAN);
}

// The scale of a standardised patch: norm about its mean `spread`, norm `length`; 0 where it is flat.
template <class T>
HEBBKERN_HOST_DEVICE T standard_scale(T spread, T length) {
  if (!(length < T(INFINITY))) return T(NAN);
  return spread <= T(flat) * length ? T(0) : inverse_length(spread);
}

// The coefficient of an entry whose rank has coefficient c, where it follows the response.
template <class T>
HEBBKERN_HOST_DEVICE T rectified(T c, T response) {
  return response > 0 ? c * response : T(0);
}

// A weight after a step of `rate` times delta: one rounding, spelt out so that no compiler chooses otherwise elsewhere.
template <class T>
HEBBKERN_HOST_DEVICE T moved(T w, T rate, T delta) {
  return std::fma(rate, delta, w);
}

}  // namespace hebbkern
