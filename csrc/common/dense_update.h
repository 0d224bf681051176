// dense_update: the dense rules' settings, as host and device read them.
#pragma once

#include "common/checks.h"

namespace hebbkern {

enum class Decay { triangular, diagonal, none };

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
  if (decay == "none") return Decay::none;
  fail(op, "decay must be \"triangular\", \"diagonal\" or \"none\", got \"", decay, "\"");
}

}  // namespace hebbkern
