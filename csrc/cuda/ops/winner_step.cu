// winner_step_: compete, accumulate and apply_ in one operator. The contest itself writes the keys by which its winners
// are grouped, the survey of the step puts together the lists that were cut, and rows of neurons that no patch teaches
// are neither read nor written.
#include "common/winner_step.h"

#include "cuda/device/status.cuh"
#include "cuda/device/values.cuh"
#include "cuda/ops/apply.cuh"
#include "cuda/ops/compete.cuh"

namespace hebbkern {

static constexpr const char* op = "winner_step_";

template <class T>
static Assignments<T> assignments_of(const WinnerStep& step, const T* responses) {
  Assignments<T> assignments;
  for (int64_t rank = 0; rank < step.ranks(); ++rank) assignments.of_rank[rank] = T(step.coefficients[rank]);
  if (step.by_response) assignments.rectify = responses;
  if (step.decay_by_response) {
    assignments.decays = responses;
    assignments.decays_down = step.ranks();
    assignments.decays_right = 1;
  }
  return assignments;
}

// A bit for each rank whose coefficient is 0, as the type computed in has it.
template <class T>
static uint64_t silent_ranks(const WinnerStep& step) {
  uint64_t silent = 0;
  for (int64_t rank = 0; rank < step.ranks(); ++rank) silent |= uint64_t(T(step.coefficients[rank]) == 0) << rank;
  return silent;
}

struct Cuda {
  template <class S, class T>
  static void run(const Tensor& weight, const Tensor& x, const WinnerStep& step) {
    const Device device(x);
    const Geometry& g = step.g;
    const int64_t neurons = g.groups * g.neurons;
    raise_if_skipped(device);
    require_finite(op, "x", x);
    require_finite(op, "weight", weight);
    if (step.labels) require_indices(op, "labels", *step.labels, neurons);
    const PatchView<S> view(op, x, g);
    const int64_t ranks = step.ranks();
    const Entries entries(op, x, g, ranks);
    Assignments<T> assignments;
    Moments<T> known;
    Tensor winners, responses;  // as long as kernels may read them
    if (step.labels) {
      assignments = assignments_of<T>(step, nullptr);
      known = moments<S, S, T>(op, device, x, view, step.patches);
      name_entries(device, view, static_cast<const T*>(known.scale), *step.labels, 1, assignments, int(neurons),
                   Mask(step.frozen), entries);
    } else {
      winners = empty_like(x, {entries.count}, ScalarType::Int);
      responses = empty_like(x, {entries.count}, result_dtype(x.scalar_type()));
      assignments = assignments_of<T>(step, pointer<T>(responses));
      const CompeteSettings how{int(ranks), step.p, step.cosine, step.patches};
      const Keys named{entries.keys, entries.numbers, Mask(step.frozen), silent_ranks<T>(step), step.by_response};
      const Tensor rows = weight.is_contiguous() ? weight : torch::stable::contiguous(weight);
      known = contest<S, T>(op, device, x, view, rows, how, pointer<int32_t>(winners), pointer<T>(responses), named);
    }
    const T* scale = step.patches == Patches::standardised ? known.scale : nullptr;  // a cosine's does not teach
    const Lists<T> lists = grouped(device, x, view, entries, int(ranks), assignments, int(neurons),
                                   static_cast<const T*>(known.offset), scale, false);
    Rates<T> rates;
    rates.lr = step.lr;
    rates.normalise = step.normalise;
    take<S>(op, device, weight, lists.total, rates, &lists, step.average);
  }
};

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("winner_step_.cuda", TORCH_BOX(&winner_step_<Cuda>)); }

}  // namespace hebbkern
