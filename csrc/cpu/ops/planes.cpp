// Where the pixels and weights of small groups lie.
#include "cpu/ops/planes.h"

#include <algorithm>
#include <cmath>

namespace hebbkern {

// Calls f(tag of the stored type) for the stored types that are computed in T.
template <class T, class F>
static void of_stored(ScalarType dtype, const F& f) {
  with_dtype(dtype, [&](auto stored, auto computed) {
    if constexpr (std::is_same_v<decltype(computed), T>) f(stored);
  });
}

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to; }

template <class T>
Planes<T>::Planes(const char* op, const Tensor& x, const Geometry& geometry)
    : g(geometry),
      pitch(up(g.padded_w(), g.stride[1])),
      parts(std::clamp<int64_t>(g.batch, 1, 16)),
      op_(op),
      x_(x),
      bundles_(std::min(g.groups, up(32, parts))),  // 32 hand-outs feed a few threads evenly
      at_once_(x.stride(1) == 1 ? up(16, g.channels) : 1) {
  // What is kept of each patch fits into half of a small L2, 256 KiB.
  const int64_t planes = g.channels * g.stride[0] * g.stride[1], kept = planes + 3 * g.neurons + 8;
  const int64_t most = std::min<int64_t>(2048, (int64_t(1) << 18) / (kept * int64_t(sizeof(T))));
  const int64_t height = g.out_h(), all = up(g.padded_h(), g.stride[0]);
  full_ = strip_of(std::clamp<int64_t>(most / pitch, 1, height));
  const int64_t before = (height - 1) / full_.rows * full_.rows;
  last_ = strip_of(height - before);
  // The last strip has the rows that no patch reads, too: whether they are finite is looked at.
  const int64_t rows = std::max(full_.rows + (g.span_h() - 1) / g.stride[0], all - before);
  plane_ = rows * pitch + kernels<T>().lanes;  // the last vector of a row may be written to its end
  of_group_ = planes * plane_;
  size_ = at_once_ * of_group_ + pitch + g.span_w() + 2 * kernels<T>().lanes;  // vectors may read on
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j)
      for (int64_t c = 0; c < g.channels; ++c) {
        const int64_t down = i * g.dilation[0], right = j * g.dilation[1];
        const int64_t plane = (c * g.stride[0] + down % g.stride[0]) * g.stride[1] + right % g.stride[1];
        taps.push_back(plane * plane_ + down / g.stride[0] * pitch + right / g.stride[1]);
      }
}

template <class T>
typename Planes<T>::Strip Planes<T>::strip_of(int64_t rows) const {
  const int64_t lanes = kernels<T>().lanes;
  Strip strip{rows, up(rows * pitch, lanes) * lanes, {}};
  strip.valid.resize(strip.length);
  for (int64_t o = 0; o < rows * pitch; ++o) strip.valid[o] = o % pitch < g.out_w() ? T(1) : T(0);
  return strip;
}

// Rows of one plane of each channel: pixels (row * stride + .., column + j * stride) of the padded image.
template <class T>
template <class S>
void Planes<T>::copy_planes(const S* from, int64_t channels, int64_t row, int64_t rows, int64_t column, T* to) const {
  const int64_t step = x_.stride(3) * g.stride[1], first = column - g.padding[1], lanes = kernels<T>().lanes;
  const int64_t apart = of_group_ / g.channels, between = x_.stride(1);
  // Entries [begin, end) lie in the image.
  const int64_t begin = std::min(pitch, first < 0 ? up(-first, g.stride[1]) : 0);
  const int64_t end = std::clamp(up(g.width - first, g.stride[1]), begin, pitch);
  for (int64_t i = 0; i < rows; ++i, row += g.stride[0], to += pitch) {
    const int64_t h = row - g.padding[0];
    const bool inside = h >= 0 && h < g.height;
    const S* pixel = from + h * x_.stride(2) + first * x_.stride(3);
    if constexpr (std::is_same_v<S, T>)
      for (int64_t j = begin; between == 1 && inside && j < end; j += lanes) {
        // A whole vector is faster: what it reads past the row's end is the next row, and overwritten below.
        const int64_t past = h * g.width + first + (j + lanes) * g.stride[1];
        const bool whole = x_.stride(2) == g.width * x_.stride(3) && past <= g.height * g.width;
        for (int64_t l = 0; l < lanes; ++l) __builtin_prefetch(pixel + g.stride[0] * x_.stride(2) + (j + l) * step);
        kernels<T>().transpose(pixel + j * step, step, whole ? lanes : std::min(lanes, end - j), channels, to + j,
                               apart);
      }
    const bool written = between == 1 && std::is_same_v<S, T>;
    for (int64_t c = 0; c < channels; ++c, pixel += between) {
      T* line = to + c * apart;
      std::fill(line, line + (inside ? begin : pitch), T(0));
      if (!inside) continue;
      if (!written && step == 1)
        for (int64_t j = begin; j < end; ++j) line[j] = T(pixel[j]);
      else if (!written)
        for (int64_t j = begin; j < end; ++j) line[j] = T(pixel[j * step]);
      std::fill(line + end, line + pitch, T(0));
    }
  }
}

template <class T>
T Planes<T>::copy(int64_t image, int64_t group, int64_t groups, int64_t row, const Strip& strip, T* to) const {
  const int64_t needed = strip.rows + (g.span_h() - 1) / g.stride[0];
  const int64_t rows = &strip == &last_ ? up(g.padded_h(), g.stride[0]) - row : needed;
  of_stored<T>(x_.scalar_type(), [&](auto stored) {
    using S = decltype(stored);
    const S* pixels = static_cast<const S*>(x_.const_data_ptr()) + image * x_.stride(0);
    const S* channel = pixels + group * g.channels * x_.stride(1);
    for (int64_t down = 0; down < g.stride[0]; ++down)
      for (int64_t right = 0; right < g.stride[1]; ++right)
        copy_planes(channel, groups * g.channels, row * g.stride[0] + down, rows, right,
                    to + (down * g.stride[1] + right) * plane_);
  });
  const T bound = kernels<T>().bound(to, groups * of_group_);
  if (!std::isfinite(bound)) fail_finite(op_, "x");
  return bound;
}

template <class T>
PlaneWeights<T>::PlaneWeights(const char* op, const Geometry& g, const Tensor& weight, const OptionalTensor& eligible,
                              const Prepare& prepare)
    : inputs(g.inputs()), first{0}, rows(g.groups * g.neurons * inputs), wsum(g.groups * g.neurons) {
  const std::vector<int64_t> entry = weight_entries(g, weight);
  of_stored<T>(weight.scalar_type(), [&](auto stored) {
    using S = decltype(stored);
    const S* data = static_cast<const S*>(weight.const_data_ptr());
    if (!rows_finite<T>(data, weight.size(0), weight.stride(0), entry)) fail_finite(op, "weight");
    for (const int32_t neuron : chosen_neurons(eligible, weight.size(0))) {
      for (const int64_t group = neuron / g.neurons; int64_t(first.size()) <= group;) first.push_back(names.size());
      T* row = rows.get() + int64_t(names.size()) * inputs;
      if (!prepare_row(data + neuron * weight.stride(0), entry, prepare, row, &wsum[names.size()]))
        fail_overflow(op, "weight and p must give finite powers", sizeof(T) == 8);
      bound = std::max(bound, kernels<T>().bound(row, inputs));
      names.push_back(int32_t(neuron % g.neurons));
    }
  });
  while (int64_t(first.size()) <= g.groups) first.push_back(names.size());
}

template <class T>
Spread<T>::Spread(const Planes<T>& planes, Patches patches, bool norms)
    : planes(planes),
      raw(patches == Patches::raw),
      standardised(patches == Patches::standardised),
      norms(norms),
      offset(wanted() ? planes.longest() : 0),
      scale(wanted() ? planes.longest() : 0),
      norm(norms || standardised ? planes.longest() : 0) {}

template <class T>
void Spread<T>::of(const char* op, const typename Planes<T>::Block& block) {
  if (!wanted()) return;
  kernels<T>().spread(block.x, planes.taps.data(), planes.g.inputs(), block.length, raw, standardised, offset.get(),
                      scale.get(), norm.get());
  if (!norms && !standardised) return;
  bool sound = true;
  for (int64_t o = 0; o < block.length; ++o) {
    const bool matters = block.valid[o] != 0 && scale[o] != 0 && norm[o] != 0;
    // A scale of 0 says flat; a norm that rounds to 0 in T is beyond it unless the patch is blank.
    sound &= !matters || (std::isfinite(norm[o]) && std::isfinite(1 / norm[o]) && std::isfinite(scale[o]));
  }
  if (!sound) fail_norms(op, sizeof(T) == 8);
}

template <class T>
void Spread<T>::drop_blank(const typename Planes<T>::Block& block, int64_t ranks, Index<T>* winners) const {
  const int64_t length = block.length;
  if (raw) return kernels<T>().drop_blank(block.x, planes.taps.data(), planes.g.inputs(), length, ranks, winners);
  for (int64_t r = 0; r < ranks; ++r, winners += length)
    for (int64_t o = 0; o < length; ++o) winners[o] = scale[o] == 0 ? Index<T>(-1) : winners[o];
}

template <class T>
void Spread<T>::prepare(const typename Planes<T>::Block& block, T* c, double* sums) const {
  if (raw) return;
  const int64_t zero = 0;
  double shift = 0;
  for (int64_t o = 0; o < block.length; ++o) c[o] *= scale[o];
  kernels<T>().dots(c, 1, block.length, offset.get(), &zero, 1, &shift);
  for (int64_t i = 0; i < planes.g.inputs(); ++i) sums[i] -= shift;
}

template class Planes<float>;
template class Planes<double>;
template struct PlaneWeights<float>;
template struct PlaneWeights<double>;
template struct Spread<float>;
template struct Spread<double>;

}  // namespace hebbkern
