// Packing weights into panels.
#include "panels.h"

#include <algorithm>
#include <cmath>

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

template <class T>
std::vector<int64_t> weight_entries(const Source<T>& source, const Tensor& weight) {
  const Geometry& g = source.g;
  std::vector<int64_t> entry;
  entry.reserve(g.inputs());
  const int64_t sc = weight.stride(1), sh = g.image ? weight.stride(2) : 0, sw = g.image ? weight.stride(3) : 0;
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j)
      for (int64_t c = 0; c < g.channels; ++c) entry.push_back(c * sc + i * sh + j * sw);
  return entry;
}

// sign(w) |w|^(p - 1); whole p by multiplication, which is faster and exact to rounding.
template <class T>
static inline T powered(T w, double p) {
  if (p == 2) return w;
  if (p == 1) return T((w > 0) - (w < 0));
  const T size = std::abs(w);
  if (p == std::floor(p) && p <= 9) {
    T power = w;
    for (int i = 2; i < int(p); ++i) power *= size;
    return power;
  }
  return std::copysign(T(std::pow(size, T(p - 1))), w);
}

static bool in_order(const std::vector<int64_t>& entry) {
  for (size_t n = 0; n < entry.size(); ++n)
    if (entry[n] != int64_t(n)) return false;
  return true;
}

template <class T>
template <class S>
bool Panels<T>::pack(const S* weight, int64_t panel, int64_t row, const std::vector<int64_t>& entry,
                     const Prepare& prepare) {
  constexpr int64_t block = 64;  // inputs of a row at once: 64 lines of the panel stay in L1 while 48 rows fill them
  const int filled = valid(panel), ends = vectors(panel) * lanes_;
  const bool sums = prepare.sums || prepare.cosine, contiguous = in_order(entry);
  T* to = data_.get() + panel * inputs * width;
  bool sound = true;
  std::vector<double> sum(filled), squares(filled);
  T buffer[block];
  for (int64_t first = 0; first < inputs; first += block) {
    const int64_t size = std::min(inputs - first, block);
    for (int j = 0; j < filled; ++j) {
      const S* from = weight + names[panel * width + j] * row;
      const T* piece = buffer;
      if constexpr (std::is_same_v<S, T>)
        if (contiguous) piece = from + first;
      if (piece == buffer)
        for (int64_t n = 0; n < size; ++n) buffer[n] = T(from[entry[first + n]]);
      sound &= kernels<T>().finite(piece, size);
      if (sums)
        for (int64_t n = 0; n < size; ++n) squares[j] += double(piece[n]) * double(piece[n]);
      if (prepare.p != 2) {
        for (int64_t n = 0; n < size; ++n) buffer[n] = powered(piece[n], prepare.p);
        piece = buffer;
      }
      if (sums)
        for (int64_t n = 0; n < size; ++n) sum[j] += piece[n];
      for (int64_t n = 0; n < size; ++n) to[(first + n) * width + j] = piece[n];
    }
    for (int64_t n = first; n < first + size; ++n) std::fill(to + n * width + filled, to + n * width + ends, T(0));
  }
  for (int j = 0; j < filled; ++j) {
    T scale = 1;
    if (prepare.cosine) {
      scale = squares[j] > 0 ? T(1 / std::sqrt(squares[j])) : T(0);
      for (int64_t n = 0; n < inputs; ++n) to[n * width + j] *= scale;
    }
    wsum[panel * width + j] = T(sum[j] * scale);
    wnorm[panel * width + j] = T(squares[j]);
  }
  for (int j = filled; j < width; ++j) wsum[panel * width + j] = wnorm[panel * width + j] = 0;
  return sound;
}

template <class T>
Panels<T>::Panels(const char* op, const Source<T>& source, const Tensor& weight, std::vector<int32_t> chosen,
                  const Prepare& prepare)
    : names(std::move(chosen)),
      inputs(source.g.inputs()),
      width(kernels<T>().width),
      wsum(count() * width),
      wnorm(count() * width),
      lanes_(kernels<T>().lanes),
      data_(count() * inputs * width) {
  const std::vector<int64_t> entry = weight_entries(source, weight);
  const int64_t row = weight.stride(0), neurons = weight.size(0);
  std::atomic<bool> flaw{false};
  with_dtype(weight.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* data = static_cast<const S*>(weight.const_data_ptr());
    parallel(count(), [&](int64_t panel) {
      if (!pack(data, panel, row, entry, prepare)) flaw = true;
    });
    if (int64_t(names.size()) == neurons) return;
    for (int64_t j = 0; j < neurons; ++j)  // the rows left out must be finite too
      for (int64_t at : entry)
        if (!std::isfinite(T(data[j * row + at]))) flaw = true;
  });
  if (flaw) fail_finite(op, "weight");
}

template class Panels<float>;
template class Panels<double>;
template std::vector<int64_t> weight_entries(const Source<float>&, const Tensor&);
template std::vector<int64_t> weight_entries(const Source<double>&, const Tensor&);

}  // namespace hebbkern
