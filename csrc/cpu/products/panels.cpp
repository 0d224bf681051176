// Packing weights into panels.
#include "cpu/products/panels.h"

#include <algorithm>
#include <cmath>

#include "common/arithmetic.h"

namespace hebbkern {

std::vector<int32_t> chosen_neurons(const OptionalTensor& mask, int64_t neurons) {
  std::vector<int32_t> names;
  names.reserve(neurons);
  const bool* may = mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr;
  const int64_t step = mask ? mask->stride(0) : 0;
  for (int64_t j = 0; j < neurons; ++j)
    if (!may || may[j * step]) names.push_back(int32_t(j));
  return names;
}

std::vector<int64_t> weight_entries(const Geometry& g, const Tensor& weight) {
  std::vector<int64_t> entry;
  entry.reserve(g.inputs());
  const int64_t sc = weight.stride(1), sh = g.image ? weight.stride(2) : 0, sw = g.image ? weight.stride(3) : 0;
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j)
      for (int64_t c = 0; c < g.channels; ++c) entry.push_back(c * sc + i * sh + j * sw);
  return entry;
}

constexpr int64_t block = 256;  // inputs at once: what a vector of columns reads and writes (32 kB) stays in L1

// Adds a row's entries and their squares, block by block: rows and panels must come to the same bits.
template <class T>
static void add_sums(const T* row, int64_t n, double* sum, double* squares) {
  for (int64_t first = 0; first < n; first += block) {
    double one, two;
    kernels<T>().sums(row + first, std::min(n - first, block), &one, &two);
    *sum += one;
    *squares += two;
  }
}

template <class S, class T>
bool prepare_row(const S* row, const std::vector<int64_t>& entry, const Prepare& prepare, T* out, T* sum) {
  const int64_t inputs = entry.size();
  double squares = 0, total = 0, scale = 1;
  for (int64_t n = 0; n < inputs; ++n) out[n] = T(row[entry[n]]);
  if (!finite(out, inputs)) return false;
  for (int64_t n = 0; prepare.p != 2 && n < inputs; ++n) out[n] = powered(out[n], prepare.p);
  if (prepare.cosine || prepare.sums) add_sums(out, inputs, &total, &squares);
  if (prepare.cosine) {
    scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
    for (int64_t n = 0; n < inputs; ++n) out[n] = T(out[n] * scale);
  }
  *sum = T(total * scale);
  return finite(out, inputs);
}
template bool prepare_row(const float*, const std::vector<int64_t>&, const Prepare&, float*, float*);
template bool prepare_row(const BFloat16*, const std::vector<int64_t>&, const Prepare&, float*, float*);
template bool prepare_row(const Half*, const std::vector<int64_t>&, const Prepare&, float*, float*);
template bool prepare_row(const double*, const std::vector<int64_t>&, const Prepare&, float*, float*);
template bool prepare_row(const double*, const std::vector<int64_t>&, const Prepare&, double*, double*);

bool in_order(const std::vector<int64_t>& entry) {
  for (size_t n = 0; n < entry.size(); ++n)
    if (entry[n] != int64_t(n)) return false;
  return true;
}

template <class T>
template <class S>
T Panels<T>::fill(const S* weight, int64_t panel, int64_t begin, int64_t end, const Rows& rows, const Prepare& prepare,
                  double* sum, double* squares) {
  const auto& kernel = kernels<T>();
  T* to = data_.get() + panel * inputs * width;
  const int64_t filled = valid(panel), at = panel * width;
  T top = 0;
  const auto keep = [&](T value) { top = value <= top || std::isnan(top) ? top : value; };  // a NaN stays
  alignas(64) T buffer[16 * block];
  for (int64_t first = begin; first < end; first += block)
    for (int64_t group = 0; group < filled; group += lanes_) {  // a vector of columns
      const int64_t size = std::min(end - first, block), count = std::min<int64_t>(lanes_, filled - group);
      const int32_t* name = &names[at + group];
      const T* from = buffer;
      int64_t step = block;
      if constexpr (std::is_same_v<S, T>)
        if (rows.contiguous && prepare.p == 2 && name[count - 1] - name[0] == count - 1) {
          from = weight + name[0] * rows.step + first;
          step = rows.step;
        }
      for (int64_t j = 0; j < count; ++j) {
        T* row = buffer + j * block;
        if (from == buffer)
          for (int64_t n = 0; n < size; ++n) row[n] = T(weight[name[j] * rows.step + rows.entry[first + n]]);
        if (from != buffer && j + 1 < count)
          for (int64_t n = 0; n < size; n += 16) __builtin_prefetch(from + (j + 1) * step + n);
        const T largest = kernel.bound(from + j * step, size);
        if (!std::isfinite(largest)) flaw_ = true;
        if (prepare.p == 2) keep(largest);
        if (prepare.p != 2) {
          for (int64_t n = 0; n < size; ++n) row[n] = powered(row[n], prepare.p);
          keep(kernel.bound(row, size));
        }
        if (sum) add_sums(from + j * step, size, &sum[group + j], &squares[group + j]);
      }
      kernel.transpose(from, step, count, size, to + first * width + group, width);
    }
  return top;
}

template <class T>
template <class S>
T Panels<T>::fill_with_sums(const S* weight, int64_t panel, const Rows& rows, const Prepare& prepare) {
  std::vector<double> sum(width), squares(width), scale(width, 1);
  const T top = fill(weight, panel, 0, inputs, rows, prepare, sum.data(), squares.data());
  T* to = data_.get() + panel * inputs * width;
  for (int j = 0; j < width; ++j) {
    // In double: float32 could not hold it for the smallest and largest weights.
    if (prepare.cosine) scale[j] = squares[j] > 0 ? 1 / std::sqrt(squares[j]) : 0;
    wsum[panel * width + j] = T(sum[j] * scale[j]);
    wnorm[panel * width + j] = T(squares[j]);
  }
  const int64_t filled = int64_t(vectors(panel)) * lanes_;
  for (int64_t n = 0; prepare.cosine && n < inputs; ++n)
    for (int64_t j = 0; j < filled; ++j) to[n * width + j] = T(to[n * width + j] * scale[j]);
  return top;
}

template <class T>
Panels<T>::Panels(const char* op, const Geometry& g, const Tensor& weight, std::vector<int32_t> chosen,
                  const Prepare& prepare)
    : names(std::move(chosen)),
      inputs(g.inputs()),
      width(kernels<T>().width),
      wsum(count() * width),
      wnorm(count() * width),
      lanes_(kernels<T>().lanes),
      data_(count() * inputs * width) {
  const std::vector<int64_t> entry = weight_entries(g, weight);
  const Rows rows{weight.stride(0), entry, in_order(entry)};
  const int64_t neurons = weight.size(0);
  constexpr int64_t strip = 256;  // inputs of a panel that are a thread's work where no sums over all of them are due
  const int64_t strips = (inputs + strip - 1) / strip;
  const bool sums = prepare.sums || prepare.cosine;
  const int64_t items = sums ? count() : count() * strips;
  Scratch<T> tops(items);
  with_dtype(weight.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* data = static_cast<const S*>(weight.const_data_ptr());
    parallel(items, [&](int64_t item) {
      const int64_t first = item % strips * strip;
      tops[item] =
          sums ? fill_with_sums(data, item, rows, prepare)
               : fill(data, item / strips, first, std::min(inputs, first + strip), rows, prepare, nullptr, nullptr);
    });
    const bool all = prepare.part || int64_t(names.size()) == neurons;
    if (!all && !rows_finite<T>(data, neurons, rows.step, entry)) flaw_ = true;
  });
  if (flaw_) fail_finite(op, "weight");
  for (int64_t item = 0; item < items; ++item) {
    if (!std::isfinite(tops[item])) fail_overflow(op, "weight and p must give finite powers", sizeof(T) == 8);
    bound = std::max(bound, tops[item]);
  }
  if (prepare.cosine) bound = 1;
}

template class Panels<float>;
template class Panels<double>;

}  // namespace hebbkern
