// The step of apply_, for operators that hold the sums of some rows: each row is surveyed with its sum, all are judged,
// then all are taken. Nothing is written before every new weight is known to be finite.
#pragma once

#include <cmath>
#include <limits>

#include "common/apply.h"
#include "cpu/simd/kernels.h"

namespace hebbkern {

// The operator itself.
void apply_(Tensor weight, Tensor sum, OptionalTensor decay, OptionalTensor denominator, double lr,
            std::string normalise, double rate_power, OptionalTensor frozen);

// The numbers of a step, of row i where they have rows.
template <class T>
struct Rates {
  const T* decay = nullptr;
  int64_t decay_step = 1;
  const T* denominator = nullptr;
  int64_t denominator_step = 1;  // 0: one for all
  Mask frozen{std::nullopt};
  double lr = 0, rate_power = 0;
  Normalise normalise = Normalise::none;

  bool moves(int64_t i) const { return !frozen[i] && !(denominator && denominator[i * denominator_step] == 0); }
  T decay_of(int64_t i) const { return decay ? decay[i * decay_step] : T(0); }
  T denominator_of(int64_t i) const { return denominator ? denominator[i * denominator_step] : T(1); }
  // A power of two that lifts a denominator whose inverse overflows.
  T scale_of(int64_t i) const {
    return std::abs(denominator_of(i)) < 4 * std::numeric_limits<T>::min() ? T(uint64_t(1) << 63) : T(1);
  }
  T inverse_of(int64_t i, T scale) const { return 1 / (denominator_of(i) * scale); }
};

// Rows of weights in the order of a contiguous weight, whatever their dtype and strides.
template <class S, class T>
class Rows {
 public:
  explicit Rows(const Tensor& weight);
  int64_t inputs() const { return inputs_; }
  // Memory for a row that has to be gathered.
  Scratch<T> buffer() const { return Scratch<T>(direct_ ? 0 : inputs_); }
  // Row j where it lies, or gathered into the buffer.
  const T* read(int64_t j, T* buffer) const;
  // Where to put row j's new weights before `write`: in place if it lies there as it is.
  T* target(int64_t j, T* buffer) const;
  void write(int64_t j, const T* row) const;
  // Rounded to the stored dtype, does the row stay finite?
  bool holds(const T* row) const;

 private:
  S* data_;
  int64_t row_, inputs_;
  bool direct_;                 // a row is its inputs, one after the other, of dtype T
  std::vector<int64_t> entry_;  // where they are, otherwise
};

template <class S, class T>
bool finite_rows(const Rows<S, T>& rows, int64_t neurons);

enum Flaw { flaw_none = 0, flaw_weight = 1, flaw_sum = 2, flaw_step = 4 };

template <class S, class T>
class Step {
 public:
  // Row i is that of neuron names[i], or of neuron i without names.
  Step(const Rows<S, T>& weight, const Rates<T>& rates, const int32_t* names, int64_t rows);
  // Once for each row, from any thread; buffer: Rows::buffer.
  void survey(int64_t i, const T* sum, T* buffer);
  // After all surveys, the sums being [rows][inputs]: the flaws found, as bits.
  int judge(const T* sums);
  // Moves the weights. Only when nothing was found.
  void take(const T* sums) const;

 private:
  int64_t neuron(int64_t i) const { return names_ ? names_[i] : i; }
  RowStep<T> row_step(int64_t i, const T* w) const;
  bool surely_finite() const;

  const Rows<S, T>& weight_;
  const Rates<T> rates_;
  const int32_t* const names_;
  const int64_t rows_;
  Scratch<T> steps_;  // largest |delta| of each row, 0 where it does not move
  Scratch<T> tops_;   // largest |w| of each row
  T divisor_ = 1;     // the global maximum, where the step is divided by it
  std::atomic<int> flaws_{flaw_none};
};

// Calls f(i, a row's memory) for every row, in parts that are worth waking a thread for.
template <class S, class T, class F>
void each_row(const Rows<S, T>& rows, int64_t count, const F& f) {
  const int64_t block = std::max<int64_t>(1, (int64_t(1) << 17) / rows.inputs());
  parallel((count + block - 1) / block, [&](int64_t part) {
    const Scratch<T> buffer = rows.buffer();
    for (int64_t i = part * block; i < std::min(count, (part + 1) * block); ++i) f(i, buffer.get());
  });
}

}  // namespace hebbkern
