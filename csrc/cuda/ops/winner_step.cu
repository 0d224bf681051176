// winner_step_: compete, accumulate and apply_ in one go. The contest itself writes the keys by which its winners are
// grouped, the survey of the step puts together the lists that were cut, and rows of neurons that nobody teaches are
// neither read nor written.
#include "common/winner_step.h"

#include "cuda/ops/apply.cuh"
#include "cuda/ops/compete.cuh"
#include "cuda/device/status.cuh"
#include "cuda/device/values.cuh"

namespace hebbkern {

static constexpr const char* op = "winner_step_";

template <class T>
static Taught<T> taught_by(const Lesson& lesson, const T* responses) {
  Taught<T> taught;
  for (int64_t rank = 0; rank < lesson.ranks(); ++rank) taught.of_rank[rank] = T(lesson.coefficients[rank]);
  if (lesson.by_response) taught.rectify = responses;
  if (lesson.decay_by_response) {
    taught.decays = responses;
    taught.decays_down = lesson.ranks();
    taught.decays_right = 1;
  }
  return taught;
}

// A bit for each rank whose coefficient is 0, as the type computed in has it.
template <class T>
static uint64_t silent_ranks(const Lesson& lesson) {
  uint64_t silent = 0;
  for (int64_t rank = 0; rank < lesson.ranks(); ++rank) silent |= uint64_t(T(lesson.coefficients[rank]) == 0) << rank;
  return silent;
}

template <class S, class T>
static void learn(const Tensor& weight, const Tensor& x, const Geometry& g, const Lesson& lesson) {
  const Device device(x);
  look(device);
  require_finite(op, "x", x);
  require_finite(op, "weight", weight);
  if (lesson.labels) require_named(op, "labels", *lesson.labels, g.neurons);
  const Place<S> place(op, x, g);
  const int64_t ranks = lesson.ranks();
  const Entries entries(op, x, g, ranks);
  Taught<T> taught;
  Moments<T> known;
  Tensor winners, responses;  // as long as kernels may read them
  if (lesson.labels) {
    taught = taught_by<T>(lesson, nullptr);
    known = moments<S, S, T>(op, device, x, place, lesson.patches);
    name_entries(device, *lesson.labels, g.per_image(), 1, taught, int(g.neurons), Mask(lesson.frozen), entries);
  } else {
    winners = empty_like(x, {entries.count}, ScalarType::Int);
    responses = empty_like(x, {entries.count}, result_dtype(x.scalar_type()));
    taught = taught_by<T>(lesson, pointer<T>(responses));
    const Contest how{int(ranks), lesson.p, lesson.cosine, lesson.patches};
    const Keys named{entries.keys, entries.numbers, Mask(lesson.frozen), silent_ranks<T>(lesson), lesson.by_response};
    const Tensor rows = weight.is_contiguous() ? weight : torch::stable::contiguous(weight);
    known = contest<S, T>(op, device, x, place, rows, how, pointer<int32_t>(winners), pointer<T>(responses), named);
  }
  const T* scale = lesson.patches == Patches::standardised ? known.scale : nullptr;  // a cosine's does not teach
  const Lists<T> lists = grouped(device, x, place, entries, int(ranks), taught, int(g.neurons),
                                 static_cast<const T*>(known.offset), scale, false);
  Rates<T> rates;
  rates.lr = lesson.lr;
  rates.normalise = lesson.normalise;
  take<S>(op, device, weight, lists.total, rates, &lists, lesson.average);
}

static void winner_step_(Tensor weight, Tensor x, OptionalTensor labels, int64_t k, double p, bool cosine,
                           std::vector<double> coefficients, bool by_response, bool decay_by_response, bool average,
                           std::string normalise, double lr, std::string patches, Ints stride, Ints padding,
                           Ints dilation, OptionalTensor frozen) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  check_apart(op, weight);
  const Lesson lesson{labels,      coefficients,
                      p,           cosine,
                      by_response, decay_by_response,
                      average,     check_normalise(op, normalise),
                      lr,          check_patches(op, patches),
                      frozen};
  check_lesson(op, lesson, k, g, x);
  with_dtype(x.scalar_type(),
             [&](auto stored, auto tag) { learn<decltype(stored), decltype(tag)>(weight, x, g, lesson); });
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("winner_step_.cuda", TORCH_BOX(&winner_step_)); }

}  // namespace hebbkern
