// dense_step_: dense_update and apply_ in one. With few patches, and where a bound proves that every new weight is
// finite, each block's step is taken while its weights are in L2, and there is no tensor of sums; else sums, then
// apply_.
#include <cmath>

#include "cpu/ops/apply.h"
#include "cpu/ops/residual_order.h"

namespace hebbkern {

static constexpr const char* op = "dense_step_";

template <class S, class T>
struct StepInPlace : Sink<T> {
  StepInPlace(S* weight, int64_t row, const RowStep<T>& step, const Mask& frozen)
      : weight(weight), row(row), row_step(step), frozen(frozen) {}

  void take(int64_t first, int64_t neurons, int64_t input, int64_t count, const T* negated, int64_t step) override {
    Scratch<T> buffer(std::is_same_v<S, T> ? 0 : count);
    for (int64_t j = first; j < first + neurons; ++j, negated += step) {
      if (frozen[j]) continue;
      S* w = weight + j * row + input;
      bool moved = false;
      if constexpr (std::is_same_v<S, T>) {
        kernel.step(w, negated, count, row_step, w, &moved);
        continue;
      }
      for (int64_t n = 0; n < count; ++n) buffer[n] = T(w[n]);
      kernel.step(buffer.get(), negated, count, row_step, buffer.get(), &moved);
      for (int64_t n = 0; n < count; ++n) w[n] = S(buffer[n]);
    }
  }

  const Kernels<T>& kernel = kernels<T>();
  S* const weight;
  const int64_t row;
  const RowStep<T> row_step;
  const Mask frozen;
};

// False, with the weight as it was, where the step cannot be proven safe beforehand.
template <class S, class P>
static bool step_at_once(ResidualOrder<P> order, const Tensor& weight, const Geometry& g, double lr,
                         const OptionalTensor& frozen) {
  using T = typename P::Sum;
  const bool apart = order.in_order() && weight.stride(0) >= g.inputs();  // else apply_ looks closer
  if (!apart || !order.one_chunk() || order.done()) return false;
  order.respond();
  // Every number on the way in T's range, every new weight in that of the stored dtype.
  const double range = std::is_same_v<T, double> ? 1e307 : 1e37, limit = std::is_same_v<S, Half> ? 3e4 : range;
  if (!((1 + std::abs(lr)) * (1 + order.largest_sum()) < range)) return false;
  if (!(order.heaviest() + std::abs(lr) * order.largest_sum() / double(g.patches()) < limit)) return false;
  const RowStep<T> row_step{0, 1 / T(g.patches()), -T(lr), 0};  // the sums come negated
  StepInPlace<S, T> sink(static_cast<S*>(weight.mutable_data_ptr()), weight.stride(0), row_step, Mask(frozen));
  order.walk(sink);
  return true;
}

static Dense check_arguments(const Tensor& weight, const Tensor& x, const std::string& activation,
                             const std::string& decay, double lr, const std::string& patches, const Geometry& g,
                             const OptionalTensor& frozen) {
  if (activation != "linear" && activation != "relu" && activation != "tanh")
    fail(op, "activation must be \"linear\", \"relu\" or \"tanh\", got \"", activation, "\"");
  check_rate(op, lr);
  const Dense rule = check_rule(op, activation, decay, 1, patches);
  check_mask(op, "frozen", frozen, weight.size(0), x);
  check_apart(op, weight);
  return rule;
}

static void dense_step_(Tensor weight, Tensor x, std::string activation, std::string decay, double lr,
                        std::string patches, Ints stride, Ints padding, Ints dilation, int64_t groups,
                        OptionalTensor frozen) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation, groups);
  const Dense rule = check_arguments(weight, x, activation, decay, lr, patches, g, frozen);
  bool done = false;
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    using S = decltype(stored);
    using T = decltype(tag);
    if (g.groups > 1 || !residual_is_cheaper(rule, g)) return;
    const PairUnit* unit = pairs_for(x, rule);
    done =
        unit ? step_at_once<S>(ResidualOrder<Pairs>(op, Pairs(*unit), x, weight, g, rule), weight, g, lr, frozen)
             : step_at_once<S>(ResidualOrder<Singles<T>>(op, Singles<T>(), x, weight, g, rule), weight, g, lr, frozen);
  });
  if (done) return;
  const auto [sum, count] = dense_sums(op, x, weight, g, rule, frozen);
  apply_(weight, sum, std::nullopt, count, lr, "none", 0, frozen);
}

// A step of float32 weights by what they are in x's bfloat16. False, with the weight as it was, where dense_update of
// weights that were rounded in memory, and then apply_, are faster or safer.
static bool rounded_dense_step_(Tensor weight, Tensor x, std::string activation, std::string decay, double lr,
                                std::string patches, Ints stride, Ints padding, Ints dilation, int64_t groups,
                                OptionalTensor frozen) {
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation, groups, ScalarType::Float);
  const Dense rule = check_arguments(weight, x, activation, decay, lr, patches, g, frozen);
  const PairUnit* unit = pairs_for(x, rule);
  return unit && g.groups == 1 && residual_is_cheaper(rule, g) &&
         step_at_once<float>(ResidualOrder<Pairs>(op, Pairs(*unit), x, weight, g, rule), weight, g, lr, frozen);
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) {
  m.impl("dense_step_.cpu", TORCH_BOX(&dense_step_));
  m.impl("_rounded_dense_step_", TORCH_BOX(&rounded_dense_step_));
}

}  // namespace hebbkern
