// dense_update of bfloat16 inputs and weights on units that multiply two pairs of them at once: responses by pairs of a
// patch's inputs; YᵀX and YᵀY by pairs of patches, the same place in two images (or two samples of a linear layer).
//
// What it loses: y is summed in float32, then rounded to bfloat16, y' = y (1 + e), |e| <= 2^-8, for all that follows.
// So YᵀX is off by at most 2^-8 |Y|ᵀ|X|, YᵀY by (2^-7 + 2^-16) |Y|ᵀ|Y|, besides float32's roundings; weights and inputs
// are bfloat16 already, and the decay's product with W is float32's.
#include <algorithm>

#include "cpu/ops/dense_update.h"

namespace hebbkern {

// A slot is one place in two images; slots that a thread responds to at once: `block` patches.
constexpr int64_t slots_of_block = block / 2;

// As many patches as chunks of float32 have, for the same reasons.
static int64_t chunk_of(int64_t slots, int64_t columns) {
  const int64_t fit = (int64_t(1) << 24) / (columns * int64_t(sizeof(Pair))) / slots_of_block * slots_of_block;
  return std::min(round_up(std::max<int64_t>(slots, 1), slots_of_block), std::clamp<int64_t>(fit, slots_of_block, 768));
}

static int64_t pairs_of_patch(const Source<BFloat16>& source) {
  int64_t pairs = 0;
  for (const auto& run : source.runs) pairs += (run.length + 1) / 2;
  return pairs;
}

class Paired {
 public:
  Paired(const char* op, const PairUnit& unit, const Tensor& x, const Tensor& weight, const Geometry& g,
         const Dense& rule);
  void run(const Mask& frozen, float* sum);

 private:
  void pack_weights();
  void join_images();
  void join_samples();
  void respond(int64_t first, int64_t count);
  void respond_block(int64_t part, int64_t panel, int64_t first, int64_t count);
  void finish_block(int64_t part, int64_t panel, int64_t first, int64_t count, float* y);
  void soften(int64_t part, int64_t first, int64_t count);
  void gradient_tile(int64_t panel, int64_t n, int64_t count);
  void gram_tile(int64_t panel, int64_t i, int64_t count);
  void add_products(int64_t count);

  // Whether the second image of this slot is missing: its responses are zeros.
  bool lone(int64_t slot) const { return slot >= source_.g.batch / 2 * per_image_; }
  Pair* response(int64_t panel) const { return pairs_.get() + panel * chunk_ * width_; }
  float* kept(int64_t part, int64_t panel) const { return kept_.get() + (panel * chunk_ * 2 + part * block) * width_; }
  static const uint16_t* bits(const void* numbers) { return static_cast<const uint16_t*>(numbers); }

  const char* const op_;
  const PairUnit& unit_;
  const Kernels<float>& kernel_ = kernels<float>();
  const Dense rule_;
  const Source<BFloat16> source_;
  Totals<float> to_;
  const Panels<float>& panels_ = to_.panels;
  const int64_t width_ = to_.width, columns_ = to_.columns, inputs_ = to_.inputs;
  const int64_t per_image_, slots_;
  const int64_t chunk_;            // slots whose responses are kept at once
  const bool soft_;                // responses of all panels are needed before any is final
  std::vector<int64_t> in_patch_;  // pairs of a patch's inputs: where they lie from its base
  Scratch<Pair> weights_;          // [panels][pairs of inputs][width]
  Scratch<Pair> joined_;           // images two by two; of samples [inputs / rows of a tile][slots + 2][rows of a tile]
  std::vector<int64_t> offset_;    // [inputs], from a slot's base in there, as steps_, from slot to slot
  Scratch<int64_t> bases_, steps_;
  Scratch<Pair> pairs_;         // [panels][chunk][width], the responses
  Scratch<float> kept_;         // [panels][2 chunk][width], before the softmax
  Scratch<float> part_;         // [blocks of a chunk][columns], sums of r u
  std::vector<int64_t> along_;  // steps from slot to slot of a panel's responses
  std::atomic<bool> overflow_{false};
};

Paired::Paired(const char* op, const PairUnit& unit, const Tensor& x, const Tensor& weight, const Geometry& g,
               const Dense& rule)
    : op_(op),
      unit_(unit),
      rule_(rule),
      source_(op, x, g),
      to_(op, g, weight, rule),
      per_image_(g.per_image()),
      slots_((g.batch + 1) / 2 * per_image_),
      chunk_(chunk_of(slots_, columns_)),
      soft_(rule.activation == Activation::softmax),
      weights_(panels_.count() * pairs_of_patch(source_) * width_),
      joined_(g.image ? (g.batch + 1) / 2 * source_.image : to_.rows_of_sum * (slots_ + 2)),
      bases_(chunk_),
      steps_(chunk_),
      pairs_(panels_.count() * chunk_ * width_),
      kept_(soft_ ? panels_.count() * chunk_ * 2 * width_ : 0),
      part_(chunk_ / slots_of_block * columns_),
      along_(chunk_) {
  for (int64_t s = 0; s < chunk_; ++s) along_[s] = 2 * s * width_;
  pack_weights();
  g.image ? join_images() : join_samples();
}

// Weights of two neighbouring inputs. The last pair of an odd run has a weight of 0 for what lies behind it.
void Paired::pack_weights() {
  for (const auto& run : source_.runs)
    for (int64_t n = 0; n < run.length; n += 2) in_patch_.push_back(source_.offset[run.first] + n);
  const int64_t steps = in_patch_.size();
  parallel(panels_.count(), [&](int64_t panel) {
    const float* w = panels_[panel];
    Pair* to = weights_.get() + panel * steps * width_;
    for (const auto& run : source_.runs)
      for (int64_t n = 0; n < run.length; n += 2, to += width_) {
        const float* first = w + (run.first + n) * width_;
        unit_.round(first, n + 1 < run.length ? first + width_ : nullptr, width_, to);
      }
  });
}

void Paired::join_images() {
  for (int64_t at : source_.offset) offset_.push_back(2 * at);
  parallel((source_.g.batch + 1) / 2, [&](int64_t two) {
    const uint16_t* a = bits(source_.x) + 2 * two * source_.image;
    Pair* to = joined_.get() + two * source_.image;
    const uint16_t* b = 2 * two + 1 < source_.g.batch ? a + source_.image : nullptr;
    unit_.join(a, b, source_.image, to);
  });
}

// A tile's inputs lie a whole sample apart in x [B, N], where nothing prefetches them. Two slots of padding keep the
// tiles off each other's cache sets.
void Paired::join_samples() {
  const int64_t rows = unit_.rows, tile = (slots_ + 2) * rows;
  for (int64_t n = 0; n < inputs_; ++n) offset_.push_back(2 * (n / rows * tile + n % rows));
  parallel((slots_ + slots_of_block - 1) / slots_of_block, [&](int64_t part) {
    for (int64_t s = part * slots_of_block; s < std::min(slots_, (part + 1) * slots_of_block); ++s) {
      const uint16_t* a = bits(source_.x) + 2 * s * source_.image;
      const uint16_t* b = lone(s) ? nullptr : a + source_.image;
      Pair* to = joined_.get() + s * rows;
      for (int64_t n = 0; n < inputs_; n += rows, to += tile)
        unit_.join(a + n, b ? b + n : nullptr, std::min(rows, inputs_ - n), to);
    }
  });
}

void Paired::respond_block(int64_t part, int64_t panel, int64_t first, int64_t count) {
  const int vectors = panels_.vectors(panel);
  Scratch<float> own(soft_ ? 0 : block * width_);
  float* y = soft_ ? kept(part, panel) : own.get();
  const int64_t steps = in_patch_.size(), start = part * slots_of_block;
  for (int64_t i = 0; i < 2 * count; i += unit_.rows) {
    const uint16_t* rows[8];
    for (int r = 0; r < unit_.rows; ++r) {  // by slots, and of each the first image, then the second
      const int64_t e = std::min(i + r, 2 * count - 1), at = start + e / 2, slot = first + at;
      const int64_t image = slot / per_image_ + (lone(slot) ? 0 : e % 2);
      rows[r] = bits(source_.x) + bases_[at] + image * source_.image;
    }
    unit_.tile(rows, in_patch_.data(), steps, weights_.get() + panel * steps * width_, width_, vectors, y + i * width_,
               width_, false);
  }
  if (vectors * kernel_.lanes < width_)  // the columns behind the last vector stay zero
    for (int64_t i = 0; i < 2 * count; ++i)
      std::fill(y + i * width_ + vectors * kernel_.lanes, y + (i + 1) * width_, 0.0f);
  if (rule_.activation != Activation::linear)
    kernel_.respond(y, 2 * count, width_, nullptr, nullptr, nullptr, rule_.activation);
  if (panels_.may_overflow(double(source_.bound)) && !finite(y, 2 * count * width_)) overflow_ = true;
  if (!soft_) finish_block(part, panel, first, count, y);
}

// Responses [2 count][width] become pairs.
void Paired::finish_block(int64_t part, int64_t panel, int64_t first, int64_t count, float* y) {
  for (int64_t s = 0; s < count; ++s)
    if (lone(first + part * slots_of_block + s)) std::fill_n(y + (2 * s + 1) * width_, width_, 0.0f);
  if (rule_.decay == Decay::diagonal && !soft_) {
    unit_.shorten(y, 2 * count * width_);
    kernel_.columns(y, y, 2 * count, width_, &part_[part * columns_ + panel * width_]);
  }
  Pair* to = response(panel) + part * slots_of_block * width_;
  for (int64_t s = 0; s < count; ++s)
    unit_.round(y + 2 * s * width_, y + (2 * s + 1) * width_, width_, to + s * width_);
}

// Softmax over the neurons of each patch, whose responses lie in as many panels.
void Paired::soften(int64_t part, int64_t first, int64_t count) {
  const int64_t neurons = source_.g.neurons;
  Scratch<float> u(columns_), r(columns_);
  float* diagonal = &part_[part * columns_];
  std::fill(diagonal, diagonal + columns_, 0.0f);
  for (int64_t i = 0; i < 2 * count; ++i) {
    if (i % 2 == 1 && lone(first + part * slots_of_block + i / 2)) continue;
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      std::copy_n(kept(part, panel) + i * width_, width_, u.get() + panel * width_);
    std::copy_n(u.get(), neurons, r.get());
    kernel_.soft(r.get(), neurons, float(rule_.temperature));
    std::fill(r.get() + neurons, r.get() + columns_, 0.0f);
    unit_.shorten(r.get(), neurons);
    for (int64_t j = 0; j < neurons; ++j) diagonal[j] += r[j] * u[j];
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      std::copy_n(r.get() + panel * width_, width_, kept(part, panel) + i * width_);
  }
}

// Responses of slots [first, first + count), and the column sums that the diagonal needs.
void Paired::respond(int64_t first, int64_t count) {
  const int64_t parts = (count + slots_of_block - 1) / slots_of_block;
  const auto size = [&](int64_t part) { return std::min(slots_of_block, count - part * slots_of_block); };
  source_.bases(first, count, bases_.get());
  parallel(parts * panels_.count(),
           [&](int64_t item) { respond_block(item % parts, item / parts, first, size(item % parts)); });
  if (overflow_) fail_overflow(op_, finite_responses, false);
  if (soft_) {
    parallel(parts, [&](int64_t part) { soften(part, first, size(part)); });
    parallel(parts * panels_.count(), [&](int64_t item) {
      const int64_t part = item % parts, panel = item / parts;
      finish_block(part, panel, first, size(part), kept(part, panel));
    });
  }
  for (int64_t part = 0; rule_.decay == Decay::diagonal && part < parts; ++part)
    for (int64_t j = 0; j < columns_; ++j) to_.diagonal[j] += part_[part * columns_ + j];
}

// sum += YᵀX: the tile's rows are inputs, its steps are slots.
void Paired::gradient_tile(int64_t panel, int64_t n, int64_t count) {
  const uint16_t* rows[8];
  for (int r = 0; r < unit_.rows; ++r) rows[r] = bits(joined_.get()) + offset_[std::min(n + r, inputs_ - 1)];
  unit_.tile(rows, steps_.get(), count, response(panel), width_, panels_.vectors(panel), to_.sum(panel, n), width_,
             true);
}

// gram[i][k] += sum of y_i y_k, for the vectors of neurons k that reach i or go past it.
void Paired::gram_tile(int64_t panel, int64_t i, int64_t count) {
  const int64_t below = std::max<int64_t>(0, i - panel * width_) / unit_.lanes, vectors = panels_.vectors(panel);
  if (i >= source_.g.neurons || below >= vectors) return;
  const uint16_t* rows[8];
  for (int r = 0; r < unit_.rows; ++r) {
    const int64_t neuron = std::min(i + r, columns_ - 1);
    rows[r] = bits(response(neuron / width_) + neuron % width_);
  }
  const int64_t at = below * unit_.lanes;
  unit_.tile(rows, along_.data(), count, response(panel) + at, width_, int(vectors - below), to_.gram(panel, i) + at,
             width_, true);
}

// What a chunk adds to both: one hand-out, for each tile is the work of some microseconds.
void Paired::add_products(int64_t count) {
  const int64_t rows = unit_.rows, tiles = to_.rows_of_sum / rows, panels = panels_.count();
  const int64_t square = rule_.decay == Decay::triangular ? to_.rows_of_gram / rows * panels : 0;
  parallel(tiles * panels + square, [&](int64_t item) {
    if (item < tiles * panels) return gradient_tile(item / tiles, item % tiles * rows, count);
    item -= tiles * panels;
    gram_tile(item % panels, item / panels * rows, count);
  });
}

void Paired::run(const Mask& frozen, float* sum) {
  const bool image = source_.g.image;
  for (int64_t first = 0; first < slots_; first += chunk_) {
    const int64_t count = std::min(chunk_, slots_ - first);
    respond(first, count);
    for (int64_t s = 0; s < count; ++s) steps_[s] = 2 * (image ? bases_[s] : (first + s) * unit_.rows);
    add_products(count);
  }
  to_.finish(frozen, double(source_.bound), sum);
}

const PairUnit* pairs_for(const Tensor& x, const Dense& rule) {
  return x.scalar_type() == ScalarType::BFloat16 && rule.patches == Patches::raw ? pair_unit() : nullptr;
}

void paired_sums(const char* op, const PairUnit& unit, const Tensor& x, const Tensor& weight, const Geometry& g,
                 const Dense& rule, const Mask& frozen, float* to) {
  Paired(op, unit, x, weight, g, rule).run(frozen, to);
}

}  // namespace hebbkern
