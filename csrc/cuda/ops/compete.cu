// compete: the k neurons of each patch's group with the highest responses. Powers and moments first, then the walk; of
// one group on tensor cores, where these are exact or provably find the same winners.
#include "common/compete.h"

#include "cuda/device/values.cuh"
#include "cuda/ops/few.cuh"
#include "cuda/ops/mma.cuh"
#include "cuda/ops/screen.cuh"
#include "cuda/ops/walk.cuh"

namespace hebbkern {
namespace {

constexpr int threads = 256;  // 8 warps, a weight a thread

template <class S, class T>
__global__ void __launch_bounds__(threads) powers_kernel(const S* weights, T* powers, int64_t count, double p) {
  const int64_t at = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (at >= count) return;
  const T weight = T(wide(weights[at]));
  powers[at] = p == 2 ? weight : powered(weight, p);
}

// [K, N] in T: sign(w) |w|^(p - 1).
template <class S, class T>
Tensor powers(const char* op, const Device& device, const Tensor& rows, double p, const Mask& eligible) {
  if (std::is_same_v<S, T> && p == 2) return rows;
  const int64_t count = rows.numel();
  Tensor raised = empty_like(rows, {count}, result_dtype(rows.scalar_type()));
  launch<powers_kernel<S, T>>("compete.powers", dim3(unsigned(cdiv(count, threads))), threads, 0, device,
                              const_pointer<S>(rows), pointer<T>(raised), count, p);
  const int64_t inputs = count / rows.size(0);
  for (int64_t i = 0; values_known() && i < count; ++i)
    if ((!eligible.given() || eligible[i / inputs]) && !std::isfinite(const_pointer<T>(raised)[i]))
      fail_overflow(op, "weight and p must give finite powers", sizeof(T) == 8);
  return raised;
}

// Half types as they are, on tensor cores: these multiply them exactly.
template <class S>
Moments<float> contest_of_halves(const char* op, const Device& device, const Tensor& x, const PatchView<S>& view,
                                 const Tensor& rows, const CompeteSettings& how, const Outcome<float>& outcome) {
  const PatchView<S> weights(const_pointer<S>(rows), outcome.neurons, view.inputs);
  Moments<float> known = moments<S, S, float>(op, device, x, view, how.patches, &weights, how.cosine);
  half_walk<S>(device, x, view, weights.x, known, how.eligible, outcome);
  return known;
}

template <class S, class T>
Moments<T> contest_of_all(const char* op, const Device& device, const Tensor& x, const PatchView<S>& view,
                          const Tensor& rows, const CompeteSettings& how, const Outcome<T>& outcome) {
  if constexpr (sizeof(S) == 2)
    if (how.p == 2 && view.groups == 1 && half_walks(device, how.k))
      return contest_of_halves<S>(op, device, x, view, rows, how, outcome);
  const Tensor raised = powers<S, T>(op, device, rows, how.p, how.eligible);
  const PatchView<T> weights(const_pointer<T>(raised), outcome.neurons, view.inputs);
  Moments<T> known = moments<S, T, T>(op, device, x, view, how.patches, &weights, how.cosine);
  if constexpr (std::is_same_v<S, float>)
    if (view.groups == 1 && worth_screening(how.k)) {
      screened(device, x, view, weights.x, known, how.eligible, outcome);
      return known;
    }
  if (view.groups > 1 && outcome.neurons / view.groups <= most_few)
    few<S, T>(device, view, weights.x, known, how.eligible, outcome);
  else
    walk<S, T>(device, x, view, weights.x, known, how.eligible, outcome);
  return known;
}

}  // namespace

template <class S, class T>
Moments<T> contest(const char* op, const Device& device, const Tensor& x, const PatchView<S>& view, const Tensor& rows,
                   const CompeteSettings& how, int32_t* winners, T* responses, const Keys& keys) {
  const Outcome<T> outcome{winners, responses, keys, how.k, int(rows.size(0))};
  Moments<T> known = contest_of_all<S, T>(op, device, x, view, rows, how, outcome);
  for (int64_t i = 0; values_known() && i < int64_t(view.patches) * how.k; ++i)
    if (!std::isfinite(responses[i])) fail_overflow(op, finite_responses, sizeof(T) == 8);
  return known;
}

#define CONTEST(S, T)                                                                                              \
  template Moments<T> contest<S, T>(const char*, const Device&, const Tensor&, const PatchView<S>&, const Tensor&, \
                                    const CompeteSettings&, int32_t*, T*, const Keys&);
CONTEST(float, float)
CONTEST(double, double)
CONTEST(BFloat16, float)
CONTEST(Half, float)
#undef CONTEST

static std::tuple<Tensor, Tensor> compete(Tensor x, Tensor weight, int64_t k, double p, bool cosine,
                                          std::string patches, Ints stride, Ints padding, Ints dilation, int64_t groups,
                                          OptionalTensor eligible) {
  const char* op = "compete";
  const PatchedLayer layer =
      check_compete(op, x, weight, k, p, cosine, patches, stride, padding, dilation, groups, eligible);
  const Geometry& g = layer.g;
  require_finite(op, "x", x);
  require_finite(op, "weight", weight);
  const Device device(x);
  const ScalarType result = result_dtype(x.scalar_type());
  const int64_t count = g.groups * g.patches();
  Tensor winners = empty_like(x, {count, k}, ScalarType::Int);
  Tensor responses = empty_like(x, {count, k}, result);
  const Tensor rows = torch::stable::contiguous(weight);
  const CompeteSettings how{int(k), p, cosine, layer.patches, Mask(eligible)};
  with_dtype(x.scalar_type(), [&](auto stored, auto computed) {
    using S = decltype(stored);
    using T = decltype(computed);
    contest<S, T>(op, device, x, PatchView<S>(op, x, g), rows, how, pointer<int32_t>(winners), pointer<T>(responses),
                  {});
  });
  return {winners, responses};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("compete.cuda", TORCH_BOX(&compete)); }

}  // namespace hebbkern
