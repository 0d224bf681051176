// The dense rules of small groups: responses of a block, then its part of YᵀX, YᵀY and the other sums, in double.
#include <algorithm>
#include <cmath>

#include "cpu/ops/grouped.h"
#include "cpu/ops/planes.h"

namespace hebbkern {

// Sums over the patches of each part of the images: [parts][neurons of all groups]([..]).
template <class T>
struct DensePartials {
  explicit DensePartials(const Planes<T>& planes)
      : rows(planes.g.groups * planes.g.neurons),
        gradient(planes.parts * rows * planes.g.inputs()),
        gram(planes.parts * rows * planes.g.neurons),
        factor(planes.parts * rows) {}

  const int64_t rows;
  std::vector<double> gradient, gram, factor;  // YᵀX less its shift; YᵀY of a group; the decay's, by neuron
};

template <class T>
class DenseBlocks {
 public:
  DenseBlocks(const char* op, const Planes<T>& planes, const PlaneWeights<T>& weights, const Dense& rule,
              DensePartials<T>& partial)
      : op_(op),
        planes_(planes),
        weights_(weights),
        rule_(rule),
        partial_(partial),
        spread_(planes, rule.patches, false),
        y_(planes.g.neurons * planes.longest()),
        u_(rule.activation == Activation::softmax ? planes.g.neurons * planes.longest() : 0),
        rows_(planes.g.neurons) {}

  void operator()(const typename Planes<T>::Block& block) {
    respond(block);
    const Geometry& g = planes_.g;
    const int64_t n = g.inputs(), neurons = g.neurons, length = block.length, zero = 0;
    const int64_t at = block.part * partial_.rows + block.group * neurons;
    T* const y = y_.get();
    if (rule_.decay == Decay::triangular) {
      for (int64_t j = 0; j < neurons; ++j) rows_[j] = j * length;
      kernel_.dots(y, neurons, length, y, rows_.data(), neurons, &partial_.gram[at * neurons]);
    }
    for (int64_t j = 0; by_neuron(rule_.decay) && j < neurons; ++j) {
      const T* row = y + j * length;
      const T* with = rule_.decay == Decay::activity ? block.valid : u_.get() ? u_.get() + j * length : row;
      kernel_.dots(row, 1, length, with, &zero, 1, &partial_.factor[at + j]);
    }
    for (int64_t j = 0; j < neurons; ++j) spread_.prepare(block, y + j * length, &partial_.gradient[(at + j) * n]);
    kernel_.dots(y, neurons, length, block.x, planes_.taps.data(), n, &partial_.gradient[at * n]);
  }

 private:
  // Y of the block, and with softmax U; 0 where there is no patch.
  void respond(const typename Planes<T>::Block& block) {
    const int64_t n = planes_.g.inputs(), neurons = planes_.g.neurons, length = block.length;
    const int64_t first = block.group * neurons;
    kernel_.slide(block.x, planes_.taps.data(), n, weights_.rows.get() + first * n, neurons, length, y_.get());
    spread_.of(op_, block);
    const bool watch = weights_.may_overflow(double(block.bound));
    for (int64_t j = 0; j < neurons; ++j) {
      T* y = y_.get() + j * length;
      if (!spread_.raw) {
        kernel_.centre(y, length, spread_.offset.get(), weights_.wsum[first + j]);
        kernel_.answer(y, length, spread_.scale.get(), block.valid, Activation::linear);
      }
      if (watch && !finite_where(y, block.valid, length)) fail_overflow(op_, finite_responses, sizeof(T) == 8);
      kernel_.answer(y, length, nullptr, block.valid, rule_.activation);
    }
    if (rule_.activation != Activation::softmax) return;
    std::copy_n(y_.get(), neurons * length, u_.get());
    if (neurons == 1)
      std::copy_n(block.valid, length, y_.get());  // the softmax of one neuron is 1
    else
      kernel_.soft_lanes(y_.get(), neurons, length, block.valid, T(rule_.temperature));
  }

  const char* const op_;
  const Planes<T>& planes_;
  const PlaneWeights<T>& weights_;
  const Dense& rule_;
  DensePartials<T>& partial_;
  const Kernels<T>& kernel_ = kernels<T>();
  Spread<T> spread_;
  Scratch<T> y_, u_;  // [neurons][length]
  std::vector<int64_t> rows_;
};

template <class T>
void dense_by_planes(const char* op, const Tensor& x, const Geometry& g, const Tensor& weight, const Dense& rule,
                     const Mask& frozen, T* sum) {
  const Planes<T> planes(op, x, g);
  const PlaneWeights<T> weights(op, g, weight, std::nullopt, {2, false, rule.patches != Patches::raw});
  DensePartials<T> partial(planes);
  planes.each([&] { return DenseBlocks<T>(op, planes, weights, rule, partial); });
  for (std::vector<double>* sums : {&partial.gradient, &partial.gram, &partial.factor}) join_parts(*sums, planes.parts);
  const int64_t n = g.inputs(), neurons = g.neurons;
  for (int64_t row = 0; row < partial.rows; ++row) {
    const int64_t group = row / neurons * neurons, j = row - group;
    const T* w = weights.rows.get() + group * n;
    for (int64_t i = 0; i < n; ++i) {
      double total = partial.gradient[row * n + i];
      for (int64_t k = 0; rule.decay == Decay::triangular && k <= j; ++k)
        total -= partial.gram[row * neurons + k] * double(w[k * n + i]);
      if (by_neuron(rule.decay)) total -= partial.factor[row] * double(w[j * n + i]);
      sum[row * n + in_weight(g, i)] = frozen[row] ? T(0) : T(total);
    }
  }
  if (!finite(sum, partial.rows * n)) fail_overflow(op, finite_sums, sizeof(T) == 8);
}

template void dense_by_planes(const char*, const Tensor&, const Geometry&, const Tensor&, const Dense&, const Mask&,
                              float*);
template void dense_by_planes(const char*, const Tensor&, const Geometry&, const Tensor&, const Dense&, const Mask&,
                              double*);

}  // namespace hebbkern
