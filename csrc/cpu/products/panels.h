// Weights as the register tile reads them: panels of `width` neurons, input by input.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/products/source.h"

namespace hebbkern {

// What becomes of weights before they are multiplied by patches.
struct Prepare {
  double p = 2;         // sign(w) |w|^(p - 1)
  bool cosine = false;  // w / ||w||
  bool sums = false;    // wsum and wnorm are wanted
  bool part = false;    // the caller checks the rows left out
};

// Whether a sum of `inputs` weights up to `bound` times inputs up to `largest` could leave T's range: then responses
// have to be looked at.
template <class T>
bool sums_may_overflow(double largest, T bound, int64_t inputs) {
  return std::max(1.0, largest) * double(bound) * double(inputs) > double(std::numeric_limits<T>::max()) / 4;
}

template <class T>
class Panels {
 public:
  // Packs the rows `names` of weight in the source's input order. Raises if any weight, of the rows left out too, is
  // not finite.
  Panels(const char* op, const Geometry& g, const Tensor& weight, std::vector<int32_t> names, const Prepare& prepare);

  const std::vector<int32_t> names;  // the neuron of each column
  const int64_t inputs;
  const int width;

  int64_t count() const { return (int64_t(names.size()) + width - 1) / width; }
  int valid(int64_t panel) const { return int(std::min<int64_t>(width, int64_t(names.size()) - panel * width)); }
  int vectors(int64_t panel) const { return (valid(panel) + lanes_ - 1) / lanes_; }
  // Row n of a panel lies n * width on; panels lie inputs * width apart.
  const T* operator[](int64_t panel) const { return data_.get() + panel * inputs * width; }

  T bound = 0;  // the largest prepared |weight|

  bool may_overflow(double largest) const { return sums_may_overflow(largest, bound, inputs); }

  // Only where Prepare asks for a cosine or sums:
  Scratch<T> wsum;   // [columns], the sum of the prepared weights
  Scratch<T> wnorm;  // [columns], the squared norm of the weights, powers taken but not yet divided

 private:
  // Rows of weights as they lie: `step` apart, entry n of the source's order at entry[n].
  struct Rows {
    int64_t step;
    const std::vector<int64_t>& entry;
    bool contiguous;
  };
  // Inputs [begin, end) of one panel; adds to the columns' sums where given. Returns the largest prepared
  // |weight|; one that is not finite before that sets flaw_.
  template <class S>
  T fill(const S* weight, int64_t panel, int64_t begin, int64_t end, const Rows& rows, const Prepare& prepare,
         double* sum, double* squares);
  template <class S>
  T fill_with_sums(const S* weight, int64_t panel, const Rows& rows, const Prepare& prepare);

  const int lanes_;
  std::atomic<bool> flaw_{false};  // a weight is not finite
  Scratch<T> data_;                // [panels][inputs][width], zeros behind the last neuron, to a whole vector
};

// Neurons whose mask entry is true, or all of them.
std::vector<int32_t> chosen_neurons(const OptionalTensor& mask, int64_t neurons);

// One row of weight as a column of a panel holds it, bit for bit, and the sum of its entries. False if the row, or what
// became of it, is not finite.
template <class S, class T>
bool prepare_row(const S* row, const std::vector<int64_t>& entry, const Prepare& prepare, T* out, T* sum);

// Entry n of a row of weight, in the source's input order, relative to the row's first.
std::vector<int64_t> weight_entries(const Geometry& g, const Tensor& weight);
bool in_order(const std::vector<int64_t>& entry);  // whether a row lies as the source's inputs do

// Whether all rows are finite in T, including rows that do not compete. Entries as of weight_entries.
template <class T, class S>
bool rows_finite(const S* weight, int64_t rows, int64_t step, const std::vector<int64_t>& entry) {
  const bool as_it_lies = std::is_same_v<S, T> && in_order(entry);
  for (int64_t j = 0; j < rows; ++j, weight += step) {
    if constexpr (std::is_same_v<S, T>)
      if (as_it_lies) {
        if (!finite(weight, int64_t(entry.size()))) return false;
        continue;
      }
    for (int64_t at : entry)
      if (!std::isfinite(T(weight[at]))) return false;
  }
  return true;
}

}  // namespace hebbkern
