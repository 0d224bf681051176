// apply_: average, skip the frozen, step, renormalise. A step that raises leaves the weights unchanged.
#include "cpu/ops/apply.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hebbkern {

template <class S, class T>
Rows<S, T>::Rows(const Tensor& weight)
    : data_(static_cast<S*>(weight.mutable_data_ptr())),
      row_(weight.stride(0)),
      inputs_(weight.numel() / weight.size(0)),
      direct_(std::is_same_v<S, T>) {
  int64_t dense = 1;
  for (int64_t d = weight.dim() - 1; d > 0; --d) {
    direct_ &= weight.size(d) == 1 || weight.stride(d) == dense;
    dense *= weight.size(d);
  }
  if (direct_) return;
  const bool image = weight.dim() == 4;
  const int64_t height = image ? weight.size(2) : 1, width = image ? weight.size(3) : 1;
  entry_.reserve(inputs_);
  for (int64_t c = 0; c < weight.size(1); ++c)
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j)
        entry_.push_back(c * weight.stride(1) + (image ? i * weight.stride(2) + j * weight.stride(3) : 0));
}

template <class S, class T>
const T* Rows<S, T>::read(int64_t j, T* buffer) const {
  if constexpr (std::is_same_v<S, T>)
    if (direct_) return data_ + j * row_;
  for (int64_t n = 0; n < inputs_; ++n) buffer[n] = T(data_[j * row_ + entry_[n]]);
  return buffer;
}

template <class S, class T>
T* Rows<S, T>::target(int64_t j, T* buffer) const {
  if constexpr (std::is_same_v<S, T>)
    if (direct_) return data_ + j * row_;
  return buffer;
}

template <class S, class T>
void Rows<S, T>::write(int64_t j, const T* row) const {
  if (direct_) return;
  for (int64_t n = 0; n < inputs_; ++n) data_[j * row_ + entry_[n]] = S(row[n]);
}

template <class S, class T>
bool Rows<S, T>::holds(const T* row) const {
  if constexpr (!std::is_same_v<S, T>)
    for (int64_t n = 0; n < inputs_; ++n)
      if (!std::isfinite(float(S(row[n])))) return false;
  return true;
}

template <class S, class T>
bool finite_rows(const Rows<S, T>& rows, int64_t neurons) {
  std::atomic<bool> sound{true};
  each_row(rows, neurons, [&](int64_t j, T* buffer) {
    if (!finite(rows.read(j, buffer), rows.inputs())) sound = false;
  });
  return sound;
}

// rho = | ||w|| - 1 | ^ power
template <class T>
static T norm_rate(const T* w, int64_t n, double power) {
  if (power == 0) return 1;
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += double(w[i]) * double(w[i]);
  return T(std::pow(std::abs(std::sqrt(squares) - 1), power));
}

template <class S, class T>
Step<S, T>::Step(const Rows<S, T>& weight, const Rates<T>& rates, const int32_t* names, int64_t rows)
    : weight_(weight), rates_(rates), names_(names), rows_(rows), steps_(rows), tops_(rows) {}

template <class S, class T>
RowStep<T> Step<S, T>::row_step(int64_t i, const T* w) const {
  const int normalise = rates_.normalise == Normalise::row_max ? 1 : rates_.normalise == Normalise::row_l2 ? 2 : 0;
  const T rho = norm_rate(w, weight_.inputs(), rates_.rate_power);
  const int exponent = std::ilogb(divisor_);
  const T mantissa = std::ldexp(divisor_, -exponent);  // in [1, 2)
  const T lift = rates_.scale_of(i), scale = std::ldexp(lift, -exponent), inverse = rates_.inverse_of(i, lift);
  RowStep<T> row{rates_.decay_of(i), inverse * scale, T(rates_.lr) * rho / mantissa, normalise};
  if (!std::isnormal(row.inverse)) {  // two factors for what one does not hold
    row.inverse = inverse;
    row.scale = scale;
  }
  return row;
}

template <class S, class T>
void Step<S, T>::survey(int64_t i, const T* sum, T* buffer) {
  const int64_t n = weight_.inputs();
  const T* w = weight_.read(neuron(i), buffer);
  const bool moves = rates_.moves(i);
  const T scale = moves ? rates_.scale_of(i) : T(1), inverse = moves ? rates_.inverse_of(i, scale) : T(1);
  const T decay = moves ? rates_.decay_of(i) : T(0);
  if (!kernels<T>().largest(w, sum, n, decay, scale, inverse, &steps_[i], &tops_[i]))
    flaws_ |= !finite(w, n) ? flaw_weight : !finite(sum, n) ? flaw_sum : flaw_step;
  if (!moves) steps_[i] = 0;
}

// Whether a bound shows that no new weight, nor a number on the way to it, comes near the largest of the stored dtype.
template <class S, class T>
bool Step<S, T>::surely_finite() const {
  constexpr double limit = sizeof(T) == 8 ? 1e307 : std::is_same_v<S, Half> ? 3e4 : 1e37;
  const double longest = std::sqrt(double(weight_.inputs()));
  for (int64_t i = 0; i < rows_; ++i) {
    const double rho = rates_.rate_power == 0 ? 1 : std::pow(1 + double(tops_[i]) * longest, rates_.rate_power);
    const double rate = std::abs(rates_.lr) * rho;
    const double most = std::max({std::abs(rates_.lr), rho, rate, rate * (steps_[i] / double(divisor_))});
    if (!(tops_[i] + most < limit)) return false;
  }
  return true;
}

template <class S, class T>
int Step<S, T>::judge(const T* sums) {
  if (rates_.normalise == Normalise::global_max) {
    divisor_ = T(1e-30);
    for (int64_t i = 0; i < rows_; ++i) divisor_ = std::max(divisor_, steps_[i]);
  }
  if (flaws_ || surely_finite()) return flaws_;
  const int64_t n = weight_.inputs();
  each_row(weight_, rows_, [&](int64_t i, T* buffer) {
    if (steps_[i] == 0) return;
    const Scratch<T> next(n);
    const T* w = weight_.read(neuron(i), buffer);
    bool moved = false;
    if (!kernels<T>().step(w, sums + i * n, n, row_step(i, w), next.get(), &moved) || !weight_.holds(next.get()))
      flaws_ |= flaw_step;
  });
  return flaws_;
}

template <class S, class T>
void Step<S, T>::take(const T* sums) const {
  const int64_t n = weight_.inputs();
  each_row(weight_, rows_, [&](int64_t i, T* buffer) {
    if (steps_[i] == 0) return;
    const int64_t j = neuron(i);
    const T* w = weight_.read(j, buffer);
    T* to = weight_.target(j, buffer);
    bool moved = false;
    kernels<T>().step(w, sums + i * n, n, row_step(i, w), to, &moved);
    if (moved) weight_.write(j, to);
  });
}

#define INSTANTIATE(S, T)    \
  template class Rows<S, T>; \
  template class Step<S, T>; \
  template bool finite_rows(const Rows<S, T>&, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(BFloat16, float)
INSTANTIATE(Half, float)
#undef INSTANTIATE

template <class T>
static bool all_finite(const T* data, int64_t n, int64_t step) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(data[i * step])) return false;
  return true;
}

template <class S, class T>
static void apply_typed(const Tensor& weight, const Tensor& sum, Rates<T> rates, const OptionalTensor& decay,
                        const OptionalTensor& denominator) {
  const char* op = "apply_";
  const int64_t neurons = weight.size(0);
  if (decay) {
    rates.decay = static_cast<const T*>(decay->const_data_ptr());
    rates.decay_step = decay->stride(0);
    if (!all_finite(rates.decay, neurons, rates.decay_step)) fail_finite(op, "decay");
  }
  if (denominator) {
    rates.denominator = static_cast<const T*>(denominator->const_data_ptr());
    rates.denominator_step = denominator->size(0) == neurons ? denominator->stride(0) : 0;
    if (!all_finite(rates.denominator, denominator->size(0), denominator->stride(0))) fail_finite(op, "denominator");
  }
  const Tensor dense = sum.is_contiguous() ? sum : torch::stable::contiguous(sum);
  const T* sums = static_cast<const T*>(dense.const_data_ptr());
  const Rows<S, T> rows(weight);
  Step<S, T> step(rows, rates, nullptr, neurons);
  each_row(rows, neurons, [&](int64_t j, T* buffer) { step.survey(j, sums + j * rows.inputs(), buffer); });
  const int flaws = step.judge(sums);
  if (flaws & flaw_weight) fail_finite(op, "weight");
  if (flaws & flaw_sum) fail_finite(op, "sum");
  if (flaws & flaw_step) fail_step(op);
  step.take(sums);
}

void apply_(Tensor weight, Tensor sum, OptionalTensor decay, OptionalTensor denominator, double lr,
            std::string normalise, double rate_power, OptionalTensor frozen) {
  const Normalise kind = check_apply(weight, sum, decay, denominator, lr, normalise, rate_power, frozen);
  with_dtype(weight.scalar_type(), [&](auto stored, auto tag) {
    using T = decltype(tag);
    Rates<T> rates;
    rates.frozen = Mask(frozen);
    rates.lr = lr;
    rates.rate_power = rate_power;
    rates.normalise = kind;
    apply_typed<decltype(stored), T>(weight, sum, rates, decay, denominator);
  });
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("apply_.cpu", TORCH_BOX(&apply_)); }

}  // namespace hebbkern
