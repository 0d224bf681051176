// The competition, for operators that have read the patches already.
#pragma once

#include "cpu/products/panels.h"

namespace hebbkern {

struct CompeteSettings {
  int k;
  Prepare prepare;
  Patches patches;
  const OptionalTensor& eligible;  // neurons that may win
  bool responses = true;           // false: only the winners are used, `best` holds nothing of use
};

// The k winners of every patch and their responses, [patches][k] each. Raises as the operator does, in the name of op.
// `moments` are filled for patches that are not raw, and where cosines need norms.
template <class T>
void find_winners(const char* op, const Source<T>& source, const Tensor& weight, const CompeteSettings& contest,
                  std::optional<Moments<T>>& moments, T* best, int32_t* winners);

}  // namespace hebbkern
