// residual.cpp's walk by pairs of bfloat16: responses by pairs of inputs, sums by pairs of patches, the residual's
// loss by pairs of neurons.
//
// What it loses besides y' = y (1 + e), |e| <= 2^-8: the residual R = X - Y'W is kept in float32 and rounded to
// bfloat16 where it is multiplied, and so are a block's products with itself, C. A sum is off by 2^-8 |Y|ᵀ|R| and
// 2^-8 |C||W| more, in all by twice what paired.cpp says: to first order 2^-7 |Y|ᵀ|X| + 2^-6 tril(|Y|ᵀ|Y|)|W|.
#include "cpu/ops/paired_residual.h"

#include <cmath>
#include <cstring>

namespace hebbkern {

PairedResidual::PairedResidual(const char* op, const PairUnit& unit, const Tensor& x, const Tensor& weight,
                               const Geometry& g, const Dense& rule)
    : op_(op),
      unit_(unit),
      rule_(rule),
      source_(op, x, g),
      weight_(weight),
      entry_(weight_entries(g, weight)),
      in_order_(hebbkern::in_order(entry_)),
      patches_(g.patches()),
      neurons_(g.neurons),
      inputs_(g.inputs()),
      width_(kernel_.width),
      strips_((inputs_ + width_ - 1) / width_),
      pairs_((inputs_ + 1) / 2),
      chunk_(std::min(patches_, longest_chunk)),
      chunk_rows_(round_up(chunk_, unit.lanes)),
      by_input_((chunk_rows_ + width_) * pairs_),
      r_(strips_ * chunk_rows_ * width_),
      joined_(strips_ * (chunk_rows_ + block_) / 2 * width_),
      y_(round_up(neurons_, block_) * (chunk_rows_ + block_)),
      turned_(round_up(neurons_, block_) * chunk_rows_),
      by_two_(std::max(pairs_, chunk_rows_ + block_)) {
  for (size_t l = 0; l < by_two_.size(); ++l) by_two_[l] = 2 * int64_t(l);
}

// 16 patches as rows of inputs, zeros behind them, down the panels that responses are made of and as first residual.
void PairedResidual::spread_group(int64_t group, uint16_t* rows) {
  const int64_t lanes = unit_.lanes, at = group * lanes, size = 2 * pairs_;
  std::fill_n(rows, lanes * size, uint16_t(0));
  for (int64_t i = 0; i < std::clamp<int64_t>(count_ - at, 0, lanes); ++i) {
    const BFloat16* x = source_.x + source_.base(first_ + at + i);
    for (const auto& run : source_.runs)
      std::memcpy(rows + i * size + run.first, x + source_.offset[run.first], run.length * sizeof(BFloat16));
  }
  for (int64_t strip = 0; strip < strips_; ++strip) {
    const int64_t first = strip * width_, filled = std::min(width_, inputs_ - first);
    float* r = residual(strip) + at * width_;
    for (int64_t i = 0; i < lanes; ++i, r += width_)
      for (int64_t n = 0; n < width_; ++n)
        r[n] = n < filled ? float(BFloat16(rows[i * size + first + n], BFloat16::from_bits())) : 0.0f;
    for (int64_t i = 0; i < lanes; i += 2) {
      Pair* to = joined(strip) + (at + i) / 2 * width_;
      unit_.join(rows + i * size + first, rows + (i + 1) * size + first, filled, to);
      std::fill(to + filled, to + width_, Pair{0, 0});
    }
  }
  // To move pairs about they may as well be float32.
  kernel_.transpose(reinterpret_cast<const float*>(rows), pairs_, lanes, pairs_,
                    reinterpret_cast<float*>(by_input_.get() + at / wide_ * wide_ * pairs_ + at % wide_), wide_);
}

void PairedResidual::spread() {
  count_ = std::min(chunk_, patches_ - first_);
  padded_ = round_up(count_, unit_.lanes);
  const int64_t groups = padded_ / unit_.lanes, panels = (groups + 2) / 3;
  wide_ = (groups + panels - 1) / panels * unit_.lanes;  // as even as can be: a tile of one vector is slow
  parallel(groups, [&](int64_t group) {
    Scratch<uint16_t> rows(unit_.lanes * 2 * pairs_);
    spread_group(group, rows.get());
  });
}

// A neuron's weights in bfloat16, to whole pairs.
template <class S>
void PairedResidual::read_row(const S* weight, int64_t neuron, uint16_t* row) const {
  const S* from = weight + neuron * weight_.stride(0);
  if (2 * pairs_ > inputs_) row[inputs_] = 0;
  if constexpr (std::is_same_v<S, float>)
    if (in_order_) return unit_.narrow(from, inputs_, row);
  if constexpr (std::is_same_v<S, BFloat16>)
    if (in_order_) return void(std::memcpy(row, from, inputs_ * sizeof(S)));
  for (int64_t n = 0; n < inputs_; ++n) row[n] = BFloat16(float(from[entry_[n]])).x;
}

// y = f(W x) of neurons [first, last): the tile's rows are neurons, its panel is patches.
template <class S>
void PairedResidual::respond_rows(const S* weight, int64_t first, int64_t last, float* heaviest, float* strongest) {
  constexpr int64_t depth = 1152;  // pairs of inputs at once: 48 patches' fill a quarter of L2
  const int64_t size = 2 * pairs_, step = padded_;
  Scratch<uint16_t> rows_of_part((last - first) * size);
  Scratch<float> y(round_up(last - first, block_) * step);
  uint16_t top = 0;
  for (int64_t j = first; j < last; ++j) {
    uint16_t* row = rows_of_part.get() + (j - first) * size;
    read_row(weight, j, row);
    top = std::max(top, largest_of(reinterpret_cast<const BFloat16*>(row), inputs_).x);
  }
  *heaviest = float(BFloat16(top, BFloat16::from_bits()));
  *strongest = 0;
  if (!std::isfinite(*heaviest)) return;
  for (int64_t n = 0; n < pairs_; n += depth)
    for (int64_t p = 0; p < padded_; p += wide_)
      for (int64_t j = first; j < last; j += unit_.rows) {
        const uint16_t* rows[8];
        for (int r = 0; r < unit_.rows; ++r)
          rows[r] = rows_of_part.get() + (std::min(j + r, last - 1) - first) * size + 2 * n;
        unit_.tile(rows, by_two_.data(), std::min(depth, pairs_ - n), by_input_.get() + p * pairs_ + n * wide_, wide_,
                   int(std::min(wide_, padded_ - p) / unit_.lanes), y.get() + (j - first) * step + p, step, n > 0);
      }
  *strongest = kernel_.bound(y.get(), (last - first) * step);
  if (!std::isfinite(*strongest)) return;
  kernel_.respond(y.get(), last - first, step, nullptr, nullptr, nullptr, rule_.activation);
  std::fill(y.get() + (last - first) * step, y.get() + round_up(last - first, block_) * step, 0.0f);
  for (int64_t j = first; j < last; j += block_) finish_block(j, y.get() + (j - first) * step);
}

// A block's responses [block][padded], rounded and negated, both ways round, and what the decay keeps of their products
// with each other, the rest zero.
void PairedResidual::finish_block(int64_t first, float* y) {
  const int64_t lanes = unit_.lanes;
  for (int64_t i = 0; i < block_ * padded_; ++i) y[i] = -y[i];
  unit_.shorten(y, block_ * padded_);
  Scratch<float> across(padded_ * block_), products(block_ * block_);
  for (int64_t i = 0; i < block_; i += lanes)
    kernel_.transpose(y + i * padded_, padded_, lanes, padded_, across.get() + i, block_);
  unit_.narrow(across.get(), padded_ * block_, turned(first));
  for (int64_t j = 0; j < block_; ++j) unit_.narrow(y + j * padded_, padded_, response(first + j));
  if (rule_.decay == Decay::none) return;
  std::vector<int64_t> along(padded_);
  for (int64_t p = 0; p < padded_; ++p) along[p] = p;
  for (int64_t j = 0; j < block_; j += kernel_.rows) {
    const float* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = y + (j + r) * padded_;
    kernel_.tile(rows, along.data(), padded_, across.get(), block_, int(block_ / lanes), products.get() + j * block_,
                 block_, false);
  }
  for (int64_t j = 0; j < block_; ++j) {
    float* row = products.get() + j * block_;
    std::fill(row + j + 1, row + block_, 0.0f);
    if (rule_.decay == Decay::diagonal) std::fill_n(row, j, 0.0f);
    unit_.narrow(row, block_, response(first + j) + padded_);
  }
}

void PairedResidual::respond() {
  spread();
  // Neurons at once: their weights fill a quarter of L2 while the panels of patches run by.
  const int64_t fit = (int64_t(1) << 18) / (2 * pairs_) / block_ * block_;
  const int64_t part = std::clamp<int64_t>(fit, block_, 16 * block_), parts = (neurons_ + part - 1) / part;
  Scratch<float> heaviest(parts), strongest(parts);
  with_dtype(weight_.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weight = static_cast<const S*>(weight_.const_data_ptr());
    parallel(parts, [&](int64_t item) {
      respond_rows(weight, item * part, std::min(neurons_, (item + 1) * part), &heaviest[item], &strongest[item]);
    });
  });
  double y = 1;
  for (int64_t item = 0; item < parts; ++item) {
    if (!std::isfinite(heaviest[item])) fail_finite(op_, "weight");
    weight_bound_ = std::max(weight_bound_, double(heaviest[item]));
  }
  for (int64_t item = 0; item < parts; ++item) {
    if (!std::isfinite(strongest[item])) fail_overflow(op_, finite_responses, false);
    y = std::max(y, double(strongest[item]));
  }
  // As in Residual; y is at least 1 here, so that the bound holds for the residual too, which is rounded.
  sum_bound_ += 2 * double(count_) * y *
                (double(source_.bound) + (double(neurons_) + double(block_)) * y * std::max(1.0, weight_bound_));
}

// -sum of a block over a strip of inputs: the tile's rows are neurons, its panel is residuals and the weights below.
void PairedResidual::sums(int64_t neuron, int64_t strip, float* out, int64_t step) const {
  const int64_t size = neurons(neuron);
  for (int64_t i = 0; i < size; i += unit_.rows) {
    const uint16_t* rows[8];
    for (int r = 0; r < unit_.rows; ++r) rows[r] = response(neuron + i + r);
    const int64_t last = rule_.decay == Decay::none ? 0 : std::min<int64_t>(i + unit_.rows, size);
    unit_.tile(rows, by_two_.data(), padded_ / 2 + (last + 1) / 2, joined(strip), width_, vectors(strip),
               out + i * step, step, false);
  }
}

// R -= Y_b W_b: the tile's rows are patches.
void PairedResidual::lessen(int64_t neuron, int64_t strip) const {
  for (int64_t p = 0; p < padded_; p += unit_.rows) {
    const uint16_t* rows[8];
    float* r = residual(strip) + p * width_;
    for (int i = 0; i < unit_.rows; ++i) rows[i] = turned(neuron) + (p + i) * block_;
    unit_.tile(rows, by_two_.data(), (neurons(neuron) + 1) / 2, weights(strip), width_, vectors(strip), r, width_,
               true);
    for (int i = 0; i < unit_.rows; i += 2)
      unit_.round(r + i * width_, r + (i + 1) * width_, width_, joined(strip) + (p + i) / 2 * width_);
  }
}

// A block's weights over a strip, by pairs of neurons.
template <class S>
void PairedResidual::load(const S* weight, int64_t neuron, int64_t strip) const {
  const int64_t first = strip * width_, size = std::min(width_, inputs_ - first), row = weight_.stride(0);
  Pair* to = weights(strip);
  for (int64_t k = 0; k < neurons(neuron); k += 2, to += width_) {
    const S* a = weight + (neuron + k) * row;
    const S* b = k + 1 < neurons(neuron) ? a + row : nullptr;
    std::fill(to + size, to + width_, Pair{0, 0});
    if constexpr (std::is_same_v<S, float>)
      if (in_order_) {
        unit_.round(a + first, b ? b + first : nullptr, size, to);
        continue;
      }
    if constexpr (std::is_same_v<S, BFloat16>)
      if (in_order_) {
        unit_.join(&a[first].x, b ? &b[first].x : nullptr, size, to);
        continue;
      }
    for (int64_t n = 0; n < size; ++n) {
      const int64_t at = entry_[first + n];
      to[n] = {BFloat16(float(a[at])).x, b ? BFloat16(float(b[at])).x : uint16_t(0)};
    }
  }
}

// Strips [first, last) walk down all neurons.
template <class S>
void PairedResidual::walk_strips(const S* weight, int64_t first, int64_t last, Sink<float>& sink) const {
  const int64_t step = (last - first) * width_, row = weight_.stride(0);
  constexpr int64_t line = 64 / sizeof(S);
  Scratch<float> out(block_ * step);
  for (int64_t neuron = 0; neuron < neurons_; neuron += block_) {
    const int64_t next = std::max<int64_t>(0, std::min(block_, neurons_ - neuron - block_));
    for (int64_t strip = first; strip < last; ++strip) {
      load(weight, neuron, strip);
      for (int64_t i = 0; i < next; ++i)  // the next block's weights come in while this one's are at work
        for (int64_t n = strip * width_; n < std::min(inputs_, (strip + 1) * width_); n += line)
          __builtin_prefetch(weight + (neuron + block_ + i) * row + entry_[n]);
      sums(neuron, strip, out.get() + (strip - first) * width_, step);
      if (rule_.decay == Decay::triangular && next > 0) lessen(neuron, strip);
    }
    sink.take(neuron, neurons(neuron), first * width_, std::min(inputs_, last * width_) - first * width_, out.get(),
              step);
  }
}

void PairedResidual::walk(Sink<float>& sink) {
  const int64_t bytes = (3 * chunk_rows_ + block_) / 2 * width_ * int64_t(sizeof(Pair));
  const int64_t part = strips_at_once(bytes, strips_);
  with_dtype(weight_.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weight = static_cast<const S*>(weight_.const_data_ptr());
    parallel((strips_ + part - 1) / part,
             [&](int64_t item) { walk_strips(weight, item * part, std::min(strips_, (item + 1) * part), sink); });
  });
  first_ += count_;
}

}  // namespace hebbkern
