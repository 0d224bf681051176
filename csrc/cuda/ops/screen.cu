// screen: what rounding loses, and each patch's candidates by products of rounded numbers.
#include "cuda/ops/screen.cuh"

#include "cuda/device/bound.cuh"
#include "cuda/device/products.cuh"

namespace hebbkern {
namespace {

constexpr int warps = 8;  // of a block that rounds, as in moments.cu

// The next four entries of a patch, 0 beyond its last.
__device__ __forceinline__ float4 four(const PatchView<float>& view, const Corner& corner, int first, bool grouped) {
  float4 group = {0, 0, 0, 0};
  if (grouped) {
    if (first < view.inputs) group = *reinterpret_cast<const float4*>(view.x + corner.start + first);
  } else {
    if (first < view.inputs) group.x = view.load(corner, view.tap(first));
    if (first + 1 < view.inputs) group.y = view.load(corner, view.tap(first + 1));
    if (first + 2 < view.inputs) group.z = view.load(corner, view.tap(first + 2));
    if (first + 3 < view.inputs) group.w = view.load(corner, view.tap(first + 3));
  }
  return group;
}

// Squares and largest of some numbers, lanes apart.
struct Extent {
  float squares = 0, largest = 0;

  __device__ __forceinline__ void add(float value) {
    squares += value * value;
    const float size = std::fabs(value);
    largest = size > largest ? size : largest;
  }
  // A norm is at least its largest entry, whose square may vanish: 0 is nothing but zeros. NaN stays.
  __device__ __forceinline__ float norm() const {
    float sum = squares, top = largest;
    for (int apart = 16; apart > 0; apart /= 2) {
      sum += __shfl_xor_sync(~0u, sum, apart);
      const float other = __shfl_xor_sync(~0u, top, apart);
      top = other > top ? other : top;
    }
    const float root = std::sqrt(sum);
    return root <= top ? top : root;
  }
};

struct Lengths {
  float whole, kept, lost;
};

// By a warp, of a patch or of a row of weights, which goes to `rounded` if that is given: `stride` entries.
__device__ __forceinline__ Lengths rounded_lengths(const PatchView<float>& view, int item, float offset, bool grouped,
                                                   uint16_t* rounded, int stride) {
  const Corner corner = view.corner(item);
  Extent whole, kept, lost;
  for (int first = int(threadIdx.x) % 32 * 4; first < stride; first += 128) {
    const float4 group = four(view, corner, first, grouped);
    const float values[4] = {group.x, group.y, group.z, group.w};
    uint16_t bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = first + i < view.inputs ? values[i] - offset : 0.0f;
      const BFloat16 near(value);
      bits[i] = near.x;
      whole.add(value);
      kept.add(wide(near));
      lost.add(value - wide(near));
    }
    if (rounded)
      *reinterpret_cast<uint2*>(rounded + first) = {bits[0] | uint32_t(bits[1]) << 16, bits[2] | uint32_t(bits[3])
                                                                                                     << 16};
  }
  Lengths of;
  of.whole = whole.norm();
  of.kept = kept.norm();
  of.lost = lost.norm();
  return of;
}

__global__ void __launch_bounds__(32 * warps)
    round_kernel(PatchView<float> view, PatchView<float> rows, const float* offset, Rounding to, int of_patches,
                 bool grouped, bool rows_grouped) {
  const int item = int(blockIdx.x) * warps + int(threadIdx.x) / 32, row = item - of_patches;
  const int padded = (view.inputs + 3) / 4 * 4;
  if (row < 0) {
    if (item >= view.patches) return;
    const Lengths of = rounded_lengths(view, item, offset ? offset[item] : 0.0f, grouped, nullptr, padded);
    if (threadIdx.x % 32) return;
    to.kept[item] = of.kept;
    to.lost[item] = of.lost;
  } else {
    if (row >= rows.patches) return;
    const Lengths of =
        rounded_lengths(rows, row, 0.0f, rows_grouped, to.rows + int64_t(row) * to.stride, int(to.stride));
    if (threadIdx.x % 32) return;
    to.size[row] = of.whole;
    to.slip[row] = of.lost;
  }
}

// A bound above each response, which is not yet times the patch's scale.
struct Bounds {
  Rounding rounding;
  const float *offset, *inverse;
  Mask eligible;
  int inputs;

  struct Neuron {
    float size, slip, inverse;
    bool contends;
  };
  __device__ Pair numbers(int patch) const {
    const Reach of = reach(rounding.kept[patch], rounding.lost[patch], offset ? offset[patch] : 0.0f, inputs);
    return {of.near, of.wide};
  }
  __device__ Neuron neuron(int neuron) const {
    return {rounding.size[neuron], rounding.slip[neuron], inverse ? inverse[neuron] : 1.0f,
            !eligible.given() || eligible[neuron]};
  }
  __device__ float operator()(float product, const Pair& patch, const Neuron& neuron) const {
    const float bound = (product + doubt({patch.first, patch.second}, neuron.size, neuron.slip)) * neuron.inverse;
    if (!neuron.contends) return lowest<float>();
    return std::fabs(bound) < INFINITY ? bound : INFINITY;
  }
};

// Registers for two blocks to a multiprocessor, where shared memory has room: one multiplies while the other ranks.
__global__ void __launch_bounds__(product_threads, 2)
    screen_kernel(PatchView<float> view, Factors with, Bounds worth, Candidates to) {
  HEBBKERN_SHARED(unsigned char, memory);
  const Lists lists = rank_products(view, worth.offset, with, to.most, memory, worth);
  lists.each(view.patches, [&](int patch, int rank, float bound, int32_t neuron) {
    const int64_t at = (int64_t(blockIdx.y) * view.patches + patch) * to.most + rank;
    to.neurons[at] = neuron;
    to.bounds[at] = bound;
  });
}

std::atomic<Screening> screening{Screening::automatic};
constexpr int most_winners = 8;  // four times as many candidates fit into the lanes of a warp

}  // namespace

void set_screening(Screening mode) { screening = mode; }

// Only where it is asked for. A step of 1024 x 784 x 2000 took 215 us without on an H100 and 239 with it, 1024 x 3072
// 513 and 441, 4096 x 784 549 and 405, 16384 x 784 1815 and 1154, but 771, 2857, 945 and 1756 once a few patches were
// undecided, as learning makes them.
bool worth_screening(int k) { return screening == Screening::always && k <= most_winners; }

Screened& screened_so_far() {
  static Screened counts;
  return counts;
}

static void round(const Device& device, const PatchView<float>& view, const PatchView<float>& rows, const float* offset,
                  const Rounding& to) {
  const int64_t of_patches = cdiv(view.patches, warps), of_rows = cdiv(rows.patches, warps);
  launch<round_kernel>("screen.round", dim3(unsigned(of_patches + of_rows)), 32 * warps, 0, device, view, rows, offset,
                       to, int(of_patches) * warps, view.in_groups(4), rows.in_groups(4));
}

void screened(const Device& device, const Tensor& like, const PatchView<float>& view, const float* rows,
              const Moments<float>& known, const Mask& eligible, const Outcome<float>& outcome) {
  if (view.patches == 0) return;
  const int64_t neurons = outcome.neurons, patches = view.patches, stride = cdiv(view.inputs, 8) * 8;
  const int most = std::max(16, 4 * outcome.k);
  const Tensor lengths = empty_like(like, {2 * patches + 2 * neurons}, ScalarType::Float);
  const Tensor copy = empty_like(like, {neurons, stride}, ScalarType::BFloat16);
  float* length = pointer<float>(lengths);
  const Rounding rounding{
      length, length + patches, length + 2 * patches, length + 2 * patches + neurons, pointer<uint16_t>(copy), stride};
  const PatchView<float> weights(rows, neurons, view.inputs);
  round(device, view, weights, known.offset, rounding);

  const Factors with = factors_of(device, view, rounding.rows, stride, neurons, most);
  const int64_t shares = cdiv(neurons, with.share);
  const Tensor names = empty_like(like, {shares, patches, most}, ScalarType::Int);
  const Tensor highest = empty_like(like, {shares, patches, most}, ScalarType::Float);
  const Candidates candidates{pointer<int32_t>(names), pointer<float>(highest), int(shares), most};
  launch<screen_kernel>("screen", dim3(unsigned(cdiv(patches, tile_patches)), unsigned(shares)), product_threads,
                        product_bytes(with.slots, most), device, view, with,
                        Bounds{rounding, known.offset, known.inverse, eligible, view.inputs}, candidates);

  const Tensor left = empty_like(like, {values_known() ? patches : 0}, ScalarType::Int);
  decide(device, {view, rows, Known<float>(known, known.inverse), eligible, rounding, candidates,
                  values_known() ? pointer<int32_t>(left) : nullptr, outcome, view.in_groups(4), weights.in_groups(4)});
  if (!values_known()) return;
  screened_so_far().patches += patches;
  for (int64_t p = 0; p < patches; ++p) screened_so_far().left += const_pointer<int32_t>(left)[p];
}

}  // namespace hebbkern
