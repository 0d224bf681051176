// winner_step_: compete, accumulate and apply_ in one operator. The patches are read once, only neurons that are taught
// get a sum, and each step is checked while its sum is in cache.
#include "common/winner_step.h"

#include <cmath>

#include "common/arithmetic.h"
#include "cpu/ops/accumulate.h"
#include "cpu/ops/apply.h"
#include "cpu/ops/compete.h"
#include "cpu/ops/grouped.h"

namespace hebbkern {

static constexpr const char* op = "winner_step_";

static CompeteSettings contest_of(const WinnerStep& step) {
  static const OptionalTensor all;
  const bool responses = step.by_response || step.decay_by_response;
  return {int(step.ranks()), {step.p, step.cosine, step.patches != Patches::raw}, step.patches, all, responses};
}

// The neurons that each patch teaches, [P][ranks]; responses and moments are filled where they compete.
template <class T>
static Scratch<int32_t> targets_of(const Source<T>& source, const Tensor& weight, const WinnerStep& step,
                                   std::optional<Moments<T>>& moments, T* responses) {
  if (step.labels) return checked_indices(op, "labels", *step.labels, source.g.per_image(), source.g.neurons);
  Scratch<int32_t> winners(source.g.patches() * step.ranks());
  find_winners(op, source, weight, contest_of(step), moments, responses, winners.get());
  return winners;
}

// One coefficient a rank, or one an entry where they follow the responses.
template <class T>
static Scratch<T> coefficients_of(const WinnerStep& step, const T* responses, int64_t patches) {
  const int64_t ranks = step.ranks(), count = step.by_response ? patches * ranks : ranks;
  Scratch<T> coefficients(count);
  for (int64_t i = 0; i < count; ++i) {
    const T c = T(step.coefficients[i % ranks]);
    coefficients[i] = step.by_response ? rectified(c, responses[i]) : c;
  }
  return coefficients;
}

// Raises if one of the decays of as many rows is not finite.
template <class T>
static Rates<T> rates_of(const WinnerStep& step, const T* decay, int64_t rows) {
  if (!finite(decay, rows)) fail_overflow(op, finite_sums, sizeof(T) == 8);
  Rates<T> rates;
  rates.decay = decay;
  if (step.average) rates.denominator = decay;
  rates.lr = step.lr;
  rates.normalise = step.normalise;
  return rates;
}

// After the survey of every row.
template <class S, class T>
static void take(Step<S, T>& update, const T* sums) {
  const int flaws = update.judge(sums);
  if (flaws & flaw_weight) fail_finite(op, "weight");
  if (flaws & flaw_sum) fail_overflow(op, finite_sums, sizeof(T) == 8);
  if (flaws & flaw_step) fail_step(op);
  update.take(sums);
}

template <class S, class T>
static void step_lists(const Rows<S, T>& rows, const Source<T>& source, const Lists<T>& lists, const WinnerStep& step) {
  const int64_t inputs = rows.inputs();
  Step<S, T> update(rows, rates_of(step, lists.decay.get(), lists.size()), lists.neurons.data(), lists.size());
  const Scratch<T> sums(lists.size() * inputs);
  add_lists<T>(
      source, lists, [&](int64_t list) { return sums.get() + list * inputs; },
      [&](int64_t list, const T* sum) { update.survey(list, sum, rows.buffer().get()); });
  take(update, sums.get());
}

// The step of apply_ with the sums of a grouped convolution.
template <class S, class T>
static void step_groups(const Tensor& weight, const Tensor& x, const WinnerStep& step) {
  const Geometry& g = step.g;
  const int64_t neurons = weight.size(0);
  const CompeteSettings contest = contest_of(step);
  const Scratch<int32_t> labels =
      step.labels ? checked_indices(op, "labels", *step.labels, 1, neurons) : Scratch<int32_t>(0);
  const std::vector<T> coefficients(step.coefficients.begin(), step.coefficients.end());
  const GroupedStep<T> how{contest,
                           step.labels ? labels.get() : nullptr,
                           coefficients.data(),
                           step.by_response,
                           step.decay_by_response,
                           Mask(step.frozen)};
  const Scratch<T> sums(weight.numel()), decay(neurons), count(neurons);
  learn_grouped<T>(op, x, g, weight, how, {sums.get(), decay.get(), count.get()});
  const Rows<S, T> rows(weight);
  Step<S, T> update(rows, rates_of(step, decay.get(), neurons), nullptr, neurons);
  each_row(rows, neurons, [&](int64_t j, T* buffer) { update.survey(j, sums.get() + j * rows.inputs(), buffer); });
  take(update, sums.get());
}

struct Cpu {
  template <class S, class T>
  static void run(const Tensor& weight, const Tensor& x, const WinnerStep& step) {
    if (step.g.groups > 1) return step_groups<S, T>(weight, x, step);
    constexpr double worth = 1 << 21;  // multiply-adds that are worth waking a thread for, some 30 us of one
    const Geometry& g = step.g;
    const SingleThread single(double(g.patches()) * double(g.inputs()) * double(step.labels ? 1 : g.neurons) < worth);
    const Source<T> source(op, x, g);
    const Rows<S, T> rows(weight);
    if (step.labels && !finite_rows(rows, g.neurons)) fail_finite(op, "weight");
    const int64_t ranks = step.ranks();
    const Scratch<T> responses(step.labels ? 0 : g.patches() * ranks);
    std::optional<Moments<T>> moments;
    const Scratch<int32_t> targets = targets_of(source, weight, step, moments, responses.get());
    const Scratch<T> coefficients = coefficients_of(step, responses.get(), g.patches());
    Assignments<T> assignments{ranks, targets.get(), {coefficients.get(), 0, 1}, {}, Mask(step.frozen)};
    if (step.by_response) assignments.coefficients.down = ranks;
    if (step.decay_by_response) assignments.responses = {responses.get(), ranks, 1};
    const bool raw = step.patches == Patches::raw;
    if (!raw && !moments) moments.emplace(op, source, step.patches);
    const Moments<T>* const known = raw ? nullptr : &*moments;
    if (step.labels) forget_blank(source, known, ranks, targets.get());
    step_lists(rows, source, group(source, known, assignments), step);
  }
};

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("winner_step_.cpu", TORCH_BOX(&winner_step_<Cpu>)); }

}  // namespace hebbkern
