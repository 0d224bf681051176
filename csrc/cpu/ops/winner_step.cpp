// winner_step_: compete, accumulate and apply_ in one go. The patches are read in once, only neurons that are taught
// get a sum, and their steps are surveyed while the sums are in cache.
#include "common/winner_step.h"

#include <cmath>

#include "common/arithmetic.h"
#include "cpu/ops/accumulate.h"
#include "cpu/ops/apply.h"
#include "cpu/ops/compete.h"

namespace hebbkern {

static constexpr const char* op = "winner_step_";

// Who is taught by each patch, [P][ranks]; responses and moments are filled where somebody competes.
template <class T>
static Scratch<int32_t> learners(const Source<T>& source, const Tensor& weight, const Lesson& lesson,
                                 std::optional<Moments<T>>& moments, T* responses) {
  if (lesson.labels) return named_neurons(op, "labels", *lesson.labels, source.g.per_image(), source.g.neurons);
  Scratch<int32_t> who(source.g.patches() * lesson.ranks());
  const OptionalTensor everyone;
  const Contest contest{int(lesson.ranks()),
                        {lesson.p, lesson.cosine, lesson.patches != Patches::raw},
                        lesson.patches,
                        everyone,
                        lesson.by_response || lesson.decay_by_response};
  find_winners(op, source, weight, contest, moments, responses, who.get());
  return who;
}

// One a rank, or one an entry where they follow the responses.
template <class T>
static Scratch<T> coefficients_of(const Lesson& lesson, const T* responses, int64_t patches) {
  const int64_t ranks = lesson.ranks(), count = lesson.by_response ? patches * ranks : ranks;
  Scratch<T> coefficients(count);
  for (int64_t i = 0; i < count; ++i) {
    const T c = T(lesson.coefficients[i % ranks]);
    coefficients[i] = lesson.by_response ? rectified(c, responses[i]) : c;
  }
  return coefficients;
}

template <class S, class T>
static void step_lists(const Rows<S, T>& rows, const Source<T>& source, const Lists<T>& lists, const Lesson& lesson) {
  const int64_t inputs = rows.inputs();
  for (int64_t i = 0; i < lists.size(); ++i)
    if (!std::isfinite(lists.decay[i])) fail_overflow(op, finite_sums, sizeof(T) == 8);
  Rates<T> rates;
  rates.decay = lists.decay.get();
  if (lesson.average) rates.denominator = lists.decay.get();
  rates.lr = lesson.lr;
  rates.normalise = lesson.normalise;
  Step<S, T> step(rows, rates, lists.neurons.data(), lists.size());
  const Scratch<T> sums(lists.size() * inputs);
  add_lists<T>(
      source, lists, [&](int64_t list) { return sums.get() + list * inputs; },
      [&](int64_t list, const T* sum) { step.survey(list, sum, rows.buffer().get()); });
  const int flaws = step.judge(sums.get());
  if (flaws & flaw_weight) fail_finite(op, "weight");
  if (flaws & flaw_sum) fail_overflow(op, finite_sums, sizeof(T) == 8);
  if (flaws & flaw_step) fail_step(op);
  step.take(sums.get());
}

template <class S, class T>
static void learn(const Tensor& weight, const Tensor& x, const Geometry& g, const Lesson& lesson) {
  constexpr double worth = 1 << 21;  // multiply-adds that are worth waking a thread for, some 30 us of one
  const Alone alone(double(g.patches()) * double(g.inputs()) * double(lesson.labels ? 1 : g.neurons) < worth);
  const Source<T> source(op, x, g);
  const Rows<S, T> rows(weight);
  if (lesson.labels && !finite_rows(rows, g.neurons)) fail_finite(op, "weight");
  const Scratch<T> responses(lesson.labels ? 0 : g.patches() * lesson.ranks());
  std::optional<Moments<T>> moments;
  const Scratch<int32_t> who = learners(source, weight, lesson, moments, responses.get());
  const Scratch<T> coefficients = coefficients_of(lesson, responses.get(), g.patches());
  Taught<T> taught{lesson.ranks(), who.get(), {coefficients.get(), 0, 1}, {}, Mask(lesson.frozen)};
  if (lesson.by_response) taught.coefficients.down = lesson.ranks();
  if (lesson.decay_by_response) taught.responses = {responses.get(), lesson.ranks(), 1};
  const bool raw = lesson.patches == Patches::raw;
  if (!raw && !moments) moments.emplace(op, source, lesson.patches);
  step_lists(rows, source, group(source, raw ? nullptr : &*moments, taught), lesson);
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

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("winner_step_.cpu", TORCH_BOX(&winner_step_)); }

}  // namespace hebbkern
