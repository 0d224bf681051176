// few: competitions in groups of few neurons, as in depthwise convolutions. A thread owns a patch and sums its
// responses to all neurons of its group in registers, where the tiles of the walk would be nearly empty. The same bits
// as the walk.
#include "cuda/ops/few.cuh"

#include "cuda/device/response.cuh"

namespace hebbkern {
namespace {

constexpr int threads = 256;  // share the taps of as many entries; eight blocks fill a multiprocessor

// Blocks on a multiprocessor: with no limit, ptxas spills registers to fit one more.
template <int EACH, class T>
constexpr int resident = EACH == 1 ? (sizeof(T) == 8 ? 4 : 6) : (sizeof(T) == 8 ? 2 : 3);

// EACH: at least the neurons of a group.
template <int EACH, class S, class T>
__global__ void __launch_bounds__(threads, resident<EACH, T>)
    few_kernel(PatchView<S> view, const T* rows, Known<T> known, Mask eligible, Outcome<T> outcome) {
  __shared__ Tap taps[threads];
  const int number = int(blockIdx.x) * threads + int(threadIdx.x), each = outcome.neurons / view.groups;
  const int patch = number < view.patches ? number : view.patches - 1, first = view.group(patch) * each;
  const Corner corner = view.corner(patch);
  const Terms<T> own = of_patch(known, patch);
  T factor[EACH], response[EACH] = {};
#pragma unroll
  for (int j = 0; j < EACH; ++j) factor[j] = of_neuron(known, j < each ? first + j : first).factor;
  bool blank = true;
  for (int begin = 0; begin < view.inputs; begin += threads) {
    const int left = view.inputs - begin < threads ? view.inputs - begin : threads;
    __syncthreads();  // no thread reads the earlier ones
    if (int(threadIdx.x) < left) taps[threadIdx.x] = view.tap(begin + int(threadIdx.x));
    __syncthreads();
    const T* const weights = rows + int64_t(first) * view.inputs + begin;
#pragma unroll 4  // loads on their way
    for (int n = 0; n < left; ++n) {
      const T x = wide(view.load(corner, taps[n]));
      blank = blank && x == 0;
#pragma unroll
      for (int j = 0; j < EACH; ++j)
        if (j < each)
          response[j] = added(response[j], x * own.factor, weights[int64_t(j) * view.inputs + n] * factor[j]);
    }
  }
  if (number >= view.patches) return;
  if (known.scale) blank = known.scale[patch] == 0;
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const bool contends = j < each && !blank && (!eligible.given() || eligible[first + j]);
    response[j] = contends ? final_response(response[j], own, of_neuron(known, first + j)) : T(NAN);
  }
  for (int rank = 0; rank < outcome.k; ++rank) {
    T best = lowest<T>();
    int winner = EACH;
#pragma unroll
    for (int j = 0; j < EACH; ++j)
      if (response[j] > best) best = response[j], winner = j;
#pragma unroll
    for (int j = 0; j < EACH; ++j)
      if (j == winner) response[j] = T(NAN);
    outcome.write(patch, rank, best, winner < EACH ? first + winner : no_neuron);
  }
}

}  // namespace

template <class S, class T>
void few(const Device& device, const PatchView<S>& view, const T* rows, const Moments<T>& known, const Mask& eligible,
         const Outcome<T>& outcome) {
  const Known<T> moments(known, std::is_same_v<S, T> && known.inverse);
  const dim3 grid(unsigned(cdiv(view.patches, threads)));
  if (outcome.neurons == view.groups)
    launch<few_kernel<1, S, T>>("compete.few", grid, threads, 0, device, view, rows, moments, eligible, outcome);
  else
    launch<few_kernel<most_few, S, T>>("compete.few", grid, threads, 0, device, view, rows, moments, eligible, outcome);
}

#define FEW(S, T)                                                                                       \
  template void few<S, T>(const Device&, const PatchView<S>&, const T*, const Moments<T>&, const Mask&, \
                          const Outcome<T>&);
FEW(float, float)
FEW(double, double)
FEW(BFloat16, float)
FEW(Half, float)
#undef FEW

}  // namespace hebbkern
