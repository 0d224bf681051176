// accumulate: entries get the key of the neuron they teach, are grouped by it and added up; lists that were cut are put
// together.
#include "common/accumulate.h"

#include "cuda/device/lists.cuh"
#include "cuda/device/values.cuh"
#include "cuda/ops/moments.cuh"

namespace hebbkern {
namespace {

constexpr int threads = 256;  // eight blocks fill a multiprocessor

struct Named {
  const void* names;
  bool long_names;  // int64
  int64_t down, right;
  bool labels;  // one an image
  int ranks, neurons, of_a_group;
  Mask frozen;
};

template <class T>
__device__ __forceinline__ bool finite(T a) {
  return (a < 0 ? -a : a) < T(INFINITY);
}

// The key of a rank of a patch that is not blank.
template <class S, class T>
__device__ __forceinline__ int key_of(const Named& named, const PatchView<S>& view, const Assignments<T>& assignments,
                                      int patch, int rank) {
  const int group = view.group(patch), within = patch - group * view.of_a_group();
  const int64_t spot = (named.labels ? view.image_of(within) : patch) * named.down + rank * named.right;
  const int64_t neuron = named.long_names ? static_cast<const int64_t*>(named.names)[spot]
                                          : static_cast<const int32_t*>(named.names)[spot];
  const T c = coefficient_of(assignments, patch, rank, patch * named.ranks + rank);
  const int64_t first = int64_t(group) * named.of_a_group;
  const bool own = neuron >= first && neuron < first + named.of_a_group;
  const bool other = named.labels && neuron >= 0 && neuron < named.neurons;
  if ((neuron != -1 && !own && !other) || !finite(c) || !finite(decay_of(assignments, patch, rank)))
    return named.neurons + 1;
  return !own || c == 0 || named.frozen[neuron] ? named.neurons : int(neuron);
}

// A warp a patch, which reads the patch until it finds an entry that is not 0, if any neuron is to learn from it.
template <class S, class T>
__global__ void __launch_bounds__(threads)
    name_kernel(PatchView<S> view, const T* scale, Named named, const __grid_constant__ Assignments<T> assignments,
                int32_t* keys, int32_t* numbers) {
  const int patch = int((int64_t(blockIdx.x) * threads + threadIdx.x) / 32), lane = int(threadIdx.x) % 32;
  if (patch >= view.patches) return;
  bool seen = scale, blank = scale && scale[patch] == 0;
  for (int first = 0; first < named.ranks; first += 32) {
    const int rank = first + lane, entry = patch * named.ranks + rank;
    int key = rank < named.ranks ? key_of(named, view, assignments, patch, rank) : named.neurons;
    if (__any_sync(~0u, key < named.neurons) && !seen) {
      blank = all_zeros(view, patch);
      seen = true;
    }
    if (blank && key < named.neurons) key = named.neurons;
    if (rank < named.ranks) keys[entry] = key, numbers[entry] = entry;
  }
}

// Puts the sums of lists that were cut together, a block a list that begins among `piece` entries and a column tile;
// the blocks behind those count every list.
template <class T>
__global__ void __launch_bounds__(threads) combine_kernel(Sums<T> sums, T* count, int inputs) {
  const int cut = sums.slots / 2, at = int(threadIdx.x);
  if (int(blockIdx.x) >= cut) {
    const int64_t neuron = int64_t(int(blockIdx.x) - cut) * threads + at;
    if (blockIdx.y == 0 && neuron < sums.neurons) count[neuron] = T(sums.starts[neuron + 1] - sums.starts[neuron]);
    return;
  }
  const List list = piece_in(sums, 2 * int(blockIdx.x) + 1);
  if (list.size < 0) return;
  const int end = sums.starts[list.neuron + 1];
  if (blockIdx.y == 0 && at == 0) sums.decay[list.neuron] = of_pieces(sums.decay_partial, 1, 0, list.first, end);
#pragma unroll 1
  for (int64_t column = int64_t(blockIdx.y) * threads + at; column < inputs; column += int64_t(gridDim.y) * threads)
    sums.total[list.neuron * int64_t(inputs) + column] = of_pieces(sums.partial, inputs, column, list.first, end);
}

}  // namespace

template <class S, class T>
void name_entries(const Device& device, const PatchView<S>& view, const T* scale, const Tensor& named, int64_t ranks,
                  const Assignments<T>& assignments, int neurons, const Mask& frozen, const Entries& entries) {
  const Named names{named.const_data_ptr(),
                    named.scalar_type() == ScalarType::Long,
                    named.stride(0),
                    named.dim() == 2 ? named.stride(1) : 0,
                    named.dim() == 1,
                    int(ranks),
                    neurons,
                    neurons / view.groups,
                    frozen};
  launch<name_kernel<S, T>>("accumulate.name", dim3(unsigned(cdiv(view.patches, threads / 32))), threads, 0, device,
                            view, scale, names, assignments, entries.keys, entries.numbers);
}

template <class S, class T>
static void accumulate_typed(const Tensor& x, const PatchedLayer& layer, const Tensor& named,
                             const Tensor& coefficients, const OptionalTensor& responses, const OptionalTensor& frozen,
                             Lists<T> lists, T* count) {
  const char* op = "accumulate";
  const Device device(x);
  const PatchView<S> view(op, x, layer.g);
  const Entries entries(op, x, layer.g, named.size(1));
  const int neurons = int(layer.g.groups * layer.g.neurons), ranks = int(named.size(1));
  const Moments<T> known = moments<S, S, T>(op, device, x, view, layer.patches);
  Assignments<T> assignments;
  assignments.values = const_pointer<T>(coefficients);
  assignments.down = coefficients.dim() == 2 ? coefficients.stride(0) : 0;
  assignments.right = coefficients.stride(coefficients.dim() - 1);
  if (responses) {
    assignments.decays = const_pointer<T>(*responses);
    assignments.decays_down = responses->stride(0);
    assignments.decays_right = responses->stride(1);
  }
  const T *const offset = known.offset, *const scale = known.scale;
  name_entries(device, view, scale, named, ranks, assignments, neurons, Mask(frozen), entries);
  lists = grouped(device, x, view, entries, ranks, assignments, neurons, offset, scale, true, lists);
  const Sums<T> sums = sums_of(lists, entries.count, neurons);
  const int64_t blocks = sums.slots / 2 + cdiv(neurons, threads);
  launch<combine_kernel<T>>("accumulate.combine", dim3(unsigned(blocks), sums.slots ? tiles(view.inputs, threads) : 1u),
                            threads, 0, device, sums, count, view.inputs);
}

static std::tuple<Tensor, Tensor, Tensor> accumulate(Tensor x, Tensor targets, Tensor coefficients,
                                                     OptionalTensor responses, int64_t neurons, Ints kernel,
                                                     std::string patches, Ints stride, Ints padding, Ints dilation,
                                                     int64_t groups, OptionalTensor frozen) {
  const char* op = "accumulate";
  const PatchedLayer layer = check_accumulate(x, targets, coefficients, responses, neurons, kernel, patches, stride,
                                              padding, dilation, groups, frozen);
  require_finite(op, "x", x);
  require_finite(op, "coefficients", coefficients);
  require_finite(op, "responses", responses);
  require_indices(op, "targets", targets, neurons, groups);
  const Geometry& g = layer.g;
  const ScalarType result = result_dtype(x.scalar_type());
  const Ints shape = g.image ? Ints{neurons, g.channels, g.kh, g.kw} : Ints{neurons, g.channels};
  Tensor sum = empty_like(x, shape, result), decay = empty_like(x, {neurons}, result);
  Tensor count = empty_like(x, {neurons}, result);
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    using T = decltype(tag);
    Lists<T> lists;
    lists.total = pointer<T>(sum);
    lists.decay = pointer<T>(decay);
    accumulate_typed<decltype(stored), T>(x, layer, targets, coefficients, responses, frozen, lists, pointer<T>(count));
  });
  return {sum, decay, count};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("accumulate.cuda", TORCH_BOX(&accumulate)); }

#define NAME_ENTRIES(S, T)                                                                               \
  template void name_entries<S, T>(const Device&, const PatchView<S>&, const T*, const Tensor&, int64_t, \
                                   const Assignments<T>&, int, const Mask&, const Entries&);
NAME_ENTRIES(float, float)
NAME_ENTRIES(double, double)
NAME_ENTRIES(BFloat16, float)
NAME_ENTRIES(Half, float)
#undef NAME_ENTRIES

}  // namespace hebbkern
