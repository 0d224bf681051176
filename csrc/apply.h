// apply_: what host and device ask of its arguments.
#pragma once

#include "checks.h"

namespace hebbkern {

enum class Normalise { none, row_max, row_l2, global_max };

}  // namespace hebbkern
