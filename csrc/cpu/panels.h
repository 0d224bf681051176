// Weights as the register tile reads them: panels of `width` neurons, input by input.
#pragma once

#include <vector>

#include "source.h"

namespace hebbkern {

// What a weight becomes before it meets a patch.
struct Prepare {
  double p = 2;         // sign(w) |w|^(p - 1)
  bool cosine = false;  // w / ||w||
  bool sums = false;    // wsum and wnorm are wanted
};

template <class T>
class Panels {
 public:
  // Packs the rows `names` of weight in the source's input order. Raises if any weight is not finite.
  Panels(const char* op, const Source<T>& source, const Tensor& weight, std::vector<int32_t> names,
         const Prepare& prepare);

  const std::vector<int32_t> names;  // the neuron of each column
  const int64_t inputs;
  const int width;

  int64_t count() const { return (int64_t(names.size()) + width - 1) / width; }
  int valid(int64_t panel) const { return int(std::min<int64_t>(width, int64_t(names.size()) - panel * width)); }
  int vectors(int64_t panel) const { return (valid(panel) + lanes_ - 1) / lanes_; }
  // Row n of a panel lies n * width on; panels lie inputs * width apart.
  const T* operator[](int64_t panel) const { return data_.get() + panel * inputs * width; }

  Scratch<T> wsum;   // [columns], the sum of the prepared weights
  Scratch<T> wnorm;  // [columns], the squared norm of the weights as they are

 private:
  template <class S>
  bool pack(const S* weight, int64_t panel, int64_t row, const std::vector<int64_t>& entry, const Prepare& prepare);

  const int lanes_;
  Scratch<T> data_;  // [panels][inputs][width], zeros behind the last neuron, to a whole vector
};

// Neurons whose mask entry is true, or all of them.
std::vector<int32_t> chosen_neurons(const OptionalTensor& mask, int64_t neurons);

// Entry n of a row of weight, in the source's input order, relative to the row's first.
template <class T>
std::vector<int64_t> weight_entries(const Source<T>& source, const Tensor& weight);

}  // namespace hebbkern
