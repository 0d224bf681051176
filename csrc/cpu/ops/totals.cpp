// The sums over the patches of a dense rule, and from them YᵀX - decay W.
#include <algorithm>
#include <limits>

#include "cpu/ops/dense_update.h"

namespace hebbkern {

template <class T>
Totals<T>::Totals(const char* op, const Geometry& g, const Tensor& weight, const Dense& rule)
    : op_(op),
      g_(g),
      decay_(rule.decay),
      panels(op, g, weight, chosen_neurons(std::nullopt, g.neurons), Prepare{2, false, rule.patches != Patches::raw}),
      width(panels.width),
      columns(panels.count() * panels.width),
      inputs(g.inputs()),
      rows_of_sum(round_up(inputs, kernel_.rows)),
      rows_of_gram(round_up(columns, kernel_.rows)),
      diagonal(columns),
      shift(columns),
      sum_(panels.count() * rows_of_sum * width),
      gram_(rule.decay == Decay::triangular ? panels.count() * rows_of_gram * width : 0) {
  std::fill_n(sum_.get(), panels.count() * rows_of_sum * width, T(0));
  if (rule.decay == Decay::triangular) std::fill_n(gram_.get(), panels.count() * rows_of_gram * width, T(0));
}

// sum -= tril(YᵀY) W: the tile's rows are inputs, its steps are neurons.
template <class T>
void Totals<T>::subtract_triangle() {
  const int64_t neurons = g_.neurons, tiles = rows_of_sum / kernel_.rows;
  parallel(panels.count(), [&](int64_t panel) {
    T* c = gram(panel, 0);
    for (int64_t i = 0; i < std::min(neurons, (panel + 1) * width); ++i)
      for (int64_t j = 0; j < width; ++j) c[i * width + j] = i <= panel * width + j ? -c[i * width + j] : T(0);
  });
  std::vector<int64_t> steps(neurons);
  for (int64_t i = 0; i < neurons; ++i) steps[i] = i / width * inputs * width + i % width;
  parallel(tiles * panels.count(), [&](int64_t item) {
    const int64_t panel = panels.count() - 1 - item / tiles, n = item % tiles * kernel_.rows;  // longest first
    const T* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = panels[0] + std::min(n + r, inputs - 1) * width;
    const T* c = gram(panel, 0);
    T* to = sum(panel, n);
    // Up to the diagonal's first vector for all columns, then a vector of neurons for a vector of columns less.
    int64_t first = 0, last = panel * width;
    for (int v = 0; v < panels.vectors(panel); ++v, first = last) {
      last = std::min(neurons, last + kernel_.lanes);
      const int64_t at = v * kernel_.lanes;
      kernel_.tile(rows, steps.data() + first, last - first, c + first * width + at, width, panels.vectors(panel) - v,
                   to + at, width, true);
    }
  });
}

template <class T>
void Totals<T>::write(const Mask& frozen, T* out) const {
  std::vector<int64_t> to_weight(inputs);
  for (int64_t n = 0; n < inputs; ++n) to_weight[n] = in_weight(g_, n);
  constexpr int64_t strip = 32;  // inputs whose lines of a panel stay in L1 while its neurons are written
  const int64_t strips = (inputs + strip - 1) / strip;
  const bool decays = by_neuron(decay_);
  parallel(panels.count() * strips, [&](int64_t item) {
    const int64_t panel = item / strips, first = item % strips * strip, last = std::min(inputs, first + strip);
    const T* from = sum(panel, 0);
    const T* w = panels[panel];
    for (int64_t j = 0; j < panels.valid(panel); ++j) {
      const int64_t neuron = panel * width + j;
      const T factor = T(diagonal[neuron]), gone = T(shift[neuron]);
      T* to = out + neuron * inputs;
      const bool skip = frozen[neuron];
      for (int64_t n = first; n < last; ++n)
        to[to_weight[n]] = skip ? T(0) : from[n * width + j] - gone - (decays ? factor * w[n * width + j] : T(0));
    }
  });
}

template <class T>
void Totals<T>::finish(const Mask& frozen, double largest, T* to) {
  if (decay_ == Decay::triangular) subtract_triangle();
  write(frozen, to);
  const double x = std::max(1.0, largest), w = std::max(1.0, double(panels.bound)), y = inputs * x * w;
  if (y * y * w * x * double(g_.patches()) * double(columns) > std::numeric_limits<T>::max() / 4 &&
      !finite(to, g_.neurons * inputs))
    fail_overflow(op_, finite_sums, sizeof(T) == 8);
}

template class Totals<float>;
template class Totals<double>;

}  // namespace hebbkern
