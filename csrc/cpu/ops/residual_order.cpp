// dense_update with few patches: see residual_order.h.
#include "cpu/ops/residual_order.h"

#include <cmath>
#include <cstring>

namespace hebbkern {

// Patches at once: 48 inputs' residuals fill a seventh of L2 (1536 x 48 x 4 bytes).
constexpr int64_t longest_chunk = 1536;

// Strips of inputs, of so many bytes each, that a thread walks down together: three eighths of L2, and no thread idle.
static int64_t strips_at_once(int64_t bytes, int64_t strips) {
  const int64_t fit = std::max<int64_t>(1, (int64_t(3) << 18) / bytes);
  const int64_t threads = torch::stable::get_num_threads();
  return std::min({fit, int64_t(12), (strips + threads - 1) / threads});
}

template <class P>
ResidualOrder<P>::ResidualOrder(const char* op, const P& products, const Tensor& x, const Tensor& weight,
                                const Geometry& g, const Dense& rule)
    : op_(op),
      products_(products),
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
      cells_((inputs_ + per - 1) / per),
      block_(2 * products_.lanes),
      chunk_(std::min(patches_, longest_chunk)),
      chunk_rows_(round_up(chunk_, std::max(products_.lanes, products_.rows))),
      // An odd number of vectors, so that the same patch of a block's neurons does not meet in one cache set.
      y_step_(per == 1 ? ((chunk_rows_ + block_) / products_.lanes | 1) * products_.lanes : chunk_rows_ + block_),
      xt_((chunk_rows_ + width_) * cells_),
      panel_(strips_ * (chunk_rows_ + block_) / per * width_),
      r_(per > 1 ? strips_ * chunk_rows_ * width_ : 0),
      y_(round_up(neurons_, block_) * y_step_),
      turned_(per > 1 ? round_up(neurons_, block_) * chunk_rows_ : 0),
      each_(chunk_rows_ + block_),
      along_(std::max(cells_, chunk_rows_ + block_)),
      across_(block_),
      taught_((chunk_rows_ + block_) / per) {
  if constexpr (per == 1)
    if (rule.patches != Patches::raw) moments_.emplace(op, source_, rule.patches);
  for (size_t n = 0; n < each_.size(); ++n) each_[n] = int64_t(n);
  for (size_t n = 0; n < along_.size(); ++n) along_[n] = per * int64_t(n);
  for (int64_t i = 0; i < block_; ++i) across_[i] = i * y_step_;
}

template <class P>
typename P::Sum* ResidualOrder<P>::residual(int64_t strip) const {
  if constexpr (per == 1)
    return panel(strip);
  else
    return r_.get() + strip * chunk_rows_ * width_;
}

// The patch, centred or standardised, to whole cells.
template <class P>
void ResidualOrder<P>::read_patch(int64_t patch, Entry* row) const {
  const Entry* x = entries_of<P>(source_.x) + source_.base(patch);
  for (const auto& run : source_.runs)
    std::memcpy(row + run.first, x + source_.offset[run.first], run.length * sizeof(Entry));
  if (per * cells_ > inputs_) row[inputs_] = 0;
  if constexpr (per == 1)
    if (moments_)
      for (int64_t n = 0; n < inputs_; ++n) row[n] = (row[n] - moments_->offset[patch]) * moments_->scale[patch];
}

// A vector of patches as rows of inputs, zeros behind the last, down the panels that responses are made of and as first
// residual.
template <class P>
void ResidualOrder<P>::spread_group(int64_t group, Entry* rows) {
  const int64_t lanes = products_.lanes, at = group * lanes, size = per * cells_;
  for (int64_t i = 0; i < lanes; ++i)
    if (at + i < count_)
      read_patch(first_ + at + i, rows + i * size);
    else
      std::fill_n(rows + i * size, size, Entry(0));
  for (int64_t i = 0; i < lanes && at + i < rows_; i += per)
    for (int64_t strip = 0; strip < strips_; ++strip) {
      const int64_t first = strip * width_, n = filled(strip);
      Cell* to = panel(strip) + (at + i) / per * width_;
      products_.join(rows + i * size + first, rows + (i + per - 1) * size + first, n, to);
      std::fill(to + n, to + width_, Cell{});
      if constexpr (per > 1)
        for (int64_t p = i; p < i + per; ++p) {
          using Input = typename P::Input;
          Sum* r = residual(strip) + (at + p) * width_;
          for (int64_t l = 0; l < n; ++l) r[l] = Sum(Input(rows[p * size + first + l], Input::from_bits()));
          std::fill(r + n, r + width_, Sum(0));
        }
    }
  products_.transpose(rows, cells_, lanes, cells_, xt_.get() + at / wide_ * wide_ * cells_ + at % wide_, wide_);
}

template <class P>
void ResidualOrder<P>::spread() {
  const int64_t lanes = products_.lanes;
  count_ = std::min(chunk_, patches_ - first_);
  padded_ = round_up(count_, std::max(lanes, products_.rows));
  rows_ = per == 1 ? round_up(count_, products_.rows) : padded_;
  const int64_t groups = padded_ / lanes, panels = (groups + 2) / 3;
  wide_ = (groups + panels - 1) / panels * lanes;  // as even as can be: a tile of one vector is slow
  for (size_t c = 0; c < taught_.size(); ++c) {
    const int64_t p = per * int64_t(c);
    taught_[c] = p < rows_ ? p : padded_ + p - rows_;
  }
  parallel(groups, [&](int64_t group) {
    Scratch<Entry> rows(lanes * per * cells_);
    spread_group(group, rows.get());
  });
}

// y = f(W x) of neurons [first, last), whole blocks: the tile's rows are neurons, its panel is patches.
template <class P>
template <class S>
void ResidualOrder<P>::respond_rows(const S* weight, int64_t first, int64_t last, Sum* heaviest, Sum* strongest) {
  constexpr int64_t depth = 2304 / per;  // cells of inputs at once: 48 patches' fill a quarter of L2
  const bool direct = std::is_same_v<S, Entry> && in_order_;
  const int64_t size = per * cells_, count = last - first;
  Scratch<Entry> copies(direct ? 0 : count * size);
  std::vector<const Entry*> row(count);
  *heaviest = *strongest = 0;
  for (int64_t j = 0; j < count; ++j) {
    row[j] = products_.read(weight + (first + j) * weight_.stride(0), entry_, in_order_,
                            direct ? nullptr : copies.get() + j * size);
    const Sum top = products_.bound(row[j], inputs_);
    *heaviest = top <= *heaviest ? *heaviest : top;
    if (!std::isfinite(top)) return;
  }
  Scratch<Sum> own(per > 1 ? round_up(count, block_) * padded_ : 0);
  const int64_t step = per > 1 ? padded_ : y_step_;
  Sum* y = own.get();
  if constexpr (per == 1) y = response(first);
  for (int64_t n = 0; n < cells_; n += depth)
    for (int64_t p = 0; p < padded_; p += wide_)
      for (int64_t j = 0; j < count; j += products_.rows) {
        const Entry* rows[8];
        for (int r = 0; r < products_.rows; ++r) rows[r] = row[std::min(j + r, count - 1)] + per * n;
        products_.tile(rows, along_.data(), std::min(depth, cells_ - n), xt_.get() + p * cells_ + n * wide_, wide_,
                       int(std::min(wide_, padded_ - p) / products_.lanes), y + j * step + p, step, n > 0);
      }
  const Sum minus = -1;
  for (int64_t j = 0; j < count; ++j) {
    const Sum top = kernel_.bound(y + j * step, padded_);
    if (!(top <= *strongest)) *strongest = top;
    if (!std::isfinite(top)) return;
    kernel_.respond(y + j * step, 1, padded_, nullptr, nullptr, nullptr, rule_.activation);
    kernel_.scale(y + j * step, &minus, 1, padded_, y + j * step);
  }
  for (int64_t j = 0; j < count; j += block_) finish_block(first + j, y + j * step, step);
}

// A block's negated responses, their rows `step` apart, as entries: those of pairs both ways round.
template <class P>
void ResidualOrder<P>::finish_block(int64_t first, Sum* y, int64_t step) {
  for (int64_t j = neurons(first); j < block_; ++j) std::fill_n(y + j * step, step, Sum(0));
  if (per == 1 && rule_.decay == Decay::none) return;
  const int64_t count = per > 1 ? padded_ : count_;
  Scratch<Sum> across(count * block_);
  if constexpr (per > 1) products_.shorten(y, block_ * step);
  for (int64_t i = 0; i < block_; i += products_.lanes)
    kernel_.transpose(y + i * step, step, products_.lanes, count, across.get() + i, block_);
  if constexpr (per > 1) {
    products_.narrow(across.get(), count * block_, turned(first));
    for (int64_t j = 0; j < block_; ++j) products_.narrow(y + j * step, padded_, response(first + j));
  }
  if (rule_.decay != Decay::none) products_of_block(first, y, step, across.get());
}

// What the decay keeps of the products of a block's responses with each other, or on the diagonal the sums of the
// responses, the rest zero; across: [patches][block].
template <class P>
void ResidualOrder<P>::products_of_block(int64_t first, const Sum* y, int64_t step, const Sum* across) {
  Scratch<Sum> products(block_ * block_), totals(block_);
  const bool activity = rule_.decay == Decay::activity;
  if (activity) kernel_.columns(across, nullptr, count_, block_, totals.get());
  for (int64_t j = 0; !activity && j < block_; j += kernel_.rows) {
    const Sum* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = y + (j + r) * step;
    kernel_.tile(rows, each_.data(), count_, across, block_, int(block_ / products_.lanes), products.get() + j * block_,
                 block_, false);
  }
  for (int64_t j = 0; j < block_; ++j) {
    Sum* row = products.get() + j * block_;
    std::fill(row + j + 1, row + block_, Sum(0));
    if (by_neuron(rule_.decay)) std::fill_n(row, j, Sum(0));
    if (activity) row[j] = -totals[j];
    if constexpr (per == 1)
      std::copy_n(row, block_, response(first + j) + padded_);
    else
      products_.narrow(row, block_, response(first + j) + padded_);
  }
}

template <class P>
void ResidualOrder<P>::respond() {
  spread();
  // Neurons at once: their weights fill a quarter of L2 while the panels of patches run by.
  const int64_t fit = (int64_t(1) << 19) / (cells_ * int64_t(sizeof(Cell))) / block_ * block_;
  const int64_t part = std::clamp<int64_t>(fit, block_, 16 * block_), parts = (neurons_ + part - 1) / part;
  Scratch<Sum> heaviest(parts), strongest(parts);
  with_dtype(weight_.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weight = static_cast<const S*>(weight_.const_data_ptr());
    parallel(parts, [&](int64_t item) {
      respond_rows(weight, item * part, std::min(neurons_, (item + 1) * part), &heaviest[item], &strongest[item]);
    });
  });
  // At least 1 of pairs, so that the bound below holds for the residual too, which is rounded.
  constexpr double least = per > 1 ? 1 : 0;
  double y = least;
  for (int64_t item = 0; item < parts; ++item) {
    if (!std::isfinite(heaviest[item])) fail_finite(op_, "weight");
    weight_bound_ = std::max(weight_bound_, double(heaviest[item]));
  }
  for (int64_t item = 0; item < parts; ++item) {
    if (!std::isfinite(strongest[item])) fail_overflow(op_, finite_responses, sizeof(Sum) == 8);
    y = std::max(y, double(strongest[item]));
  }
  // |R| <= x + K y w, and a sum takes y R of each patch and the products of its block; twice that for the roundings.
  // Centring doubles the largest input at most, and no entry of a standardised patch exceeds 1.
  const double largest = double(source_.bound), w = std::max(least, weight_bound_);
  const double factor = rule_.decay == Decay::activity ? std::max(y, 1.0) : y;
  const double x = rule_.patches == Patches::raw ? largest : std::max(1.0, 2 * largest);
  sum_bound_ += 2 * double(count_) * y * (x + (double(neurons_) + double(block_)) * factor * w);
}

// -sum of a block over a strip of inputs: the tile's rows are neurons, its panel is residuals and the weights below.
// Singles multiply the diagonal's products apart, each row from its own on.
template <class P>
void ResidualOrder<P>::sums(int64_t neuron, int64_t strip, Sum* out, int64_t step) const {
  const int64_t size = neurons(neuron);
  const bool below = rule_.decay == Decay::triangular || (per > 1 && by_neuron(rule_.decay));
  for (int64_t i = 0; i < size; i += products_.rows) {
    const Entry *rows[8], *products[8];
    for (int r = 0; r < products_.rows; ++r) {
      rows[r] = response(neuron + i + r);
      products[r] = rows[r] + padded_ + i;
    }
    const int64_t last = std::min(i + products_.rows, size);
    products_.tile(rows, taught_.data(), rows_ / per + (below ? (last + per - 1) / per : 0), panel(strip), width_,
                   vectors(strip), out + i * step, step, false);
    if (per == 1 && by_neuron(rule_.decay))
      products_.tile(products, along_.data(), last - i, weights(strip) + i * width_, width_, vectors(strip),
                     out + i * step, step, true);
  }
}

// R -= Y_b W_b: the tile's rows are patches.
template <class P>
void ResidualOrder<P>::lessen(int64_t neuron, int64_t strip) const {
  const int64_t steps = (neurons(neuron) + per - 1) / per;
  for (int64_t p = 0; p < rows_; p += products_.rows) {
    const Entry* rows[8];
    for (int r = 0; r < products_.rows; ++r)
      rows[r] = per == 1 ? response(neuron) + p + r : turned(neuron) + (p + r) * block_;
    Sum* r = residual(strip) + p * width_;
    products_.tile(rows, per == 1 ? across_.data() : along_.data(), steps, weights(strip), width_, vectors(strip), r,
                   width_, true);
    for (int64_t i = 0; per > 1 && i < products_.rows; i += per)
      products_.round(r + i * width_, r + (i + 1) * width_, width_, panel(strip) + (p + i) / per * width_);
  }
}

// A block's weights over strips [first, last), by cells of neurons.
template <class P>
template <class S>
void ResidualOrder<P>::load(const S* weight, int64_t neuron, int64_t first, int64_t last) const {
  const int64_t row = weight_.stride(0), size = neurons(neuron);
  for (int64_t i = 0; i < size; i += per) {
    const S* a = weight + (neuron + i) * row;
    const S* b = i + 1 < size ? a + row : nullptr;
    for (int64_t strip = first; strip < last; ++strip) {
      Cell* to = weights(strip) + i / per * width_;
      products_.weights(a, b, entry_, in_order_, strip * width_, filled(strip), to);
      std::fill(to + filled(strip), to + width_, Cell{});
    }
  }
}

// Strips [first, last) walk down all neurons.
template <class P>
template <class S>
void ResidualOrder<P>::walk_strips(const S* weight, int64_t first, int64_t last, Sink<Sum>& sink) const {
  const int64_t step = (last - first) * width_, row = weight_.stride(0);
  constexpr int64_t line = 64 / sizeof(S);
  Scratch<Sum> out(block_ * step);
  for (int64_t neuron = 0; neuron < neurons_; neuron += block_) {
    const int64_t next = std::max<int64_t>(0, std::min(block_, neurons_ - neuron - block_));
    load(weight, neuron, first, last);
    for (int64_t strip = first; strip < last; ++strip) {
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

template <class P>
void ResidualOrder<P>::walk(Sink<Sum>& sink) {
  const int64_t rows = per == 1 ? chunk_rows_ + 2 * block_ : (3 * chunk_rows_ + block_) / 2;
  const int64_t part = strips_at_once(rows * width_ * int64_t(sizeof(Cell)), strips_);
  with_dtype(weight_.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weight = static_cast<const S*>(weight_.const_data_ptr());
    parallel((strips_ + part - 1) / part,
             [&](int64_t item) { walk_strips(weight, item * part, std::min(strips_, (item + 1) * part), sink); });
  });
  first_ += count_;
}

template class ResidualOrder<Singles<float>>;
template class ResidualOrder<Singles<double>>;
template class ResidualOrder<Pairs>;

}  // namespace hebbkern
