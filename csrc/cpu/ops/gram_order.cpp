// dense_update with many patches: see gram_order.h.
#include "cpu/ops/gram_order.h"

#include <algorithm>
#include <cmath>

namespace hebbkern {

// Slots whose responses are kept at once, whatever the number of threads: sums are added chunk by chunk. Long, for each
// chunk reads and writes the whole sum; but a panel's responses stay in L2 (1536 x 48 x 4 bytes), all of them in 16
// MiB.
template <class P>
static int64_t chunk_of(int64_t slots, int64_t columns) {
  constexpr int64_t least = block / P::per, most = 1536 / P::per;
  const int64_t fit = (int64_t(1) << 24) / (columns * int64_t(sizeof(typename P::Cell))) / least * least;
  return std::min(round_up(std::max<int64_t>(slots, 1), least), std::clamp(fit, least, most));
}

template <class P>
static std::vector<int64_t> cells_of_patch(const Source<typename P::Input>& source) {
  std::vector<int64_t> cells;
  for (const auto& run : source.runs)
    for (int64_t n = 0; n < run.length; n += P::per) cells.push_back(source.offset[run.first] + n);
  return cells;
}

template <class P>
GramOrder<P>::GramOrder(const char* op, const P& products, const Tensor& x, const Tensor& weight, const Geometry& g,
                        const Dense& rule)
    : op_(op),
      products_(products),
      rule_(rule),
      source_(op, x, g),
      to_(op, g, weight, rule),
      per_image_(g.per_image()),
      slots_((g.batch + per - 1) / per * per_image_),
      chunk_(chunk_of<P>(slots_, columns_)),
      soft_(rule.activation == Activation::softmax),
      scaled_(rule.patches == Patches::standardised),
      in_patch_(cells_of_patch<P>(source_)),
      weights_(per > 1 ? columns_ * int64_t(in_patch_.size()) : 0),
      joined_(!g.image  ? to_.rows_of_sum * (chunk_ + 2)
              : per > 1 ? (g.batch + per - 1) / per * source_.image
                        : 0),
      bases_(chunk_),
      steps_(chunk_),
      y_(columns_ * chunk_),
      ys_(scaled_ ? columns_ * chunk_ : 0),
      kept_(per > 1 && soft_ ? columns_ * chunk_ * per : 0),
      part_diagonal_(chunk_ / slots_of_block * columns_),
      part_shift_(chunk_ / slots_of_block * columns_),
      along_(chunk_) {
  for (int64_t s = 0; s < chunk_; ++s) along_[s] = per * s * width_;
  const int64_t rows = products_.rows, tile = (chunk_ + 2) * rows;
  for (int64_t n = 0; n < inputs_; ++n)
    offset_.push_back(per * (g.image ? source_.offset[n] : n / rows * tile + n % rows));
  if constexpr (per > 1) {
    pack_weights();
    if (g.image) join_images();
  } else if (rule.patches != Patches::raw) {
    moments_.emplace(op, source_, rule.patches);
  }
}

// Weights of two neighbouring inputs. The last pair of an odd run has a weight of 0 for what lies behind it.
template <class P>
void GramOrder<P>::pack_weights() {
  parallel(panels_.count(), [&](int64_t panel) {
    const Sum* w = panels_[panel];
    Cell* to = weights_.get() + panel * int64_t(in_patch_.size()) * width_;
    for (const auto& run : source_.runs)
      for (int64_t n = 0; n < run.length; n += 2, to += width_) {
        const Sum* first = w + (run.first + n) * width_;
        products_.round(first, n + 1 < run.length ? first + width_ : nullptr, width_, to);
      }
  });
}

template <class P>
void GramOrder<P>::join_images() {
  parallel((source_.g.batch + 1) / 2, [&](int64_t two) {
    const Entry* a = entries_of<P>(source_.x) + 2 * two * source_.image;
    const Entry* b = 2 * two + 1 < source_.g.batch ? a + source_.image : nullptr;
    products_.join(a, b, source_.image, joined_.get() + two * source_.image);
  });
}

// A tile's inputs lie a whole sample apart in x [B, N], where nothing prefetches them: gathered once for all panels.
// Two slots of padding keep the tiles off each other's cache sets.
template <class P>
void GramOrder<P>::gather_samples(int64_t first, int64_t count) {
  const int64_t rows = products_.rows, tile = (chunk_ + 2) * rows;
  parallel((count + slots_of_block - 1) / slots_of_block, [&](int64_t part) {
    for (int64_t s = part * slots_of_block; s < std::min(count, (part + 1) * slots_of_block); ++s) {
      const Entry* a = entries_of<P>(source_.x) + per * (first + s) * source_.image;
      const Entry* b = lone(first + s) ? nullptr : a + source_.image;
      Cell* to = joined_.get() + s * rows;
      for (int64_t n = 0; n < inputs_; n += rows, to += tile)
        products_.join(a + n, b ? b + n : nullptr, std::min(rows, inputs_ - n), to);
    }
  });
}

// Number `at` of the chunk that starts at slot `first`, in one of the slot's images.
template <class P>
const typename P::Entry* GramOrder<P>::patch(int64_t first, int64_t at, int64_t image) const {
  const Entry* x = entries_of<P>(source_.x) + bases_[at];
  if (per == 1) return x;
  const int64_t slot = first + at;  // the base counts images as if slots had one
  return x + (slot / per_image_ + (lone(slot) ? 0 : image)) * source_.image;
}

template <class P>
const typename P::Cell* GramOrder<P>::weights(int64_t panel) const {
  if constexpr (per == 1)
    return panels_[panel];
  else
    return weights_.get() + panel * int64_t(in_patch_.size()) * width_;
}

// Responses of a block as sums, by slots, and of each the first image, then the second.
template <class P>
typename P::Sum* GramOrder<P>::kept(int64_t part, int64_t panel) const {
  if constexpr (per == 1)
    return response(panel) + part * block * width_;
  else
    return kept_.get() + (panel * chunk_ * per + part * block) * width_;
}

template <class P>
void GramOrder<P>::respond_block(int64_t part, int64_t panel, int64_t first, int64_t count) {
  const int vectors = panels_.vectors(panel);
  const int64_t start = part * slots_of_block, patches = per * count, column = panel * width_;
  const bool own = per > 1 && !soft_;
  Scratch<Sum> memory(own ? block * width_ : 0);
  Sum* y = own ? memory.get() : kept(part, panel);
  for (int64_t i = 0; i < patches; i += products_.rows) {
    const Entry* rows[8];
    for (int r = 0; r < products_.rows; ++r) {
      const int64_t e = std::min(i + r, patches - 1);
      rows[r] = patch(first, start + e / per, e % per);
    }
    products_.tile(rows, in_patch_.data(), in_patch_.size(), weights(panel), width_, vectors, y + i * width_, width_,
                   false);
  }
  if (vectors * kernel_.lanes < width_)  // the columns behind the last vector stay zero
    for (int64_t i = 0; i < patches; ++i)
      std::fill(y + i * width_ + vectors * kernel_.lanes, y + (i + 1) * width_, Sum(0));
  const Sum* offset = moments_ ? &moments_->offset[first + start] : nullptr;
  const Sum* scale = moments_ ? &moments_->scale[first + start] : nullptr;
  if (offset || rule_.activation != Activation::linear)
    kernel_.respond(y, patches, width_, offset, scale, &panels_.wsum[column], rule_.activation);
  if (panels_.may_overflow(double(source_.bound)) && !finite(y, patches * width_)) overflow_ = true;
  if (!soft_) finish_block(part, panel, first, count, y);
}

// Column sums of the responses y, which become cells.
template <class P>
void GramOrder<P>::finish_block(int64_t part, int64_t panel, int64_t first, int64_t count, Sum* y) {
  const int64_t start = part * slots_of_block, patches = per * count;
  for (int64_t s = 0; per > 1 && s < count; ++s)
    if (lone(first + start + s)) std::fill_n(y + (2 * s + 1) * width_, width_, Sum(0));
  if (by_neuron(rule_.decay) && !soft_) {
    products_.shorten(y, patches * width_);
    kernel_.columns(y, rule_.decay == Decay::diagonal ? y : nullptr, patches, width_,
                    &part_diagonal_[part * columns_ + panel * width_]);
  }
  for (int64_t s = 0; per > 1 && s < count; ++s)
    products_.round(y + 2 * s * width_, y + (2 * s + 1) * width_, width_, response(panel) + (start + s) * width_);
}

// Softmax over the neurons of each patch, whose responses lie in as many panels.
template <class P>
void GramOrder<P>::soften(int64_t part, int64_t first, int64_t count) {
  const int64_t neurons = source_.g.neurons;
  Scratch<Sum> u(columns_), r(columns_);
  Sum* diagonal = &part_diagonal_[part * columns_];
  std::fill(diagonal, diagonal + columns_, Sum(0));
  for (int64_t i = 0; i < per * count; ++i) {
    if (i % per == 1 && lone(first + part * slots_of_block + i / per)) continue;
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      std::copy_n(kept(part, panel) + i * width_, width_, u.get() + panel * width_);
    std::copy_n(u.get(), neurons, r.get());
    if (moments_ && moments_->scale[first + part * slots_of_block + i] == 0)
      std::fill_n(r.get(), neurons, Sum(0));  // of a flat patch nothing is left to learn
    else
      kernel_.soft(r.get(), neurons, Sum(rule_.temperature));
    std::fill(r.get() + neurons, r.get() + columns_, Sum(0));
    products_.shorten(r.get(), neurons);
    for (int64_t j = 0; j < neurons; ++j) diagonal[j] += r[j] * u[j];
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      std::copy_n(r.get() + panel * width_, width_, kept(part, panel) + i * width_);
  }
}

// What is taught of centred and standardised patches: y * scale, and its sum over the offsets.
template <class P>
void GramOrder<P>::scale_and_shift(int64_t part, int64_t panel, int64_t first, int64_t count) {
  if constexpr (per == 1) {
    const int64_t p = first + part * block;
    const Sum* y = response(panel) + part * block * width_;
    Sum* ys = taught(panel) + part * block * width_;
    if (scaled_) kernel_.scale(y, &moments_->scale[p], count, width_, ys);
    Scratch<Sum> moved(count * width_);
    kernel_.scale(ys, &moments_->offset[p], count, width_, moved.get());
    kernel_.columns(moved.get(), nullptr, count, width_, &part_shift_[part * columns_ + panel * width_]);
  }
}

// Responses of slots [first, first + count), and the column sums that the diagonal and the offsets need.
template <class P>
void GramOrder<P>::respond(int64_t first, int64_t count) {
  const int64_t parts = (count + slots_of_block - 1) / slots_of_block;
  const auto size = [&](int64_t part) { return std::min(slots_of_block, count - part * slots_of_block); };
  const auto each_block = [&](const auto& f) {
    parallel(parts * panels_.count(), [&](int64_t item) { f(item % parts, item / parts); });
  };
  source_.bases(first, count, bases_.get());
  each_block([&](int64_t part, int64_t panel) { respond_block(part, panel, first, size(part)); });
  if (overflow_) fail_overflow(op_, finite_responses, sizeof(Sum) == 8);
  if (soft_) parallel(parts, [&](int64_t part) { soften(part, first, size(part)); });
  if (soft_ && per > 1)
    each_block([&](int64_t part, int64_t panel) { finish_block(part, panel, first, size(part), kept(part, panel)); });
  if (moments_) each_block([&](int64_t part, int64_t panel) { scale_and_shift(part, panel, first, size(part)); });
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t j = 0; j < columns_; ++j) {
      if (by_neuron(rule_.decay)) to_.diagonal[j] += part_diagonal_[part * columns_ + j];
      if (moments_) to_.shift[j] += part_shift_[part * columns_ + j];
    }
}

// sum += YᵀX: the tile's rows are inputs, its steps are slots.
template <class P>
void GramOrder<P>::gradient_tile(int64_t panel, int64_t n, int64_t count) {
  const bool direct = per == 1 && source_.g.image;
  const Entry* from = direct ? entries_of<P>(source_.x) : entries_of<P>(joined_.get());
  const Entry* rows[8];
  for (int r = 0; r < products_.rows; ++r) rows[r] = from + offset_[std::min(n + r, inputs_ - 1)];
  products_.tile(rows, steps_.get(), count, taught(panel), width_, panels_.vectors(panel), to_.sum(panel, n), width_,
                 true);
}

// gram[i][k] += sum of y_i y_k, for the vectors of neurons k that reach i or go past it.
template <class P>
void GramOrder<P>::gram_tile(int64_t panel, int64_t i, int64_t count) {
  const int64_t below = std::max<int64_t>(0, i - panel * width_) / products_.lanes, vectors = panels_.vectors(panel);
  if (i >= source_.g.neurons || below >= vectors) return;
  const Entry* rows[8];
  for (int r = 0; r < products_.rows; ++r) {
    const int64_t neuron = std::min(i + r, columns_ - 1);
    rows[r] = entries_of<P>(response(neuron / width_) + neuron % width_);
  }
  const int64_t at = below * products_.lanes;
  products_.tile(rows, along_.data(), count, response(panel) + at, width_, int(vectors - below),
                 to_.gram(panel, i) + at, width_, true);
}

// What a chunk adds to both: one hand-out, for each tile is the work of some microseconds.
template <class P>
void GramOrder<P>::add_products(int64_t count) {
  const int64_t rows = products_.rows, tiles = to_.rows_of_sum / rows, panels = panels_.count();
  const int64_t square = rule_.decay == Decay::triangular ? to_.rows_of_gram / rows * panels : 0;
  parallel(tiles * panels + square, [&](int64_t item) {
    if (item < tiles * panels) return gradient_tile(item / tiles, item % tiles * rows, count);
    item -= tiles * panels;
    gram_tile(item % panels, item / panels * rows, count);
  });
}

template <class P>
void GramOrder<P>::run(const Mask& frozen, Sum* sum) {
  const bool image = source_.g.image;
  for (int64_t first = 0; first < slots_; first += chunk_) {
    const int64_t count = std::min(chunk_, slots_ - first);
    respond(first, count);
    if (!image) gather_samples(first, count);
    for (int64_t s = 0; s < count; ++s) steps_[s] = per * (image ? bases_[s] : s * products_.rows);
    add_products(count);
  }
  to_.finish(frozen, double(source_.bound), sum);
}

template class GramOrder<Singles<float>>;
template class GramOrder<Singles<double>>;
template class GramOrder<Pairs>;

}  // namespace hebbkern
