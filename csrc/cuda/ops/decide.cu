// decide: float32 responses of the candidates that a screen left, and of all neurons where these decide nothing.
//
// A warp owns a patch, a block eight; those of them that are not decided compete again side by side, so that a weight
// is read once for all. They are few wherever screening is worth its while, and cost what they cost: one of them
// reads every weight once.
#include "cuda/device/bound.cuh"

namespace hebbkern {
namespace {

constexpr int owners = 8;            // warps of a block, and its patches
constexpr int stretch = 128;         // entries that a warp reads at a time, four a lane
constexpr int rivals = 32 * owners;  // neurons that compete again at a time, one a thread

__device__ __forceinline__ bool contends(const DecideArguments& q, int neuron) {
  return !q.eligible.given() || q.eligible[neuron];
}

// What a warp knows of its patch.
struct Own {
  int patch;
  Corner corner;
  Terms<float> terms;
};

// The next entries of a warp's patch, times its factor, to shared memory; 0 beyond the last.
__device__ __forceinline__ void read_stretch(const DecideArguments& q, const Own& own, int first, float4* to) {
  const int lane = int(threadIdx.x) % 32;
  const PatchView<float>& view = q.view;
  if (q.grouped) {
    float4 group = {0, 0, 0, 0};
    const int entry = first + 4 * lane;
    if (entry < view.inputs) group = *reinterpret_cast<const float4*>(view.x + own.corner.start + entry);
    const float factor = own.terms.factor;
    to[lane] = {group.x * factor, group.y * factor, group.z * factor, group.w * factor};
  } else {
#pragma unroll
    for (int i = 0; i < stretch; i += 32) {
      const int entry = first + i + lane;
      reinterpret_cast<float*>(to)[i + lane] =
          entry < view.inputs ? view.load(own.corner, view.tap(entry)) * own.terms.factor : 0.0f;
    }
  }
}

// Four of a neuron's weights, times its factor; 0 beyond the last.
__device__ __forceinline__ float4 four_weights(const float* row, int first, int inputs, bool grouped, float factor) {
  float4 w = {0, 0, 0, 0};
  if (grouped) {
    if (first < inputs) w = *reinterpret_cast<const float4*>(row + first);
  } else {
    if (first < inputs) w.x = row[first];
    if (first + 1 < inputs) w.y = row[first + 1];
    if (first + 2 < inputs) w.z = row[first + 2];
    if (first + 3 < inputs) w.w = row[first + 3];
  }
  return {w.x * factor, w.y * factor, w.z * factor, w.w * factor};
}

__device__ __forceinline__ float added(float sum, const float4& x, const float4& w) {
  return added(added(added(added(sum, x.x, w.x), x.y, w.y), x.z, w.z), x.w, w.w);
}

// Each lane's response to its own neuron: all lanes take part, `wanted` or not.
__device__ __forceinline__ float response_of(const DecideArguments& q, const Own& own, int neuron, bool wanted,
                                             float4* entries) {
  const int inputs = q.view.inputs;
  const float* row = q.rows + int64_t(wanted ? neuron : 0) * inputs;
  const Terms<float> these = wanted ? of_neuron(q.known, neuron) : Terms<float>{};
  float sum = 0;
  for (int first = 0; first < inputs; first += stretch) {
    read_stretch(q, own, first, entries);
    __syncwarp();
    if (wanted) {
#pragma unroll 8
      for (int i = 0; i < stretch; i += 4)
        if (first + i < inputs)
          sum = added(sum, entries[i / 4], four_weights(row, first + i, inputs, q.rows_grouped, these.factor));
    }
    __syncwarp();
  }
  return final_response(sum, own.terms, these);
}

// Of the candidates of all shares those with the highest bounds.
__device__ __forceinline__ Ranks<float, 1> strongest_of_all(const Candidates& from, int patches, int patch) {
  const int lane = int(threadIdx.x) % 32, count = from.shares * from.most;
  Ranks<float, 1> best;
  for (int first = 0; first < count; first += 32) {
    const int item = first + lane, share = item / from.most;
    const bool there = item < count;
    const int64_t at = there ? (int64_t(share) * patches + patch) * from.most + item % from.most : 0;
    const float bound = from.bounds[at];
    best.offer(bound, from.neurons[at], there && bound > lowest<float>(), from.most);
  }
  return best;
}

// Which lanes hold candidates that may be among the k best: whoever lies below the k-th lowest possible response has
// lost already, and is not read.
__device__ __forceinline__ bool may_win(const DecideArguments& q, const Own& own, float bound, int neuron) {
  const bool named = int(threadIdx.x) % 32 < q.candidates.most && bound > lowest<float>();
  const Rounding& r = q.rounding;
  float low = lowest<float>();
  if (named) {
    const float offset = q.known.offset ? q.known.offset[own.patch] : 0.0f;
    const Reach of = reach(r.kept[own.patch], r.lost[own.patch], offset, q.view.inputs);
    const float apart = doubt(of, r.size[neuron], r.slip[neuron]) * (q.known.inverse ? q.known.inverse[neuron] : 1.0f);
    const float lower = bound - 2 * apart;
    if (lower > low) low = lower;
  }
  Ranks<float, 1> sure;
  sure.offer(low, neuron, named, q.to.k);
  const float needed = sure.response_of(q.to.k - 1);
  return named && !(bound < needed);
}

// No neuron wins a patch of zeros, as at the rim of a digit, or a flat one.
__device__ __forceinline__ bool nobody_wins(const DecideArguments& q, const Own& own) {
  if (q.known.scale) return q.known.scale[own.patch] == 0;
  return q.rounding.kept[own.patch] == 0 && q.rounding.lost[own.patch] == 0;
}

__device__ __forceinline__ void write(const DecideArguments& q, const Own& own, const Ranks<float, 1>& best) {
  const int rank = int(threadIdx.x) % 32;
  if (rank < q.to.k) q.to.write(own.patch, rank, best.response[0], best.neuron[0]);
}

// Whether the candidates decide who wins; if so they are written.
__device__ __forceinline__ bool decided(const DecideArguments& q, const Own& own, float4* entries) {
  if (nobody_wins(q, own)) {
    write(q, own, Ranks<float, 1>());
    return true;
  }
  const Ranks<float, 1> list = strongest_of_all(q.candidates, q.view.patches, own.patch);
  const float others = list.response_of(q.candidates.most - 1);  // no neuron that is not listed has a higher bound
  const int neuron = list.neuron[0];
  const bool live = may_win(q, own, list.response[0], neuron);
  const float response = response_of(q, own, neuron, live, entries);
  Ranks<float, 1> best;
  best.offer(response, neuron, live, q.to.k);
  const float last = best.response_of(q.to.k - 1);
  const float scale = q.known.scale ? q.known.scale[own.patch] : 1.0f;
  if (!(others == lowest<float>() || last > others * scale)) return false;
  write(q, own, best);
  return true;
}

// Sums of one neuron a thread with all patches on `left`, `count` of them, to `sums` [owners][rivals].
__device__ __forceinline__ void sum_rivals(const DecideArguments& q, const Own& own, int rank, int count, int neuron,
                                           float4 (*entries)[stretch / 4], float (*sums)[rivals]) {
  const int inputs = q.view.inputs;
  const bool there = neuron < q.to.neurons;
  const float* row = q.rows + int64_t(there ? neuron : 0) * inputs;
  const float factor = there ? of_neuron(q.known, neuron).factor : 0.0f;
  float sum[owners] = {};
  for (int first = 0; first < inputs; first += stretch) {
    if (rank >= 0) read_stretch(q, own, first, entries[rank]);
    __syncthreads();
#pragma unroll 2
    for (int i = 0; i < stretch; i += 4) {
      if (first + i >= inputs) break;
      const float4 w = four_weights(row, first + i, inputs, q.rows_grouped, factor);
#pragma unroll
      for (int p = 0; p < owners; ++p)
        if (p < count) sum[p] = added(sum[p], entries[p][i / 4], w);
    }
    __syncthreads();
  }
#pragma unroll
  for (int p = 0; p < owners; ++p)
    if (p < count) sums[p][threadIdx.x] = sum[p];
  __syncthreads();
}

// All neurons, for the patches of the block that are `left`.
__device__ __forceinline__ void compete_again(const DecideArguments& q, const Own& own, const bool* left,
                                              float4 (*entries)[stretch / 4], float (*sums)[rivals]) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int count = 0, rank = -1;
#pragma unroll
  for (int p = 0; p < owners; ++p) {
    if (p == warp && left[p]) rank = count;
    count += left[p];
  }
  if (!count) return;
  Ranks<float, 1> best;
  for (int first = 0; first < q.to.neurons; first += rivals) {
    sum_rivals(q, own, rank, count, first + int(threadIdx.x), entries, sums);
    if (rank >= 0)
      for (int i = lane; i < rivals; i += 32) {
        const int neuron = first + i;
        const bool there = neuron < q.to.neurons && contends(q, neuron);
        const Terms<float> these = there ? of_neuron(q.known, neuron) : Terms<float>{};
        best.offer(final_response(sums[rank][i], own.terms, these), neuron, there, q.to.k);
      }
  }
  if (rank >= 0) write(q, own, best);
}

__global__ void __launch_bounds__(32 * owners) decide_kernel(DecideArguments q) {
  __shared__ float4 entries[owners][stretch / 4];
  __shared__ float sums[owners][rivals];
  __shared__ bool left[owners];
  const int warp = int(threadIdx.x) / 32, patch = int(blockIdx.x) * owners + warp;
  const bool known = patch < q.view.patches;
  Own own{known ? patch : 0, {}, {}};
  own.corner = q.view.corner(own.patch);
  own.terms = of_patch(q.known, own.patch);
  const bool again = known && !decided(q, own, entries[warp]);
  if (threadIdx.x % 32 == 0) {
    left[warp] = again;
    if (known && q.undecided) q.undecided[patch] = again;
  }
  __syncthreads();
  compete_again(q, own, left, entries, sums);
}

}  // namespace

void decide(const Device& device, const DecideArguments& arguments) {
  launch<decide_kernel>("screen.decide", dim3(unsigned(cdiv(arguments.view.patches, owners))), 32 * owners, 0, device,
                        arguments);
}

}  // namespace hebbkern
