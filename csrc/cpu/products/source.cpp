// Where patches lie in memory, and their means and norms.
#include "cpu/products/source.h"

#include <algorithm>
#include <cmath>

namespace hebbkern {

template <class T>
static ScalarType dtype_of();
template <>
ScalarType dtype_of<float>() {
  return ScalarType::Float;
}
template <>
ScalarType dtype_of<double>() {
  return ScalarType::Double;
}
template <>
ScalarType dtype_of<BFloat16>() {
  return ScalarType::BFloat16;
}

// Whether pixels, rows and images follow one another without overlap, so that a later patch has a higher base.
static bool rising(const Tensor& x, const Geometry& g) {
  const int64_t column = g.image ? x.stride(3) : 0, row = g.image ? x.stride(2) : 0;
  const int64_t width = (g.width - 1) * column + g.channels, height = (g.height - 1) * row + width;
  return (g.width == 1 || column >= g.channels) && (g.height == 1 || row >= width) &&
         (g.batch == 1 || x.stride(0) >= height);
}

template <class T>
Source<T>::Source(const char* op, const Tensor& from, const Geometry& geometry)
    : g(geometry), per_image_(geometry.per_image()) {
  const bool dense_channels = g.channels == 1 || from.stride(1) == 1;
  const bool padded = g.padding[0] > 0 || g.padding[1] > 0, alone = !std::is_same_v<T, BFloat16>;
  if (alone && from.scalar_type() == dtype_of<T>() && dense_channels && !padded && rising(from, g)) {
    x = static_cast<const T*>(from.const_data_ptr());
    image = from.stride(0);
    row = g.image ? from.stride(2) : 0;
    column = g.image ? from.stride(3) : 0;
    end = g.batch == 0 ? 0 : (g.batch - 1) * image + (g.height - 1) * row + (g.width - 1) * column + g.channels;
  } else {
    column = g.channels;
    row = g.padded_w() * column;
    image = g.padded_h() * row;
    end = g.batch * image;
    copied_.emplace(end + 1);
    x = copied_->get();
    copied_->get()[end] = T(0);
    copy(from);
  }
  bound = largest();
  if (!std::isfinite(bound)) fail_finite(op, "x");
  offset.reserve(g.inputs());
  for (int64_t i = 0; i < g.kh; ++i)
    for (int64_t j = 0; j < g.kw; ++j) {
      const int64_t at = i * g.dilation[0] * row + j * g.dilation[1] * column;
      const int64_t n = int64_t(offset.size());
      if (n > 0 && offset.back() + 1 == at)
        runs.back().length += g.channels;
      else
        runs.push_back({n, g.channels});
      for (int64_t c = 0; c < g.channels; ++c) offset.push_back(at + c);
    }
}

template <class T>
static T largest_of(const T* x, int64_t n) {
  return kernels<T>().bound(x, n);
}

// As whole numbers their bits rise with their size, through infinity to NaN.
BFloat16 largest_of(const BFloat16* x, int64_t n) {
  int16_t top = 0;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, int16_t(x[i].x & 0x7fff));
  return BFloat16(uint16_t(top), BFloat16::from_bits());
}

template <class T>
T Source<T>::largest() const {
  const int64_t height = g.padded_h(), width = g.padded_w();
  // Samples of a linear layer in blocks that are worth a thread's wake-up (1 MB of float32).
  const int64_t block = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, height * width * g.channels));
  const int64_t blocks = (g.batch + block - 1) / block;
  Scratch<T> tops(blocks);
  const auto keep = [](T& top, T value) { top = value <= top ? top : value; };  // a NaN stays
  parallel(blocks, [&](int64_t part) {
    T top = 0;
    for (int64_t b = part * block; b < std::min(g.batch, (part + 1) * block) && !std::isnan(top); ++b)
      for (int64_t i = 0; i < height && !std::isnan(top); ++i) {
        const T* line = x + b * image + i * row;
        if (column == g.channels || width == 1)
          keep(top, largest_of(line, width * g.channels));
        else
          for (int64_t j = 0; j < width && !std::isnan(top); ++j) keep(top, largest_of(line + j * column, g.channels));
      }
    tops[part] = top;
  });
  T top = 0;
  for (int64_t part = 0; part < blocks && !std::isnan(top); ++part) keep(top, tops[part]);
  return top;
}

template <class T>
bool Source<T>::zeros(int64_t base) const {
  constexpr int64_t at_once = 64;  // entries
  for (const Run& run : runs)
    for (int64_t n = 0; n < run.length; n += at_once)
      if (largest_of(x + base + offset[run.first] + n, std::min(at_once, run.length - n)) > T(0)) return false;
  return true;
}

template <class T>
void Source<T>::copy(const Tensor& from) {
  T* to = copied_->get();
  const int64_t sb = from.stride(0), sc = from.stride(1);
  const int64_t sh = g.image ? from.stride(2) : 0, sw = g.image ? from.stride(3) : 0;
  with_dtype(from.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* data = static_cast<const S*>(from.const_data_ptr());
    const int64_t lines = g.padded_h();
    parallel(g.batch, [&](int64_t b) {
      for (int64_t i = 0; i < lines; ++i) {
        T* line = to + b * image + i * row;
        const int64_t h = i - g.padding[0];
        if (h < 0 || h >= g.height) {
          std::fill(line, line + row, T(0));
          continue;
        }
        std::fill(line, line + g.padding[1] * column, T(0));
        std::fill(line + (g.padding[1] + g.width) * column, line + row, T(0));
        T* pixels = line + g.padding[1] * column;
        const S* read = data + b * sb + h * sh;
        if (sc == 1)
          for (int64_t w = 0; w < g.width; ++w)
            for (int64_t c = 0; c < g.channels; ++c) pixels[w * column + c] = T(read[w * sw + c]);
        else
          for (int64_t c = 0; c < g.channels; ++c)
            for (int64_t w = 0; w < g.width; ++w) pixels[w * column + c] = T(read[w * sw + c * sc]);
      }
    });
  });
}

// The sums behind a variance lose half their digits: kept in a type of twice the precision where there is one.
template <class T>
struct Wider;
template <>
struct Wider<float> {
  using type = double;
};
template <>
struct Wider<double> {
  using type = long double;
};

// Sum of f(x[i]), in eight chains that hide the adder's latency.
template <class D, class T, class F>
static D total(const T* x, int64_t n, const F& f) {
  D part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) part[l] += f(D(x[i + l]));
  for (; i < n; ++i) part[0] += f(D(x[i]));
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Box sums of x (if asked for) and x^2 over one image's patches: channels, then columns, then rows.
template <class T>
static void box_sums(const Source<T>& s, int64_t b, bool means, typename Wider<T>::type* pixel,
                     typename Wider<T>::type* strip, typename Wider<T>::type* sum, typename Wider<T>::type* squares) {
  using D = typename Wider<T>::type;
  const Geometry& g = s.g;
  const int64_t height = g.image ? (g.out_h() - 1) * g.stride[0] + g.span_h() : 1;
  const int64_t width = g.image ? (g.out_w() - 1) * g.stride[1] + g.span_w() : 1;
  for (int power = means ? 1 : 2; power <= 2; ++power) {
    D* out = power == 1 ? sum : squares;
    std::fill(out, out + g.per_image(), D(0));
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const T* x = s.x + b * s.image + i * s.row + j * s.column;
        pixel[j] = power == 1 ? total<D>(x, g.channels, [](D v) { return v; })
                              : total<D>(x, g.channels, [](D v) { return v * v; });
      }
      std::fill(strip, strip + g.out_w(), D(0));
      for (int64_t k = 0; k < g.kw; ++k)
        for (int64_t o = 0; o < g.out_w(); ++o) strip[o] += pixel[o * g.stride[1] + k * g.dilation[1]];
      for (int64_t k = 0; k < g.kh; ++k) {  // the output rows that this image row takes part in
        const int64_t top = i - k * g.dilation[0];
        if (top < 0 || top % g.stride[0] != 0 || top / g.stride[0] >= g.out_h()) continue;
        D* to = out + top / g.stride[0] * g.out_w();
        for (int64_t o = 0; o < g.out_w(); ++o) to[o] += strip[o];
      }
    }
  }
}

template <class T>
Moments<T>::Moments(const char* op, const Source<T>& s, Patches patches, bool norms)
    : offset(s.g.patches()), scale(s.g.patches()), norm(s.g.patches()) {
  using D = typename Wider<T>::type;
  const Geometry& g = s.g;
  const int64_t per_image = g.per_image(), n = g.inputs();
  const int64_t block = std::max<int64_t>(1, 64 / per_image);  // samples of a linear layer share a wake-up
  norms |= patches == Patches::standardised;
  std::atomic<bool> flaw{false};
  parallel((g.batch + block - 1) / block, [&](int64_t part) {
    Scratch<D> pixel(g.padded_w()), strip(g.out_w()), sum(per_image), squares(per_image);
    for (int64_t b = part * block; b < std::min(g.batch, (part + 1) * block); ++b) {
      box_sums(s, b, patches != Patches::raw, pixel.get(), strip.get(), sum.get(), squares.get());
      for (int64_t i = 0; i < per_image; ++i) {
        const int64_t p = b * per_image + i;
        const bool raw = patches == Patches::raw;
        const D mean = raw ? D(0) : sum[i] / n;
        const D left = raw ? squares[i] : std::max(D(0), squares[i] - mean * sum[i]);
        const D size = std::sqrt(left);
        offset[p] = T(mean);
        norm[p] = T(size);
        const bool zero = size <= D(flat) * std::sqrt(squares[i]);
        if (norms && !zero && !(std::isfinite(norm[p]) && std::isfinite(T(1 / size)))) flaw = true;
        scale[p] = patches == Patches::standardised ? T(1 / size) : T(1);
        if (zero && !raw) scale[p] = 0;
      }
    }
  });
  if (flaw) fail_norms(op, sizeof(T) == 8);
}

template class Source<float>;
template class Source<double>;
template class Source<BFloat16>;
template struct Moments<float>;
template struct Moments<double>;

}  // namespace hebbkern
