// The winners of grouped convolutions, and the sums over the patches that they won.
#include "cpu/ops/grouped.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/arithmetic.h"
#include "cpu/ops/planes.h"

namespace hebbkern {

Tensor channels_of_group(const Tensor& x, const Geometry& g, int64_t group) {
  Tensor all = x;
  return torch::stable::narrow(all, 1, group * g.channels, g.channels);
}

Tensor rows_of_group(const Tensor& rows, const Geometry& g, int64_t group) {
  Tensor all = rows;
  return torch::stable::narrow(all, 0, group * g.neurons, g.neurons);
}

OptionalTensor mask_of_group(const OptionalTensor& mask, const Geometry& g, int64_t group) {
  return mask ? OptionalTensor(rows_of_group(*mask, g, group)) : std::nullopt;
}

// The winners in the blocks of one hand-out.
template <class T>
class Champions {
 public:
  Champions(const char* op, const Planes<T>& planes, const PlaneWeights<T>& weights, const CompeteSettings& contest)
      : spread(planes, contest.patches, contest.prepare.cosine && contest.responses),
        best(contest.k * planes.longest()),
        winners(contest.k * planes.longest()),
        op_(op),
        planes_(planes),
        weights_(weights),
        contest_(contest),
        u_(planes.g.neurons * planes.longest()) {}

  // Names within the group; responses of entries that are no patches are of no use, but finite.
  void of(const typename Planes<T>::Block& block) {
    const int64_t n = planes_.g.inputs(), length = block.length, first = weights_.first[block.group];
    const int64_t count = weights_.count(block.group);
    const T* rows = weights_.rows.get() + first * n;
    if (count == 1 && contest_.k == 1 && spread.raw && !contest_.responses &&
        !weights_.may_overflow(double(block.bound))) {
      // The one neuron wins every patch that is not blank. A tap in the middle tells nearly all of those.
      std::fill_n(winners.get(), length, Index<T>(weights_.names[first]));
      if (kernel_.any_zero(block.x + planes_.taps[n / 2], block.valid, length))
        spread.drop_blank(block, 1, winners.get());
      return;
    }
    kernel_.slide(block.x, planes_.taps.data(), n, rows, count, length, u_.get());
    spread.of(op_, block);
    for (int64_t j = 0; !spread.raw && j < count; ++j)
      kernel_.centre(u_.get() + j * length, length, spread.offset.get(), weights_.wsum[first + j]);
    if (weights_.may_overflow(double(block.bound))) {
      for (int64_t j = 0; j < count; ++j) {
        T* u = u_.get() + j * length;
        if (!finite_where(u, block.valid, length)) fail_overflow(op_, finite_responses, sizeof(T) == 8);
        for (int64_t o = 0; o < length; ++o) u[o] = block.valid[o] != 0 ? u[o] : T(0);
      }
    }
    kernel_.champions(u_.get(), weights_.names.data() + first, count, length, contest_.k, best.get(), winners.get());
    scale(block, count);
    if (spread.raw && kernel_.any_zero(best.get(), block.valid, length))
      spread.drop_blank(block, contest_.k, winners.get());
  }

  Spread<T> spread;
  Scratch<T> best;            // [k][length]
  Scratch<Index<T>> winners;  // likewise

 private:
  // Responses of cosines and of patches that are not raw; flat patches and ranks without a neuron have no winner.
  void scale(const typename Planes<T>::Block& block, int64_t count) {
    for (int64_t r = 0; r < contest_.k; ++r) {
      T* response = best.get() + r * block.length;
      Index<T>* winner = winners.get() + r * block.length;
      if (r >= count) {
        std::fill_n(response, block.length, T(0));
        std::fill_n(winner, block.length, Index<T>(-1));
        continue;
      }
      const T* norm = spread.norms ? spread.norm.get() : nullptr;
      if (spread.wanted() && !kernel_.settle(block.valid, spread.scale.get(), norm, block.length, response, winner))
        fail_overflow(op_, finite_responses, sizeof(T) == 8);
    }
  }

  const char* const op_;
  const Planes<T>& planes_;
  const PlaneWeights<T>& weights_;
  const CompeteSettings& contest_;
  const Kernels<T>& kernel_ = kernels<T>();
  Scratch<T> u_;  // [neurons][length]
};

template <class T>
static void compete_in_planes(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight,
                              const CompeteSettings& contest, T* best, int32_t* winners) {
  const PlaneWeights<T> weights(op, g, weight, contest.eligible, contest.prepare);
  const Planes<T> planes(op, x, g);
  const int64_t k = contest.k;
  planes.each([&] {
    return [&, champions = Champions<T>(op, planes, weights, contest)](const typename Planes<T>::Block& block) mutable {
      champions.of(block);
      const int64_t from = block.group * g.patches();
      const int32_t first = int32_t(block.group * g.neurons);
      planes.each_patch(block, [&](int64_t o, int64_t patch) {
        for (int64_t r = 0; r < k; ++r) {
          const Index<T> winner = champions.winners[r * block.length + o];
          best[(from + patch) * k + r] = champions.best[r * block.length + o];
          winners[(from + patch) * k + r] = winner < 0 ? -1 : first + int32_t(winner);
        }
      });
    };
  });
}

template <class T>
void find_grouped_winners(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight,
                          const CompeteSettings& contest, T* best, int32_t* winners) {
  if (Planes<T>::suit(g) && contest.k <= 4) return compete_in_planes(op, x, g, weight, contest, best, winners);
  const int64_t entries = g.patches() * contest.k;
  for (int64_t group = 0; group < g.groups; ++group, best += entries, winners += entries) {
    const OptionalTensor eligible = mask_of_group(contest.eligible, g, group);
    const CompeteSettings own{contest.k, contest.prepare, contest.patches, eligible, contest.responses};
    const Source<T> source(op, channels_of_group(x, g, group), geometry_of_group(g));
    std::optional<Moments<T>> moments;
    find_winners(op, source, rows_of_group(weight, g, group), own, moments, best, winners);
    for (int64_t i = 0; i < entries; ++i) winners[i] += winners[i] < 0 ? 0 : int32_t(group * g.neurons);
  }
}

// Sums of the parts of the images, in double.
template <class T>
class PartialSums {
 public:
  explicit PartialSums(const Planes<T>& planes)
      : planes_(planes),
        rows_(planes.g.groups * planes.g.neurons),
        sum_(planes.parts * rows_ * planes.g.inputs()),
        decay_(planes.parts * rows_),
        count_(planes.parts * rows_) {}

  // Entries of a block: coefficients are 0 where there is no patch; c has room for [neurons][length].
  void add(const typename Planes<T>::Block& block, const Spread<T>& spread, const Index<T>* winners,
           const T* coefficients, const T* responses, int64_t ranks, const Mask& frozen, T* c) {
    const Geometry& g = planes_.g;
    const int64_t n = g.inputs(), length = block.length, first = block.group * g.neurons;
    const int64_t at = block.part * rows_ + first;
    for (int64_t j = 0; j < g.neurons; ++j, c += length) {
      if (frozen[first + j])
        std::fill_n(c, length, T(0));
      else
        kernel_.teach(winners, coefficients, responses, ranks, length, j, c, &decay_[at + j], &count_[at + j]);
      spread.prepare(block, c, &sum_[(at + j) * n]);
    }
    kernel_.dots(c - g.neurons * length, g.neurons, length, block.x, planes_.taps.data(), n, &sum_[at * n]);
  }

  void write(const GroupedSums<T>& sums) {
    for (std::vector<double>* each : {&sum_, &decay_, &count_}) join_parts(*each, planes_.parts);
    const Geometry& g = planes_.g;
    const int64_t n = g.inputs();
    for (int64_t j = 0; j < rows_; ++j) {
      for (int64_t i = 0; i < n; ++i) sums.sum[j * n + in_weight(g, i)] = T(sum_[j * n + i]);
      sums.decay[j] = T(decay_[j]);
      sums.count[j] = T(count_[j]);
    }
  }

 private:
  const Planes<T>& planes_;
  const Kernels<T>& kernel_ = kernels<T>();
  const int64_t rows_;
  std::vector<double> sum_, decay_, count_;  // [parts][neurons of all groups]([inputs])
};

template <class T>
static void add_in_planes(const char* op, const Tensor& x, const Geometry& g, Patches patches,
                          const Assignments<T>& given, const GroupedSums<T>& sums) {
  const Planes<T> planes(op, x, g);
  PartialSums<T> partial(planes);
  const int64_t ranks = given.ranks, longest = planes.longest();
  struct Work {
    Spread<T> spread;
    Scratch<Index<T>> winners;
    Scratch<T> coefficients, responses, c;
  };
  planes.each([&] {
    return [&, work = Work{Spread<T>(planes, patches, false), Scratch<Index<T>>(ranks * longest),
                           Scratch<T>(ranks * longest), Scratch<T>(ranks * longest),
                           Scratch<T>(g.neurons * longest)}](const typename Planes<T>::Block& block) mutable {
      const int64_t length = block.length, from = block.group * g.patches();
      const auto first = Index<T>(block.group * g.neurons);
      std::fill_n(work.coefficients.get(), ranks * length, T(0));
      std::fill_n(work.responses.get(), ranks * length, T(0));
      std::fill_n(work.winners.get(), ranks * length, Index<T>(-1));
      planes.each_patch(block, [&](int64_t o, int64_t patch) {
        for (int64_t r = 0; r < ranks; ++r) {
          const int32_t target = given.targets[(from + patch) * ranks + r];
          work.winners[r * length + o] = target < 0 ? Index<T>(-1) : Index<T>(target) - first;
          work.coefficients[r * length + o] = given.coefficients(from + patch, r);
          work.responses[r * length + o] = given.responses(from + patch, r);
        }
      });
      work.spread.of(op, block);
      work.spread.drop_blank(block, ranks, work.winners.get());
      partial.add(block, work.spread, work.winners.get(), work.coefficients.get(), work.responses.get(), ranks,
                  given.frozen, work.c.get());
    };
  });
  partial.write(sums);
}

// The sums of one group as a layer of its own.
template <class T>
static void add_side(const Source<T>& source, const Moments<T>* moments, const Assignments<T>& own, int64_t first,
                     const GroupedSums<T>& sums) {
  const int64_t inputs = source.g.inputs(), neurons = source.g.neurons;
  std::fill_n(sums.sum + first * inputs, neurons * inputs, T(0));
  std::fill_n(sums.decay + first, neurons, T(0));
  std::fill_n(sums.count + first, neurons, T(0));
  const Lists<T> lists = group(source, moments, own);
  for (int64_t i = 0; i < lists.size(); ++i) {
    sums.decay[first + lists.neurons[i]] = lists.decay[i];
    sums.count[first + lists.neurons[i]] = T(lists.start[i + 1] - lists.start[i]);
  }
  add_lists<T>(
      source, lists, [&](int64_t list) { return sums.sum + (first + lists.neurons[list]) * inputs; },
      [](int64_t, const T*) {});
}

template <class T>
void add_grouped(const char* op, const Tensor& x, const Geometry& g, Patches patches, const Assignments<T>& given,
                 const GroupedSums<T>& sums) {
  if (Planes<T>::suit(g) && given.ranks <= 4) return add_in_planes(op, x, g, patches, given, sums);
  const int64_t count = g.patches(), ranks = given.ranks;
  Scratch<int32_t> own(count * ranks);
  for (int64_t side = 0; side < g.groups; ++side) {
    const int64_t from = side * count, first = side * g.neurons;
    for (int64_t i = 0; i < count * ranks; ++i) {
      const int32_t target = given.targets[from * ranks + i];
      own[i] = target < 0 ? -1 : target - int32_t(first);
    }
    const Source<T> source(op, channels_of_group(x, g, side), geometry_of_group(g));
    std::optional<Moments<T>> moments;
    if (patches != Patches::raw) moments.emplace(op, source, patches);
    const Moments<T>* const known = moments ? &*moments : nullptr;
    forget_blank(source, known, ranks, own.get());
    const Assignments<T> part{ranks, own.get(), given.coefficients.from(from), given.responses.from(from),
                              given.frozen.from(first)};
    add_side(source, known, part, first, sums);
  }
}

template <class T>
static void learn_in_planes(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight,
                            const GroupedStep<T>& step, const GroupedSums<T>& sums) {
  const Planes<T> planes(op, x, g);
  const PlaneWeights<T> weights(op, g, weight, std::nullopt, step.contest.prepare);
  PartialSums<T> partial(planes);
  const int64_t ranks = step.contest.k, longest = planes.longest();
  struct Work {
    Champions<T> champions;
    Scratch<T> coefficients, c;
  };
  planes.each([&] {
    return [&, work = Work{Champions<T>(op, planes, weights, step.contest), Scratch<T>(ranks * longest),
                           Scratch<T>(g.neurons * longest)}](const typename Planes<T>::Block& block) mutable {
      Champions<T>& champions = work.champions;
      const int64_t length = block.length;
      if (step.labels) {
        const int64_t label = step.labels[block.image] - block.group * g.neurons;
        if (label < 0 || label >= g.neurons) return;
        std::fill_n(champions.winners.get(), length, Index<T>(label));
        champions.spread.of(op, block);
        champions.spread.drop_blank(block, 1, champions.winners.get());
      } else {
        champions.of(block);
      }
      for (int64_t r = 0; r < ranks; ++r) {
        const T* response = step.by_response ? champions.best.get() + r * length : nullptr;
        kernels<T>().shares(block.valid, step.coefficients[r], response, length, work.coefficients.get() + r * length);
      }
      partial.add(block, champions.spread, champions.winners.get(), work.coefficients.get(),
                  step.decay_by_response ? champions.best.get() : nullptr, ranks, step.frozen, work.c.get());
    };
  });
  partial.write(sums);
}

// As many layers side by side, whose winners and sums the operators compete and accumulate give, too.
template <class T>
static void learn_side_by_side(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight,
                               const GroupedStep<T>& step, const GroupedSums<T>& sums) {
  const int64_t count = g.patches(), ranks = step.contest.k, per_image = g.per_image();
  Scratch<int32_t> winners(count * ranks);
  Scratch<T> best(count * ranks), coefficients(step.by_response ? count * ranks : 0);
  for (int64_t side = 0; side < g.groups; ++side) {
    const int64_t first = side * g.neurons;
    const Source<T> source(op, channels_of_group(x, g, side), geometry_of_group(g));
    std::optional<Moments<T>> moments;
    if (!step.labels)
      find_winners(op, source, rows_of_group(weight, g, side), step.contest, moments, best.get(), winners.get());
    if (step.contest.patches != Patches::raw && !moments) moments.emplace(op, source, step.contest.patches);
    const Moments<T>* const known = step.contest.patches == Patches::raw ? nullptr : &*moments;
    if (step.labels) {
      for (int64_t p = 0; p < count; ++p) {
        const int64_t label = step.labels[p / per_image] - first;
        winners[p] = label < 0 || label >= g.neurons ? -1 : int32_t(label);
      }
      forget_blank(source, known, 1, winners.get());
    }
    for (int64_t i = 0; step.by_response && i < count * ranks; ++i)
      coefficients[i] = rectified(step.coefficients[i % ranks], best[i]);
    Assignments<T> own{ranks, winners.get(), {step.coefficients, 0, 1}, {}, step.frozen.from(first)};
    if (step.by_response) own.coefficients = {coefficients.get(), ranks, 1};
    if (step.decay_by_response) own.responses = {best.get(), ranks, 1};
    add_side(source, known, own, first, sums);
  }
}

template <class T>
void learn_grouped(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight, const GroupedStep<T>& step,
                   const GroupedSums<T>& sums) {
  if (Planes<T>::suit(g) && step.contest.k <= 4)
    learn_in_planes(op, x, g, weight, step, sums);
  else
    learn_side_by_side(op, x, g, weight, step, sums);
}

#define INSTANTIATE(T)                                                                                           \
  template void find_grouped_winners(const char*, const Tensor&, const Geometry&, const Tensor&,                 \
                                     const CompeteSettings&, T*, int32_t*);                                      \
  template void add_grouped(const char*, const Tensor&, const Geometry&, Patches, const Assignments<T>&,         \
                            const GroupedSums<T>&);                                                              \
  template void learn_grouped(const char*, const Tensor&, const Geometry&, const Tensor&, const GroupedStep<T>&, \
                              const GroupedSums<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace hebbkern
