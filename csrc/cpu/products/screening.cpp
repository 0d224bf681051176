// Whether a competition is screened.
#include "cpu/products/screen.h"

namespace hebbkern {

static std::atomic<Screening> screening{Screening::automatic};

void set_screening(Screening mode) { screening = mode; }

Screened& screened() {
  static Screened counts;
  return counts;
}

// The last kind of competition that a screen could not decide, and how many more of that kind are not screened.
static std::atomic<int64_t> hard_kind{-1}, spared{0};

static int64_t kind_of(const Geometry& g, int k) { return (g.neurons * 4093 + g.inputs()) * 64 + k; }

void count_screened(const Geometry& g, int k, int64_t left) {
  screened().patches += g.patches();
  screened().left += left;
  if (left <= g.patches() / 2) return;
  hard_kind = kind_of(g, k);
  spared = 31;
}

const MatrixUnit* worth_screening(const Geometry& g, int64_t contenders, int k) {
  const Screening mode = screening;
  const MatrixUnit* unit = mode == Screening::off ? nullptr : matrix_unit();
  if (!unit || k > ScanState::most || contenders < 2 * k || g.patches() == 0) return nullptr;
  if (mode == Screening::always) return unit;
  // Measured on 6 x 5 x 6 shapes, one thread: faster on all that this admits (0.24 to 1.0 of the float32 time), and on
  // few others.
  constexpr int64_t enough = 3200;
  if (contenders < 64 || g.inputs() < 16 || contenders * g.inputs() < enough || contenders * g.patches() < enough)
    return nullptr;
  if (hard_kind == kind_of(g, k) && spared-- > 0) return nullptr;
  return unit;
}

}  // namespace hebbkern
