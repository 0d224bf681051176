// mma: competitions of half types on tensor cores.
#include "cuda/ops/mma.cuh"

#include "cuda/device/products.cuh"
#include "cuda/device/response.cuh"
#include "cuda/ops/walk.cuh"

namespace hebbkern {
namespace {

// Every response, from its exact products.
struct Responses {
  Known<float> known;
  Mask eligible;

  struct Neuron {
    Terms<float> terms;
    bool contends;
  };
  __device__ Pair numbers(int patch) const {
    const Terms<float> of = of_patch(known, patch);
    return {of.less, of.after};
  }
  __device__ Neuron neuron(int neuron) const {
    return {of_neuron(known, neuron), !eligible.given() || eligible[neuron]};
  }
  __device__ float operator()(float product, const Pair& patch, const Neuron& neuron) const {
    const float response = final_response(product, {1.0f, patch.first, patch.second}, neuron.terms);
    return neuron.contends ? response : lowest<float>();
  }
};

// Registers for two blocks to a multiprocessor, where shared memory has room: one multiplies while the other ranks.
template <class S>
__global__ void __launch_bounds__(product_threads, 2)
    mma_kernel(PatchView<S> view, Factors with, Responses worth, Outcome<float> to) {
  HEBBKERN_SHARED(unsigned char, memory);
  const Lists lists = rank_products(view, nullptr, with, to.k, memory, worth);
  lists.drop_blank(view, worth.known.scale);
  const int64_t list = int64_t(blockIdx.y) * view.patches * to.k;
  to.winners += list;
  to.responses += list;
  lists.each(view.patches,
             [&](int patch, int rank, float response, int32_t neuron) { to.write(patch, rank, response, neuron); });
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

}  // namespace

bool half_walks(const Device& device, int k) { return product_bytes(2, k) <= size_t(device.most_shared()); }

template <class S>
void half_walk(const Device& device, const Tensor& like, const PatchView<S>& view, const S* rows,
               const Moments<float>& known, const Mask& eligible, const Outcome<float>& outcome) {
  if (view.patches == 0) return;
  std::optional<Tensor> padded, winners, responses;
  const S* const whole = aligned(device, like, rows, outcome.neurons, view.inputs, padded);
  const Factors with = factors_of(device, view, whole, cdiv(view.inputs, 8) * 8, outcome.neurons, outcome.k);
  const int64_t shares = cdiv(outcome.neurons, with.share);
  Outcome<float> lists = outcome;
  if (shares > 1) {
    winners = empty_like(like, {shares, view.patches, outcome.k}, ScalarType::Int);
    responses = empty_like(like, {shares, view.patches, outcome.k}, ScalarType::Float);
    lists = {pointer<int32_t>(*winners), pointer<float>(*responses), Keys{}, outcome.k, outcome.neurons};
  }
  launch<mma_kernel<S>>("mma", dim3(unsigned(cdiv(view.patches, tile_patches)), unsigned(shares)), product_threads,
                        product_bytes(with.slots, outcome.k), device, view, with,
                        Responses{Known<float>(known, false), eligible}, lists);
  if (shares > 1) merge<float>(device, lists, outcome, view.patches, int(shares));
}

#define HALF_WALK(S)                                                                                             \
  template void half_walk<S>(const Device&, const Tensor&, const PatchView<S>&, const S*, const Moments<float>&, \
                             const Mask&, const Outcome<float>&);
HALF_WALK(BFloat16)
HALF_WALK(Half)
#undef HALF_WALK

}  // namespace hebbkern
