// apply_: average, skip the frozen, step, renormalise. One pass proves that every new weight is finite, a second
// writes: whatever raises leaves the weights as they were.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sanger.h"

namespace hebbkern {

enum class Normalise { none, row_max, row_l2, global_max };

template <class T>
struct Rates {
  const T* decay = nullptr;  // [K], stride decay_step
  int64_t decay_step = 0;
  const T* denominator = nullptr;  // [K], or [1] with step 0
  int64_t denominator_step = 0;
  const bool* frozen = nullptr;
  int64_t frozen_step = 0;
  double lr = 0, rate_power = 0;
  Normalise normalise = Normalise::none;

  bool moves(int64_t j) const {
    return !(frozen && frozen[j * frozen_step]) && !(denominator && denominator[j * denominator_step] == 0);
  }
  T decay_of(int64_t j) const { return decay ? decay[j * decay_step] : T(0); }
  T inverse_of(int64_t j) const { return denominator ? 1 / denominator[j * denominator_step] : T(1); }
};

// Rows of weights in the order of `sum`, whatever their dtype and strides.
template <class S, class T>
class Rows {
 public:
  explicit Rows(const Tensor& weight)
      : data_(static_cast<S*>(weight.mutable_data_ptr())),
        row_(weight.stride(0)),
        inputs_(weight.numel() / weight.size(0)) {
    const bool image = weight.dim() == 4;
    const int64_t height = image ? weight.size(2) : 1, width = image ? weight.size(3) : 1;
    for (int64_t c = 0; c < weight.size(1); ++c)
      for (int64_t i = 0; i < height; ++i)
        for (int64_t j = 0; j < width; ++j) {
          const int64_t at = c * weight.stride(1) + (image ? i * weight.stride(2) + j * weight.stride(3) : 0);
          direct_ &= at == int64_t(entry_.size());
          entry_.push_back(at);
        }
    direct_ &= std::is_same_v<S, T>;
  }

  int64_t inputs() const { return inputs_; }

  // Row j where it lies, or gathered into the buffer.
  const T* read(int64_t j, T* buffer) const {
    if constexpr (std::is_same_v<S, T>)
      if (direct_) return data_ + j * row_;
    for (int64_t n = 0; n < inputs_; ++n) buffer[n] = T(data_[j * row_ + entry_[n]]);
    return buffer;
  }
  T* target(int64_t j, T* buffer) const {
    if constexpr (std::is_same_v<S, T>)
      if (direct_) return data_ + j * row_;
    return buffer;
  }
  void write(int64_t j, const T* row) const {
    if constexpr (std::is_same_v<S, T>)
      if (direct_) return;
    for (int64_t n = 0; n < inputs_; ++n) data_[j * row_ + entry_[n]] = S(row[n]);
  }
  // Rounded to the stored dtype, does the row stay finite?
  bool holds(const T* row) const {
    if constexpr (!std::is_same_v<S, T>)
      for (int64_t n = 0; n < inputs_; ++n)
        if (!std::isfinite(float(S(row[n])))) return false;
    return true;
  }

 private:
  S* data_;
  int64_t row_, inputs_;
  bool direct_ = true;
  std::vector<int64_t> entry_;
};

// rho = | ||w|| - 1 | ^ power
template <class T>
static T norm_rate(const T* w, int64_t n, double power) {
  if (power == 0) return 1;
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += double(w[i]) * double(w[i]);
  return T(std::pow(std::abs(std::sqrt(squares) - 1), power));
}

template <class T>
static bool all_finite(const T* data, int64_t n, int64_t step) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(data[i * step])) return false;
  return true;
}

enum Flaw { flaw_none = 0, flaw_weight = 1, flaw_sum = 2, flaw_step = 4 };

// Rows to a hand-out: 64k entries, worth a thread's wake-up.
static int64_t rows_per_block(int64_t inputs) { return std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, inputs)); }

template <class T, class F>
static void each_block(int64_t neurons, int64_t inputs, const F& f) {
  const int64_t block = rows_per_block(inputs);
  parallel((neurons + block - 1) / block, [&](int64_t part) {
    Scratch<T> buffer(inputs), next(inputs);
    for (int64_t j = part * block; j < std::min(neurons, (part + 1) * block); ++j) f(j, buffer.get(), next.get());
  });
}

template <class T>
static RowStep<T> row_step(const Rates<T>& rates, const T* w, int64_t n, int64_t j, T divisor) {
  const int normalise = rates.normalise == Normalise::row_max ? 1 : rates.normalise == Normalise::row_l2 ? 2 : 0;
  return {rates.decay_of(j), rates.inverse_of(j), T(rates.lr) * norm_rate(w, n, rates.rate_power) / divisor, normalise};
}

// What one pass over all rows finds out before anything is written.
template <class T>
struct Survey {
  explicit Survey(int64_t neurons) : steps(neurons) {}
  Scratch<T> steps;  // largest |delta| of each row, 0 where it does not move
  T divisor = 1;     // the global maximum, where the step is divided by it
  bool safe = true;  // no new weight can come near the largest number of the stored dtype
  int flaws = flaw_none;
};

template <class S, class T>
static Survey<T> survey(const Rows<S, T>& rows, const T* sum, const Rates<T>& rates, int64_t neurons) {
  const auto& kernel = kernels<T>();
  const int64_t n = rows.inputs();
  Survey<T> found(neurons);
  const Scratch<T>& steps = found.steps;
  Scratch<T> weights(neurons);  // largest |w| of each row
  std::atomic<int> flaws{flaw_none};
  each_block<T>(neurons, n, [&](int64_t j, T* buffer, T*) {
    const T* w = rows.read(j, buffer);
    steps[j] = weights[j] = 0;
    const bool moves = rates.moves(j);
    const T inverse = moves ? rates.inverse_of(j) : T(1), decay = moves ? rates.decay_of(j) : T(0);
    if (kernel.largest(w, sum + j * n, n, decay, inverse, &steps[j], &weights[j])) {
      if (!moves) steps[j] = 0;
      return;
    }
    const bool sound_weight = finite(w, n), sound_sum = finite(sum + j * n, n);
    flaws |= !sound_weight ? flaw_weight : !sound_sum ? flaw_sum : flaw_step;
  });
  found.flaws = flaws;
  if (rates.normalise == Normalise::global_max)
    found.divisor = std::max(*std::max_element(steps.get(), steps.get() + neurons), T(1e-30));
  constexpr double limit = sizeof(T) == 8 ? 1e307 : std::is_same_v<S, Half> ? 3e4 : 1e37;
  for (int64_t j = 0; j < neurons; ++j) {
    const double rho =
        rates.rate_power == 0 ? 1 : std::pow(1 + double(weights[j]) * std::sqrt(double(n)), rates.rate_power);
    if (!(weights[j] + std::abs(rates.lr) * rho * steps[j] / found.divisor < limit)) found.safe = false;
  }
  return found;
}

template <class S, class T>
static void apply_typed(const Tensor& weight, const T* sum, const Rates<T>& rates) {
  const char* op = "apply_";
  const Rows<S, T> rows(weight);
  const int64_t neurons = weight.size(0), n = rows.inputs();
  const auto& kernel = kernels<T>();
  const Survey<T> found = survey(rows, sum, rates, neurons);
  std::atomic<int> flaws{found.flaws};
  if (!found.safe && !flaws)
    each_block<T>(neurons, n, [&](int64_t j, T* buffer, T* next) {
      const T* w = rows.read(j, buffer);
      bool moved = false;
      if (found.steps[j] != 0 &&
          (!kernel.step(w, sum + j * n, n, row_step(rates, w, n, j, found.divisor), next, &moved) || !rows.holds(next)))
        flaws |= flaw_step;
    });
  if (flaws & flaw_weight) fail_finite(op, "weight");
  if (flaws & flaw_sum) fail_finite(op, "sum");
  if (flaws & flaw_step) fail(op, "weight must stay finite, got a step that overflows it");
  each_block<T>(neurons, n, [&](int64_t j, T* buffer, T*) {
    if (found.steps[j] == 0) return;
    const T* w = rows.read(j, buffer);
    bool moved = false;
    T* to = rows.target(j, buffer);
    kernel.step(w, sum + j * n, n, row_step(rates, w, n, j, found.divisor), to, &moved);
    if (moved) rows.write(j, to);
  });
}

static Normalise check_normalise(const std::string& normalise) {
  if (normalise == "none") return Normalise::none;
  if (normalise == "row_max") return Normalise::row_max;
  if (normalise == "row_l2") return Normalise::row_l2;
  if (normalise == "global_max") return Normalise::global_max;
  fail("apply_", "normalise must be \"none\", \"row_max\", \"row_l2\" or \"global_max\", got \"", normalise, "\"");
}

// Whether two entries may share memory: a dimension's stride must exceed the reach of those with smaller ones.
static bool overlaps(const Tensor& weight) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < weight.dim(); ++d)
    if (weight.size(d) > 1) dims.push_back({weight.stride(d), weight.size(d)});
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

static void check_apply(const Tensor& weight, const Tensor& sum, const OptionalTensor& decay,
                        const OptionalTensor& denominator, double lr, double rate_power, const OptionalTensor& frozen) {
  const char* op = "apply_";
  if (weight.dim() != 2 && weight.dim() != 4)
    fail(op, "weight must be [neurons, inputs] or [neurons, channels, height, width], got shape ",
         list(weight.sizes()));
  check_floating(op, "weight", weight);
  if (weight.numel() == 0)
    fail(op, "weight must have at least one neuron and one input, got shape ", list(weight.sizes()));
  if (overlaps(weight))
    fail(op, "weight must hold each entry once, got strides ", list(weight.strides()), " for shape ",
         list(weight.sizes()));
  const ScalarType result = result_dtype(weight.scalar_type());
  const int64_t neurons = weight.size(0);
  const Ints shape(weight.sizes().begin(), weight.sizes().end());
  if (sum.scalar_type() != result || !has_shape(sum, shape))
    fail(op, "sum must be ", name_of(result), " of shape ", list(shape), ", got ", describe(sum));
  if (decay && (decay->scalar_type() != result || !has_shape(*decay, {neurons})))
    fail(op, "decay must be ", name_of(result), " of shape [", neurons, "], got ", describe(*decay));
  if (denominator &&
      (denominator->scalar_type() != result || !(has_shape(*denominator, {neurons}) || has_shape(*denominator, {1}))))
    fail(op, "denominator must be ", name_of(result), " of shape [", neurons, "] or [1], got ", describe(*denominator));
  if (!std::isfinite(lr)) fail(op, "lr must be finite, got ", lr);
  if (!std::isfinite(rate_power) || rate_power < 0)
    fail(op, "rate_power must be a finite number of at least 0, got ", rate_power);
  check_mask(op, "frozen", frozen, neurons);
}

template <class S, class T>
static void apply_checked(const Tensor& weight, const Tensor& sum, const OptionalTensor& decay,
                          const OptionalTensor& denominator, double lr, Normalise normalise, double rate_power,
                          const OptionalTensor& frozen) {
  const int64_t neurons = weight.size(0);
  Rates<T> rates;
  rates.lr = lr;
  rates.rate_power = rate_power;
  rates.normalise = normalise;
  if (decay) {
    rates.decay = static_cast<const T*>(decay->const_data_ptr());
    rates.decay_step = decay->stride(0);
    if (!all_finite(rates.decay, neurons, rates.decay_step)) fail_finite("apply_", "decay");
  }
  if (denominator) {
    rates.denominator = static_cast<const T*>(denominator->const_data_ptr());
    rates.denominator_step = denominator->size(0) == neurons ? denominator->stride(0) : 0;
    if (!all_finite(rates.denominator, denominator->size(0), denominator->stride(0)))
      fail_finite("apply_", "denominator");
  }
  if (frozen) {
    rates.frozen = static_cast<const bool*>(frozen->const_data_ptr());
    rates.frozen_step = frozen->stride(0);
  }
  const Tensor dense = sum.is_contiguous() ? sum : torch::stable::contiguous(sum);
  apply_typed<S, T>(weight, static_cast<const T*>(dense.const_data_ptr()), rates);
}

void apply_(Tensor weight, Tensor sum, OptionalTensor decay, OptionalTensor denominator, double lr,
                   std::string normalise, double rate_power, OptionalTensor frozen) {
  check_apply(weight, sum, decay, denominator, lr, rate_power, frozen);
  const Normalise kind = check_normalise(normalise);
  with_dtype(weight.scalar_type(), [&](auto stored, auto tag) {
    apply_checked<decltype(stored), decltype(tag)>(weight, sum, decay, denominator, lr, kind, rate_power, frozen);
  });
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("apply_", TORCH_BOX(&apply_)); }

}  // namespace hebbkern
