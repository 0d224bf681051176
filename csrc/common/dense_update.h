// dense_update and dense_step_: the settings of the dense rules and the argument checks of every device.
#pragma once

#include <cmath>

#include "common/checks.h"

namespace hebbkern {

// What is subtracted from YᵀX: tril(YᵀY) W, or of each neuron its row of W times the sum over the patches of y^2 (of
// r u with softmax), or of y, or nothing.
enum class Decay { triangular, diagonal, activity, none };

// Whether the decay is one factor a neuron.
HEBBKERN_HOST_DEVICE constexpr bool by_neuron(Decay decay) {
  return decay == Decay::diagonal || decay == Decay::activity;
}

inline Activation check_activation(const char* op, const std::string& activation) {
  if (activation == "linear") return Activation::linear;
  if (activation == "relu") return Activation::relu;
  if (activation == "tanh") return Activation::tanh;
  if (activation == "softmax") return Activation::softmax;
  fail(op, "activation must be \"linear\", \"relu\", \"tanh\" or \"softmax\", got \"", activation, "\"");
}

inline Decay check_decay(const char* op, const std::string& decay) {
  if (decay == "triangular") return Decay::triangular;
  if (decay == "diagonal") return Decay::diagonal;
  if (decay == "activity") return Decay::activity;
  if (decay == "none") return Decay::none;
  fail(op, "decay must be \"triangular\", \"diagonal\", \"activity\" or \"none\", got \"", decay, "\"");
}

struct Dense {
  Activation activation;
  Decay decay;
  double temperature;
  Patches patches;
};

inline Dense check_rule(const char* op, const std::string& activation, const std::string& decay, double temperature,
                        const std::string& patches) {
  const Dense rule{check_activation(op, activation), check_decay(op, decay), temperature, check_patches(op, patches)};
  if (rule.activation == Activation::softmax && rule.decay != Decay::diagonal && rule.decay != Decay::none)
    fail(op, "decay must be \"diagonal\" or \"none\" with softmax, got \"", decay, "\"");
  if (!(float(temperature) > 0) || std::isinf(1 / float(temperature)) || std::isinf(temperature))
    fail(op, "temperature must be a finite number above 0, got ", temperature);
  return rule;
}

}  // namespace hebbkern
