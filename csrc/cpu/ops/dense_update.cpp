// dense_update: the dense rules, YᵀX − decay W, in the order of computation that is faster.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/ops/gram_order.h"
#include "cpu/ops/grouped.h"
#include "cpu/ops/planes.h"
#include "cpu/ops/residual_order.h"

namespace hebbkern {

// Multiply-adds a weight of the two orders: p more for the residual against k/2 for the triangular product and pk/2n
// for the Gram matrix; the Gram order's other passes over the weights (packing, sums, apply_) weigh as many as 240.
// Without a triangle the arithmetic is alike: few patches do not pay for those passes, nor small weights, in cache, for
// many. Measured for 119 shapes (8 to 4096 patches, 32 to 3000 neurons, 25 to 2304 inputs) a thread with AVX-512: the
// faster order for 93, 93 and 91 % of them (triangular, diagonal, none), at worst 1.27, 1.09 and 1.11 times its time.
bool residual_is_cheaper(const Dense& rule, const Geometry& g) {
  const double p = double(g.patches()), k = double(g.neurons), n = double(g.inputs());
  if (rule.activation == Activation::softmax || p == 0) return false;
  if (rule.decay == Decay::triangular) return p < p * k / n / 2 + k / 2 + 240;
  return p <= 1200 && p * (by_neuron(rule.decay) ? 1 + 8 / n : 1) < 256 + k * n / 1000;
}

const PairUnit* pairs_for(const Tensor& x, const Dense& rule) {
  return x.scalar_type() == ScalarType::BFloat16 && rule.patches == Patches::raw ? pair_unit() : nullptr;
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

template <class P>
static void by_residual(const char* op, ResidualOrder<P> order, const Geometry& g, const Mask& frozen,
                        typename P::Sum* sum) {
  using T = typename P::Sum;
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
  if (g.groups > 1) {
    with_dtype(result, [&](auto, auto tag) {
      using T = decltype(tag);
      *static_cast<T*>(count.mutable_data_ptr()) = T(g.patches());
      if (Planes<T>::suit(g))
        return dense_by_planes<T>(op, x, g, weight, rule, Mask(frozen), static_cast<T*>(sum.mutable_data_ptr()));
      T* to = static_cast<T*>(sum.mutable_data_ptr());
      for (int64_t group = 0; group < g.groups; ++group, to += g.neurons * g.inputs()) {
        const Tensor own = std::get<0>(dense_sums(op, channels_of_group(x, g, group), rows_of_group(weight, g, group),
                                                  geometry_of_group(g), rule, mask_of_group(frozen, g, group)));
        std::copy_n(static_cast<const T*>(own.const_data_ptr()), g.neurons * g.inputs(), to);
      }
    });
    return {sum, count};
  }
  const auto run = [&](const auto& products) {
    using P = std::decay_t<decltype(products)>;
    using T = typename P::Sum;
    *static_cast<T*>(count.mutable_data_ptr()) = T(g.patches());
    T* to = static_cast<T*>(sum.mutable_data_ptr());
    if (residual_is_cheaper(rule, g))
      by_residual(op, ResidualOrder<P>(op, products, x, weight, g, rule), g, Mask(frozen), to);
    else
      GramOrder<P>(op, products, x, weight, g, rule).run(Mask(frozen), to);
  };
  if (const PairUnit* unit = pairs_for(x, rule))
    run(Pairs(*unit));
  else
    with_dtype(result, [&](auto, auto tag) { run(Singles<decltype(tag)>()); });
  return {sum, count};
}

static std::tuple<Tensor, Tensor> dense_update(Tensor x, Tensor weight, std::string activation, std::string decay,
                                               double temperature, std::string patches, Ints stride, Ints padding,
                                               Ints dilation, int64_t groups, OptionalTensor frozen) {
  const char* op = "dense_update";
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation, groups);
  const Dense rule = check_rule(op, activation, decay, temperature, patches);
  check_mask(op, "frozen", frozen, weight.size(0), x);
  return dense_sums(op, x, weight, g, rule, frozen);
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("dense_update.cpu", TORCH_BOX(&dense_update)); }

}  // namespace hebbkern
