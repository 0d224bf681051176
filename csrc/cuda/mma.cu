// mma: competitions of half types on tensor cores.
#include "mma.cuh"

#include "products.cuh"
#include "response.cuh"

namespace hebbkern {
namespace {

// Every response, from its exact products.
struct Responses {
  Known<float> known;
  Mask mask;

  struct Neuron {
    Terms<float> terms;
    bool contends;
  };
  __device__ Pair numbers(int patch) const {
    const Terms<float> of = of_patch(known, patch);
    return {of.less, of.after};
  }
  __device__ Neuron neuron(int neuron) const { return {of_neuron(known, neuron), !mask.given() || mask[neuron]}; }
  __device__ float operator()(float product, const Pair& patch, const Neuron& neuron) const {
    const float response = settled(product, {1.0f, patch.first, patch.second}, neuron.terms);
    return neuron.contends ? response : lowest<float>();
  }
};

template <int SLOTS>
__device__ __forceinline__ void write(const Ranks<float, SLOTS>& best, int patch, const Outcome<float>& to) {
#pragma unroll
  for (int slot = 0; slot < SLOTS; ++slot) {
    const int rank = int(threadIdx.x) % 32 + 32 * slot;
    if (rank < to.k) to.write(patch, rank, best.response[slot], best.neuron[slot]);
  }
}

// Two blocks to a multiprocessor, so that one multiplies while the other ranks; lists of more than 32 need the
// registers of both.
template <class S, int SLOTS>
__global__ void __launch_bounds__(product_threads, SLOTS == 1 ? 2 : 1)
    mma_kernel(Place<S> place, Factors with, Responses worth, Outcome<float> to) {
  HEBBKERN_SHARED(unsigned char, memory);
  Ranks<float, SLOTS> best[patches_each];
  rank_products(place, nullptr, with, to.k, memory, worth, best);
  const int64_t list = int64_t(blockIdx.y) * place.patches * to.k;
  to.winners += list;
  to.responses += list;
#pragma unroll
  for (int p = 0; p < patches_each; ++p) {
    const int patch = int(blockIdx.x) * tile_patches + int(threadIdx.x) / 32 * patches_each + p;
    if (patch < place.patches) write(best[p], patch, to);
  }
}

constexpr int merging = 128;  // threads, a warp to a patch: small blocks, since there are few patches

template <int SLOTS>
__global__ void __launch_bounds__(merging)
    merge_kernel(const int32_t* lists, const float* listed, int patches, int shares, Outcome<float> to) {
  const int patch = int(blockIdx.x) * (merging / 32) + int(threadIdx.x) / 32;
  if (patch >= patches) return;
  Ranks<float, SLOTS> best;
  for (int first = 0; first < shares * to.k; first += 32) {
    const int at = first + int(threadIdx.x) % 32, share = at / to.k;
    const bool there = share < shares;
    const int64_t from = there ? (int64_t(share) * patches + patch) * to.k + at % to.k : 0;
    const int32_t neuron = lists[from];
    best.offer(listed[from], neuron, there && neuron >= 0, to.k);
  }
  write(best, patch, to);
}

// [neurons, stride], the inputs of each row followed by zeros.
__global__ void __launch_bounds__(256)
    pad_kernel(const uint16_t* rows, uint16_t* padded, int64_t neurons, int inputs, int stride) {
  const int entry = int(blockIdx.x) * 256 + int(threadIdx.x);
  if (entry >= stride) return;
  for (int64_t neuron = blockIdx.y; neuron < neurons; neuron += gridDim.y)
    padded[neuron * stride + entry] = entry < inputs ? rows[neuron * inputs + entry] : uint16_t(0);
}

// Rows that cp.async can copy: as they are if each is aligned to 16 bytes.
template <class S>
const S* aligned(const Device& device, const Tensor& like, const S* rows, int64_t neurons, int64_t inputs,
                 std::optional<Tensor>& padded) {
  const int64_t stride = cdiv(inputs, 8) * 8;
  if (stride == inputs && uintptr_t(rows) % 16 == 0) return rows;
  padded = empty_like(like, {neurons, stride}, like.scalar_type());
  launch<pad_kernel>("mma.pad", dim3(unsigned(cdiv(stride, 256)), unsigned(std::min<int64_t>(neurons, 65535))), 256, 0,
                     device, reinterpret_cast<const uint16_t*>(rows), pointer<uint16_t>(*padded), neurons, int(inputs),
                     int(stride));
  return const_pointer<S>(*padded);
}

template <class S, int SLOTS>
void fight(const Device& device, const Tensor& like, const Place<S>& place, const S* rows, const Responses& worth,
           const Outcome<float>& to) {
  const Factors with = factors_of(device, place, rows, cdiv(place.inputs, 8) * 8, to.neurons);
  const int64_t shares = cdiv(to.neurons, with.share);
  const dim3 grid(unsigned(cdiv(place.patches, tile_patches)), unsigned(shares));
  const size_t bytes = product_bytes(with.slots);
  if (shares == 1)
    return launch<mma_kernel<S, SLOTS>>("mma", grid, product_threads, bytes, device, place, with, worth, to);
  const Tensor lists = empty_like(like, {shares, place.patches, to.k}, ScalarType::Int);
  const Tensor listed = empty_like(like, {shares, place.patches, to.k}, ScalarType::Float);
  const Outcome<float> parts{pointer<int32_t>(lists), pointer<float>(listed), Keys{}, to.k, to.neurons};
  launch<mma_kernel<S, SLOTS>>("mma", grid, product_threads, bytes, device, place, with, worth, parts);
  launch<merge_kernel<SLOTS>>("mma.merge", dim3(unsigned(cdiv(place.patches, merging / 32))), merging, 0, device,
                              parts.winners, parts.responses, place.patches, int(shares), to);
}

}  // namespace

template <class S>
void half_walk(const Device& device, const Tensor& like, const Place<S>& place, const S* rows,
               const Moments<float>& known, const Mask& mask, const Outcome<float>& outcome) {
  if (place.patches == 0) return;
  const Responses worth{Known<float>(known, false), mask};
  std::optional<Tensor> padded;
  rows = aligned(device, like, rows, outcome.neurons, place.inputs, padded);
  if (outcome.k <= 32)
    fight<S, 1>(device, like, place, rows, worth, outcome);
  else
    fight<S, 2>(device, like, place, rows, worth, outcome);
}

#define HALF_WALK(S)                                                                                         \
  template void half_walk<S>(const Device&, const Tensor&, const Place<S>&, const S*, const Moments<float>&, \
                             const Mask&, const Outcome<float>&);
HALF_WALK(BFloat16)
HALF_WALK(Half)
#undef HALF_WALK

}  // namespace hebbkern
