// Few patches: walk down blocks of neurons and keep the residual R = X - Y W of those passed so far,
//   sum_b = Y_b' R - tril(Y_b' Y_b) W_b, then R -= Y_b W_b          (of the other decays R stays X).
// All responses come first, for they need no residual; then each strip of inputs walks down by itself, its residual in
// L2, so threads never meet and no sum is split: the same bits for any number of them. Y is kept negated, which makes
// every subtraction the register tile's addition; what it finds is -sum.
#include "cpu/ops/residual.h"

#include <cmath>

namespace hebbkern {

int64_t strips_at_once(int64_t bytes, int64_t strips) {
  const int64_t fit = std::max<int64_t>(1, (int64_t(3) << 18) / bytes);
  const int64_t threads = torch::stable::get_num_threads();
  return std::min({fit, int64_t(12), (strips + threads - 1) / threads});
}

template <class T>
Residual<T>::Residual(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g, const Dense& rule)
    : op_(op),
      rule_(rule),
      source_(op, x, g),
      weight_(weight),
      entry_(weight_entries(source_.g, weight)),
      in_order_(hebbkern::in_order(entry_)),
      patches_(g.patches()),
      neurons_(g.neurons),
      inputs_(g.inputs()),
      width_(kernel_.width),
      strips_((inputs_ + width_ - 1) / width_),
      block_(2 * kernel_.lanes),
      chunk_(std::min(patches_, longest_chunk)),
      chunk_rows_(round_up(chunk_, std::max(kernel_.lanes, kernel_.rows))),
      // An odd number of vectors, so that the same patch of a block's neurons does not meet in one cache set.
      y_step_(((chunk_rows_ + block_) / kernel_.lanes | 1) * kernel_.lanes),
      xt_((chunk_rows_ + width_) * inputs_),
      r_(strips_ * (chunk_rows_ + block_) * width_),
      y_(round_up(neurons_, block_) * y_step_),
      along_(std::max(inputs_, y_step_)),
      across_(block_),
      taught_(chunk_rows_ + block_) {
  if (rule.patches != Patches::raw) moments_.emplace(op, source_, rule.patches);
  for (size_t n = 0; n < along_.size(); ++n) along_[n] = int64_t(n);
  for (int64_t i = 0; i < block_; ++i) across_[i] = i * y_step_;
}

// The chunk's patches, centred or standardised, down the panels that responses are made of and as first residual.
template <class T>
void Residual<T>::spread() {
  count_ = std::min(chunk_, patches_ - first_);
  rows_ = round_up(count_, kernel_.rows);
  padded_ = round_up(count_, std::max(kernel_.lanes, kernel_.rows));
  const int64_t groups = padded_ / kernel_.lanes, panels = (groups + 2) / 3;
  wide_ = (groups + panels - 1) / panels * kernel_.lanes;  // as even as can be: a tile of one vector is slow
  for (int64_t p = 0; p < rows_ + block_; ++p) taught_[p] = p < rows_ ? p : padded_ + p - rows_;
  parallel(groups, [&](int64_t group) {
    const int64_t lanes = kernel_.lanes, at = group * lanes, count = std::clamp<int64_t>(count_ - at, 0, lanes);
    Scratch<T> buffer(lanes * inputs_);
    for (int64_t i = 0; i < lanes; ++i) {
      T* row = buffer.get() + i * inputs_;
      if (i < count) {
        const int64_t p = first_ + at + i;
        const T* x = source_.x + source_.base(p);
        for (const auto& run : source_.runs) std::copy_n(x + source_.offset[run.first], run.length, row + run.first);
        if (moments_)
          for (int64_t n = 0; n < inputs_; ++n) row[n] = (row[n] - moments_->offset[p]) * moments_->scale[p];
      } else {
        std::fill_n(row, inputs_, T(0));
      }
      if (at + i >= rows_) continue;
      for (int64_t strip = 0; strip < strips_; ++strip) {
        const int64_t size = std::min(width_, inputs_ - strip * width_);
        T* to = residual(strip) + (at + i) * width_;
        std::copy_n(row + strip * width_, size, to);
        std::fill(to + size, to + width_, T(0));
      }
    }
    kernel_.transpose(buffer.get(), inputs_, lanes, inputs_, xt_.get() + at / wide_ * wide_ * inputs_ + at % wide_,
                      wide_);
  });
}

// y = f(W x) of neurons [first, last): the tile's rows are neurons, its panel is patches.
template <class T>
template <class S>
void Residual<T>::respond_rows(const S* weight, int64_t first, int64_t last, T* heaviest, T* strongest) {
  constexpr int64_t depth = 2304;  // inputs at once: 48 patches' fill a quarter of L2
  const bool direct = std::is_same_v<S, T> && in_order_;
  const int64_t from_row = weight_.stride(0);
  Scratch<T> copy(direct ? 0 : (last - first) * inputs_);
  const auto row = [&](int64_t j) {
    if constexpr (std::is_same_v<S, T>)
      if (direct) return weight + j * weight_.stride(0);
    return static_cast<const T*>(copy.get() + (j - first) * inputs_);
  };
  *heaviest = *strongest = 0;
  for (int64_t j = first; j < last; ++j) {
    if (!direct)
      for (int64_t n = 0; n < inputs_; ++n) copy[(j - first) * inputs_ + n] = T(weight[j * from_row + entry_[n]]);
    const T top = kernel_.bound(row(j), inputs_);
    *heaviest = top <= *heaviest ? *heaviest : top;
    if (std::isnan(top)) return;
  }
  for (int64_t n = 0; n < inputs_; n += depth)
    for (int64_t p = 0; p < padded_; p += wide_)
      for (int64_t j = first; j < last; j += kernel_.rows) {
        const T* rows[8];
        for (int r = 0; r < kernel_.rows; ++r) rows[r] = row(std::min(j + r, last - 1)) + n;
        kernel_.tile(rows, along_.data(), std::min(depth, inputs_ - n), xt_.get() + p * inputs_ + n * wide_, wide_,
                     int(std::min(wide_, padded_ - p) / kernel_.lanes), response(j) + p, y_step_, n > 0);
      }
  for (int64_t j = first; j < last; ++j) {
    T* y = response(j);
    const T top = kernel_.bound(y, padded_), minus = -1;
    if (!(top <= *strongest)) *strongest = top;
    if (!std::isfinite(top)) return;
    kernel_.respond(y, 1, padded_, nullptr, nullptr, nullptr, rule_.activation);
    kernel_.scale(y, &minus, 1, padded_, y);
  }
}

// The products of a block's responses with each other: what the decay keeps of them, the rest zero.
template <class T>
void Residual<T>::finish_rows(int64_t first) {
  for (int64_t j = neurons(first); j < block_; ++j) std::fill_n(response(first + j), y_step_, T(0));
  if (rule_.decay == Decay::none) return;
  Scratch<T> turned(count_ * block_);
  for (int64_t i = 0; i < block_; i += kernel_.lanes)
    kernel_.transpose(response(first + i), y_step_, kernel_.lanes, count_, turned.get() + i, block_);
  for (int64_t j = 0; j < block_; j += kernel_.rows) {
    const T* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = response(first + j + r);
    kernel_.tile(rows, along_.data(), count_, turned.get(), block_, int(block_ / kernel_.lanes),
                 response(first + j) + padded_, y_step_, false);
  }
  for (int64_t j = 0; j < block_; ++j) {
    T* products = response(first + j) + padded_;
    std::fill(products + j + 1, products + block_, T(0));
    if (rule_.decay == Decay::diagonal) std::fill_n(products, j, T(0));
  }
}

template <class T>
void Residual<T>::respond() {
  spread();
  // Neurons at once: their weights fill a quarter of L2 while the panels of patches run by.
  const int64_t fit = (int64_t(1) << 19) / (inputs_ * int64_t(sizeof(T))) / block_ * block_;
  const int64_t part = std::clamp<int64_t>(fit, block_, 16 * block_), parts = (neurons_ + part - 1) / part;
  Scratch<T> heaviest(parts), strongest(parts);
  with_dtype(weight_.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weight = static_cast<const S*>(weight_.const_data_ptr());
    parallel(parts, [&](int64_t item) {
      const int64_t first = item * part, last = std::min(neurons_, first + part);
      respond_rows(weight, first, last, &heaviest[item], &strongest[item]);
      for (int64_t j = first; j < last; j += block_) finish_rows(j);
    });
  });
  double y = 0;
  for (int64_t item = 0; item < parts; ++item) {
    if (!std::isfinite(heaviest[item])) fail_finite(op_, "weight");
    weight_bound_ = std::max(weight_bound_, double(heaviest[item]));
  }
  for (int64_t item = 0; item < parts; ++item) {
    if (!std::isfinite(strongest[item])) fail_overflow(op_, finite_responses, sizeof(T) == 8);
    y = std::max(y, double(strongest[item]));
  }
  // |R| <= x + K y w, and a sum takes y R of each patch and the products of its block; twice that for the roundings.
  // Centring doubles the largest input at most, and no entry of a standardised patch exceeds 1.
  const double x = rule_.patches == Patches::raw ? double(source_.bound) : std::max(1.0, 2 * double(source_.bound));
  sum_bound_ += 2 * double(count_) * y * (x + (double(neurons_) + double(block_)) * y * weight_bound_);
}

// -sum of a block over a strip of inputs: the tile's rows are neurons, its panel is residuals and the weights below.
template <class T>
void Residual<T>::sums(int64_t neuron, int64_t strip, T* out, int64_t step) const {
  const int64_t size = neurons(neuron), count = vectors(strip);
  for (int64_t i = 0; i < size; i += kernel_.rows) {
    const T *rows[8], *products[8];
    for (int r = 0; r < kernel_.rows; ++r) {
      rows[r] = response(neuron + i + r);
      products[r] = rows[r] + padded_ + i;
    }
    const int64_t last = std::min<int64_t>(i + kernel_.rows, size);
    kernel_.tile(rows, taught_.data(), rows_ + (rule_.decay == Decay::triangular ? last : 0), residual(strip), width_,
                 int(count), out + i * step, step, false);
    if (rule_.decay == Decay::diagonal)
      kernel_.tile(products, along_.data(), last - i, weights(strip) + i * width_, width_, int(count), out + i * step,
                   step, true);
  }
}

// R -= Y_b W_b: the tile's rows are patches.
template <class T>
void Residual<T>::lessen(int64_t neuron, int64_t strip) const {
  for (int64_t p = 0; p < rows_; p += kernel_.rows) {
    const T* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = response(neuron) + p + r;
    kernel_.tile(rows, across_.data(), neurons(neuron), weights(strip), width_, vectors(strip),
                 residual(strip) + p * width_, width_, true);
  }
}

template <class T>
template <class S>
void Residual<T>::load(const S* weight, int64_t neuron, int64_t strip, T* to) const {
  const int64_t first = strip * width_, size = std::min(width_, inputs_ - first);
  const S* from = weight + neuron * weight_.stride(0);
  if (in_order_)
    for (int64_t n = 0; n < size; ++n) to[n] = T(from[first + n]);
  else
    for (int64_t n = 0; n < size; ++n) to[n] = T(from[entry_[first + n]]);
  std::fill(to + size, to + width_, T(0));
}

// Strips [first, last) walk down all neurons.
template <class T>
template <class S>
void Residual<T>::walk_strips(const S* weight, int64_t first, int64_t last, Sink<T>& sink) const {
  const int64_t step = (last - first) * width_;
  constexpr int64_t line = 64 / sizeof(S);
  Scratch<T> out(block_ * step);
  for (int64_t neuron = 0; neuron < neurons_; neuron += block_) {
    const int64_t size = neurons(neuron), next = std::max<int64_t>(0, std::min(block_, neurons_ - neuron - block_));
    for (int64_t i = 0; i < size; ++i)
      for (int64_t strip = first; strip < last; ++strip) load(weight, neuron + i, strip, weights(strip) + i * width_);
    for (int64_t strip = first; strip < last; ++strip) {
      for (int64_t i = 0; i < next; ++i)  // the next block's weights come in while this one's are at work
        for (int64_t n = strip * width_; n < std::min(inputs_, (strip + 1) * width_); n += line)
          __builtin_prefetch(weight + (neuron + block_ + i) * weight_.stride(0) + entry_[n]);
      sums(neuron, strip, out.get() + (strip - first) * width_, step);
      if (rule_.decay == Decay::triangular && next > 0) lessen(neuron, strip);
    }
    sink.take(neuron, size, first * width_, std::min(inputs_, last * width_) - first * width_, out.get(), step);
  }
}

template <class T>
void Residual<T>::walk(Sink<T>& sink) {
  const int64_t bytes = (chunk_rows_ + 2 * block_) * width_ * int64_t(sizeof(T));
  const int64_t part = strips_at_once(bytes, strips_);
  with_dtype(weight_.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weight = static_cast<const S*>(weight_.const_data_ptr());
    parallel((strips_ + part - 1) / part,
             [&](int64_t item) { walk_strips(weight, item * part, std::min(strips_, (item + 1) * part), sink); });
  });
  first_ += count_;
}

template class Residual<float>;
template class Residual<double>;

}  // namespace hebbkern
