// dense_update: the dense rules, YᵀX − decay W. Responses, weight gradient, Gram matrix and triangular decay are the same
// register tile with its operands exchanged; the Gram matrix and its product stop at the diagonal's panel.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/ops/paired_residual.h"

namespace hebbkern {

// Patches whose responses are kept at once, whatever the number of threads: sums are added chunk by chunk. Long, for
// each chunk reads and writes the whole sum; but a panel's responses stay in L2 (1536 x 48 x 4 bytes), all of them in
// 16 MiB.
static int64_t chunk_of(int64_t patches, int64_t columns, int64_t size) {
  const int64_t fit = (int64_t(1) << 24) / (columns * size) / block * block;
  return std::min(round_up(std::max<int64_t>(patches, 1), block), std::clamp<int64_t>(fit, block, 1536));
}

// Multiply-adds a weight of the two orders: p more for the residual against k/2 for the triangular product and pk/2n
// for the Gram matrix; the Gram order's other passes over the weights (packing, sums, apply_) weigh as many as 240.
// Without a triangle the arithmetic is alike: few patches do not pay for those passes, nor small weights, in cache, for
// many. Measured for 119 shapes (8 to 4096 patches, 32 to 3000 neurons, 25 to 2304 inputs) a thread with AVX-512: the
// faster order for 93, 93 and 91 % of them (triangular, diagonal, none), at worst 1.27, 1.09 and 1.11 times its time.
bool residual_is_cheaper(const Dense& rule, const Geometry& g) {
  const double p = double(g.patches()), k = double(g.neurons), n = double(g.inputs());
  if (rule.activation == Activation::softmax || p == 0) return false;
  if (rule.decay == Decay::triangular) return p < p * k / n / 2 + k / 2 + 240;
  return p <= 1200 && p * (rule.decay == Decay::diagonal ? 1 + 8 / n : 1) < 256 + k * n / 1000;
}

template <class T>
Sanger<T>::Sanger(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g, const Dense& rule)
    : op_(op),
      rule_(rule),
      source_(op, x, g),
      to_(op, g, weight, rule),
      chunk_(chunk_of(g.patches(), columns_, sizeof(T))),
      scaled_(rule.patches == Patches::standardised),
      y_(columns_ * chunk_),
      ys_(scaled_ ? columns_ * chunk_ : 0),
      xt_(g.image ? 0 : to_.rows_of_sum * (chunk_ + 2)),
      bases_(chunk_),
      steps_(chunk_),
      part_diagonal_(chunk_ / block * columns_),
      part_shift_(chunk_ / block * columns_),
      along_(chunk_) {
  for (int64_t p = 0; p < chunk_; ++p) along_[p] = p * width_;
  if (rule.patches != Patches::raw) moments_.emplace(op, source_, rule.patches);
}

template <class T>
void Sanger<T>::respond_block(int64_t part, int64_t panel, int64_t first, int64_t count) {
  const int vectors = panels_.vectors(panel);
  T* y = response(panel) + part * block * width_;
  for (int64_t i = 0; i < count; i += kernel_.rows) {
    const T* rows[8];
    for (int r = 0; r < kernel_.rows; ++r) rows[r] = source_.x + bases_[part * block + std::min(i + r, count - 1)];
    kernel_.tile(rows, source_.offset.data(), inputs_, panels_[panel], width_, vectors, y + i * width_, width_, false);
  }
  if (vectors * kernel_.lanes < width_)  // the columns behind the last vector stay zero
    for (int64_t i = 0; i < count; ++i) std::fill(y + i * width_ + vectors * kernel_.lanes, y + (i + 1) * width_, T(0));
  const int64_t p = first + part * block, column = panel * width_;
  const T* offset = moments_ ? &moments_->offset[p] : nullptr;
  const T* scale = moments_ ? &moments_->scale[p] : nullptr;
  if (offset || rule_.activation != Activation::linear)
    kernel_.respond(y, count, width_, offset, scale, &panels_.wsum[column], rule_.activation);
  if (panels_.may_overflow(double(source_.bound)) && !finite(y, count * width_)) overflow_ = true;
  if (rule_.decay == Decay::diagonal && rule_.activation != Activation::softmax)
    kernel_.columns(y, y, count, width_, &part_diagonal_[part * columns_ + column]);
}

// Softmax over the neurons of each patch, whose responses lie in as many panels.
template <class T>
void Sanger<T>::soften(int64_t part, int64_t count) {
  const int64_t neurons = source_.g.neurons;
  Scratch<T> u(columns_), r(columns_);
  T* diagonal = &part_diagonal_[part * columns_];
  std::fill(diagonal, diagonal + columns_, T(0));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = (part * block + i) * width_;
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      std::copy_n(response(panel) + at, width_, u.get() + panel * width_);
    std::copy_n(u.get(), neurons, r.get());
    kernel_.soft(r.get(), neurons, T(rule_.temperature));
    std::fill(r.get() + neurons, r.get() + columns_, T(0));
    for (int64_t j = 0; j < neurons; ++j) diagonal[j] += r[j] * u[j];
    for (int64_t panel = 0; panel < panels_.count(); ++panel)
      std::copy_n(r.get() + panel * width_, width_, response(panel) + at);
  }
}

// Responses of patches [first, first + count), and the column sums that the diagonal and the offsets need.
template <class T>
void Sanger<T>::respond(int64_t first, int64_t count) {
  const int64_t parts = (count + block - 1) / block;
  const auto size = [&](int64_t part) { return std::min(block, count - part * block); };
  source_.bases(first, count, bases_.get());
  parallel(parts * panels_.count(),
           [&](int64_t item) { respond_block(item % parts, item / parts, first, size(item % parts)); });
  if (overflow_) fail_overflow(op_, finite_responses, sizeof(T) == 8);
  if (rule_.activation == Activation::softmax) parallel(parts, [&](int64_t part) { soften(part, size(part)); });
  if (moments_)
    parallel(parts * panels_.count(), [&](int64_t item) {
      const int64_t part = item % parts, panel = item / parts, rows = size(part), p = first + part * block;
      const T* y = response(panel) + part * block * width_;
      T* ys = taught(panel) + part * block * width_;
      if (scaled_) kernel_.scale(y, &moments_->scale[p], rows, width_, ys);
      Scratch<T> moved(rows * width_);
      kernel_.scale(ys, &moments_->offset[p], rows, width_, moved.get());
      kernel_.columns(moved.get(), nullptr, rows, width_, &part_shift_[part * columns_ + panel * width_]);
    });
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t j = 0; j < columns_; ++j) {
      if (rule_.decay == Decay::diagonal) to_.diagonal[j] += part_diagonal_[part * columns_ + j];
      if (moments_) to_.shift[j] += part_shift_[part * columns_ + j];
    }
}

// A tile's inputs lie a whole sample apart in x [B, N], where nothing prefetches them: gathered once for all panels.
// Two patches of padding keep the tiles off each other's cache sets.
template <class T>
void Sanger<T>::gather_inputs(int64_t count) {
  const int64_t rows = kernel_.rows, tile = (chunk_ + 2) * rows;
  parallel((count + block - 1) / block, [&](int64_t part) {
    for (int64_t p = part * block; p < std::min(count, (part + 1) * block); ++p) {
      const T* x = source_.x + bases_[p];
      T* to = xt_.get() + p * rows;
      for (int64_t n = 0; n < to_.rows_of_sum; n += rows, to += tile)
        for (int64_t r = 0; r < rows; ++r) to[r] = n + r < inputs_ ? x[n + r] : T(0);
    }
  });
}

// sum += YᵀX: the tile's rows are inputs, its steps are patches.
template <class T>
void Sanger<T>::gradient_tile(int64_t panel, int64_t n, int64_t count) {
  const T* rows[8];
  for (int r = 0; r < kernel_.rows; ++r)
    rows[r] =
        source_.g.image ? source_.x + source_.offset[std::min(n + r, inputs_ - 1)] : xt_.get() + n * (chunk_ + 2) + r;
  kernel_.tile(rows, steps_.get(), count, taught(panel), width_, panels_.vectors(panel), to_.sum(panel, n), width_,
               true);
}

// gram[i][k] += sum of y_i y_k, for the vectors of neurons k that reach i or go past it.
template <class T>
void Sanger<T>::gram_tile(int64_t panel, int64_t i, int64_t count) {
  const int64_t below = std::max<int64_t>(0, i - panel * width_) / kernel_.lanes, vectors = panels_.vectors(panel);
  if (i >= source_.g.neurons || below >= vectors) return;
  const T* rows[8];
  for (int r = 0; r < kernel_.rows; ++r) {
    const int64_t neuron = std::min(i + r, columns_ - 1);
    rows[r] = response(neuron / width_) + neuron % width_;
  }
  const int64_t at = below * kernel_.lanes;
  kernel_.tile(rows, along_.data(), count, response(panel) + at, width_, int(vectors - below), to_.gram(panel, i) + at,
               width_, true);
}

// What a chunk adds to both: one hand-out, for each tile is the work of some microseconds.
template <class T>
void Sanger<T>::add_products(int64_t count) {
  const bool gathered = !source_.g.image;
  if (gathered) gather_inputs(count);
  for (int64_t p = 0; p < count; ++p) steps_[p] = gathered ? p * kernel_.rows : bases_[p];
  const int64_t rows = kernel_.rows, tiles = to_.rows_of_sum / rows, panels = panels_.count();
  const int64_t square = rule_.decay == Decay::triangular ? to_.rows_of_gram / rows * panels : 0;
  parallel(tiles * panels + square, [&](int64_t item) {
    if (item < tiles * panels) return gradient_tile(item / tiles, item % tiles * rows, count);
    item -= tiles * panels;
    gram_tile(item % panels, item / panels * rows, count);
  });
}

template <class T>
void Sanger<T>::run(const Mask& frozen, T* sum) {
  const int64_t patches = source_.g.patches();
  for (int64_t first = 0; first < patches; first += chunk_) {
    const int64_t count = std::min(chunk_, patches - first);
    respond(first, count);
    add_products(count);
  }
  to_.finish(frozen, double(source_.bound), sum);
}

Dense check_rule(const char* op, const std::string& activation, const std::string& decay, double temperature,
                 Patches patches) {
  const Dense rule{check_activation(op, activation), check_decay(op, decay), temperature, patches};
  if (rule.activation == Activation::softmax && rule.decay == Decay::triangular)
    fail(op, "decay must be \"diagonal\" or \"none\" with softmax, got \"triangular\"");
  if (!(float(temperature) > 0) || std::isinf(1 / float(temperature)) || std::isinf(temperature))
    fail(op, "temperature must be a finite number above 0, got ", temperature);
  return rule;
}

// Sums as a tensor like weight.
template <class T>
struct Sums : Sink<T> {
  template <class Order>
  Sums(const Order& order, int64_t inputs, const Mask& frozen, T* sum) : frozen(frozen), inputs(inputs), sum(sum) {
    for (int64_t n = 0; n < inputs; ++n) to_weight.push_back(order.in_weight(n));
    as_it_lies = in_order(to_weight);
  }
  void take(int64_t first, int64_t neurons, int64_t input, int64_t count, const T* negated, int64_t step) override {
    for (int64_t j = first; j < first + neurons; ++j, negated += step) {
      T* to = sum + j * inputs;
      const bool skip = frozen[j];
      if (as_it_lies && !adds && !skip)
        for (int64_t n = 0; n < count; ++n) to[input + n] = -negated[n];
      else
        for (int64_t n = 0; n < count; ++n) {
          T& entry = to[to_weight[input + n]];
          entry = skip ? T(0) : (adds ? entry : T(0)) - negated[n];
        }
    }
  }
  const Mask frozen;
  const int64_t inputs;
  T* sum;
  std::vector<int64_t> to_weight;
  bool as_it_lies, adds = false;
};

template <class T, class Order>
static void by_residual(const char* op, Order order, const Geometry& g, const Mask& frozen, T* sum) {
  Sums<T> sink(order, g.inputs(), frozen, sum);
  const int64_t size = g.neurons * g.inputs();
  if (order.done()) std::fill_n(sum, size, T(0));
  for (; !order.done(); sink.adds = true) {
    order.respond();
    order.walk(sink);
  }
  if (!(order.largest_sum() < std::numeric_limits<T>::max()) && !finite(sum, size))
    fail_overflow(op, finite_sums, sizeof(T) == 8);
}

std::tuple<Tensor, Tensor> dense_sums(const char* op, const Tensor& x, const Tensor& weight, const Geometry& g,
                                      const Dense& rule, const OptionalTensor& frozen) {
  const ScalarType result = result_dtype(x.scalar_type());
  Tensor sum = empty(Ints(weight.sizes().begin(), weight.sizes().end()), result), count = empty({1}, result);
  const Mask mask(frozen);
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    *static_cast<T*>(count.mutable_data_ptr()) = T(g.patches());
    T* to = static_cast<T*>(sum.mutable_data_ptr());
    const bool few = residual_is_cheaper(rule, g);
    if constexpr (std::is_same_v<T, float>)
      if (const PairUnit* unit = pairs_for(x, rule))
        return few ? by_residual<T>(op, PairedResidual(op, *unit, x, weight, g, rule), g, mask, to)
                   : paired_sums(op, *unit, x, weight, g, rule, mask, to);
    few ? by_residual<T>(op, Residual<T>(op, x, weight, g, rule), g, mask, to)
        : Sanger<T>(op, x, weight, g, rule).run(mask, to);
  });
  return {sum, count};
}

static std::tuple<Tensor, Tensor> dense_update(Tensor x, Tensor weight, std::string activation, std::string decay,
                                         double temperature, std::string patches, Ints stride, Ints padding,
                                         Ints dilation, OptionalTensor frozen) {
  const char* op = "dense_update";
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  const Dense rule = check_rule(op, activation, decay, temperature, check_patches(op, patches));
  check_mask(op, "frozen", frozen, g.neurons, x);
  return dense_sums(op, x, weight, g, rule, frozen);
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("dense_update.cpu", TORCH_BOX(&dense_update)); }

}  // namespace hebbkern
