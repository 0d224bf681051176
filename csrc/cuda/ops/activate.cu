// activate: responses U of a layer become Y = f(U) in place, and the column sums that a rule needs of them.
#include "cuda/ops/dense_update.cuh"

namespace hebbkern {
namespace {

constexpr int threads = 256;
constexpr int side = 64;  // neurons of a tile

template <class T>
struct Layer {
  T *y, *scaled;                    // laid out alike; scaled: y * scale, or null
  const T *offset, *scale, *total;  // [P], [P], [K], or null
  T *diagonal, *shift;              // [parts, K], or null
  Divisor per_image;
  int64_t image, neuron, patch;  // strides
  int patches, neurons;
  Activation activation;
  T temperature;

  // The response to x~.
  __device__ __forceinline__ T response(T u, T total_of, T offset_of, T scale_of) const {
    if (offset) u -= total_of * offset_of;
    return scale ? u * scale_of : u;
  }
};

// The PATCHES of a block, their offsets and scales. Softmax takes few, as a block has all neurons of its patches.
template <class T, int PATCHES>
struct Strip {
  static constexpr int items = PATCHES * side / threads;
  int64_t start[PATCHES];
  T offset[PATCHES], scale[PATCHES];
  Soft<T> soft[PATCHES];
  Soft<T> parts[threads];
  T sums[2][4][side];

  __device__ __forceinline__ void open(const Layer<T>& layer, int first) {
    if (int(threadIdx.x) < PATCHES) {
      const int patch = min(first + int(threadIdx.x), layer.patches - 1), b = layer.per_image.quotient(patch);
      start[threadIdx.x] = b * layer.image + (patch - b * int(layer.per_image.divisor)) * layer.patch;
      offset[threadIdx.x] = layer.offset ? layer.offset[patch] : T(0);
      scale[threadIdx.x] = layer.scale ? layer.scale[patch] : T(1);
    }
    __syncthreads();
  }
  __device__ __forceinline__ T response(const Layer<T>& layer, int p, int neuron) const {
    const T total = layer.offset ? layer.total[neuron] : T(0);
    return layer.response(layer.y[start[p] + neuron * layer.neuron], total, offset[p], scale[p]);
  }
};

// The softmax of each patch's responses: lanes lie along the contiguous dimension.
template <class T, int PATCHES>
__device__ void compete(Strip<T, PATCHES>& strip, const Layer<T>& layer) {
  const int t = int(threadIdx.x);
  if (layer.neuron == 1) {
    for (int p = t / 32; p < PATCHES; p += threads / 32) {
      Soft<T> mine = Soft<T>::none();
      for (int neuron = t % 32; neuron < layer.neurons; neuron += 32)
        mine.add(strip.response(layer, p, neuron), neuron, layer.temperature);
      for (int apart = 16; apart > 0; apart /= 2) {
        Soft<T> other;
        other.best = __shfl_xor_sync(~0u, mine.best, apart);
        other.mass = __shfl_xor_sync(~0u, mine.mass, apart);
        other.winner = __shfl_xor_sync(~0u, mine.winner, apart);
        mine.merge(other, layer.temperature);
      }
      if (t % 32 == 0) strip.soft[p] = mine;
    }
  } else {
    Soft<T> mine = Soft<T>::none();
    for (int neuron = t / PATCHES; neuron < layer.neurons; neuron += threads / PATCHES)
      mine.add(strip.response(layer, t % PATCHES, neuron), neuron, layer.temperature);
    strip.parts[t] = mine;
    __syncthreads();
    if (t < PATCHES) {
      for (int part = 1; part < threads / PATCHES; ++part)
        mine.merge(strip.parts[part * PATCHES + t], layer.temperature);
      strip.soft[t] = mine;
    }
  }
  __syncthreads();
}

// What a tile adds to the column sums: [2] kinds of each of a thread's items, lanes lying along patches.
template <class T, int PATCHES>
__device__ __forceinline__ void note_across(Strip<T, PATCHES>& strip, int neuron, T square, T moved) {
  constexpr int lanes = PATCHES < 32 ? PATCHES : 32;
  for (int apart = lanes / 2; apart > 0; apart /= 2) {
    square += __shfl_xor_sync(~0u, square, apart);
    moved += __shfl_xor_sync(~0u, moved, apart);
  }
  if (threadIdx.x % lanes == 0) {
    const int part = int(threadIdx.x) % PATCHES / lanes;
    strip.sums[0][part][neuron] = square;
    strip.sums[1][part][neuron] = moved;
  }
}

template <class T, int PATCHES>
__device__ void write_sums(Strip<T, PATCHES>& strip, const Layer<T>& layer, int first, int parts) {
  __syncthreads();
  const int t = int(threadIdx.x), which = t / side, neuron = first + t % side;
  T* to = which == 0 ? layer.diagonal : which == 1 ? layer.shift : nullptr;
  if (to && neuron < layer.neurons) {
    T sum = strip.sums[which][0][t % side];
    for (int part = 1; part < parts; ++part) sum += strip.sums[which][part][t % side];
    to[int64_t(blockIdx.x) * layer.neurons + neuron] = sum;
  }
  __syncthreads();
}

// Y of a tile of PATCHES by `side` neurons.
template <class T, int PATCHES, bool SOFT>
__device__ void tile(Strip<T, PATCHES>& strip, const Layer<T>& layer, int first_patch, int first) {
  constexpr int items = Strip<T, PATCHES>::items;
  const int t = int(threadIdx.x);
  const bool along = layer.neuron == 1, sums = layer.diagonal || layer.shift;
  T squares = 0, moves = 0;
  for (int start = 0; start < items; start += 4) {
    T responses[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // on their way side by side: what is stored might be loaded again
      const int p = along ? t / side + (start + i) * (threads / side) : t % PATCHES;
      const int neuron = first + (along ? t % side : t / PATCHES + (start + i) * (threads / PATCHES));
      const bool there = first_patch + p < layer.patches && neuron < layer.neurons;
      responses[i] = there ? strip.response(layer, p, neuron) : T(0);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = along ? t / side + (start + i) * (threads / side) : t % PATCHES;
      const int neuron = first + (along ? t % side : t / PATCHES + (start + i) * (threads / PATCHES));
      const bool there = first_patch + p < layer.patches && neuron < layer.neurons;
      const T u = responses[i];
      T y = SOFT ? strip.soft[p].share(u, neuron, layer.temperature) : activated(u, layer.activation);
      if (SOFT && strip.scale[p] == 0) y = 0;  // of a flat patch nothing is left to learn
      const T scaled = y * strip.scale[p];
      const int64_t at = strip.start[p] + neuron * layer.neuron;
      if (there) layer.y[at] = y;
      if (there && layer.scaled) layer.scaled[at] = scaled;
      if (!sums) continue;
      const T square = there ? y * (SOFT ? u : y) : T(0), moved = there ? scaled * strip.offset[p] : T(0);
      squares += square;
      moves += moved;
      if (!along) note_across(strip, neuron - first, square, moved);
    }
  }
  if (!sums) return;
  if (along) {
    strip.sums[0][t / side][t % side] = squares;
    strip.sums[1][t / side][t % side] = moves;
  }
  write_sums(strip, layer, first, along ? threads / side : (PATCHES + 31) / 32);
}

// 64 x 64: coalesced along either stride, and 1/64 of U for the column sums.
template <class T>
__global__ void __launch_bounds__(threads) activate_kernel(Layer<T> layer) {
  __shared__ Strip<T, 64> strip;
  const int first = int(blockIdx.x) * 64;
  strip.open(layer, first);
  tile<T, 64, false>(strip, layer, first, int(blockIdx.y) * side);
}

template <class T>
__global__ void __launch_bounds__(threads) soften_kernel(Layer<T> layer) {
  __shared__ Strip<T, 16> strip;
  const int first = int(blockIdx.x) * 16;
  strip.open(layer, first);
  compete(strip, layer);
  for (int neuron = 0; neuron < layer.neurons; neuron += side) tile<T, 16, true>(strip, layer, first, neuron);
}

constexpr int slices = 32;  // of the rows: those of a million patches are 16384

template <class T>
__global__ void __launch_bounds__(32 * slices) add_kernel(const T* rows, int64_t count, int64_t columns, T* out) {
  __shared__ T sums[slices][32];
  const int slice = int(threadIdx.x) / 32;
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x % 32, share = (count + slices - 1) / slices;
  T sum = 0;
  if (column < columns) {
    const int64_t end = min(count, (slice + 1) * share);
#pragma unroll 8
    for (int64_t row = slice * share; row < end; ++row) sum += rows[row * columns + column];
  }
  sums[slice][threadIdx.x % 32] = sum;
  __syncthreads();
  if (slice > 0 || column >= columns) return;
  for (int other = 1; other < slices; ++other) sum += sums[other][threadIdx.x];
  out[column] = sum;
}

}  // namespace

template <class T>
void add_rows(const Device& device, const T* rows, int64_t count, int64_t columns, T* out) {
  launch<add_kernel<T>>("dense_update.add", dim3(unsigned(cdiv(columns, 32))), 32 * slices, 0, device, rows, count,
                        columns, out);
}
template void add_rows<float>(const Device&, const float*, int64_t, int64_t, float*);
template void add_rows<double>(const Device&, const double*, int64_t, int64_t, double*);

template <class T>
static std::tuple<Tensor, Tensor> activate(const Device& device, const Tensor& u, Layer<T> layer, bool diagonal,
                                           bool shift) {
  const bool soft = layer.activation == Activation::softmax;
  const int64_t parts = cdiv(layer.patches, soft ? 16 : 64), K = layer.neurons;
  const Tensor rows = empty_like(u, {(int(diagonal) + int(shift)) * parts, K}, u.scalar_type());
  const auto sums = [&](bool wanted) { return empty_like(u, {wanted ? K : 0}, u.scalar_type()); };
  const std::tuple<Tensor, Tensor> columns = {sums(diagonal), sums(shift)};
  layer.diagonal = diagonal ? pointer<T>(rows) : nullptr;
  layer.shift = shift ? pointer<T>(rows) + (diagonal ? parts * K : 0) : nullptr;
  if (soft)
    launch<soften_kernel<T>>("activate.soften", dim3(unsigned(parts)), threads, 0, device, layer);
  else
    launch<activate_kernel<T>>("activate", dim3(unsigned(parts), unsigned(cdiv(K, side))), threads, 0, device, layer);
  if (diagonal) add_rows<T>(device, layer.diagonal, parts, K, pointer<T>(std::get<0>(columns)));
  if (shift) add_rows<T>(device, layer.shift, parts, K, pointer<T>(std::get<1>(columns)));
  return columns;
}

// layout: patches of an image, strides of images, neurons and patches. Returns the two column sums, or nothing [0].
static std::tuple<Tensor, Tensor> activate_op(Tensor u, Ints layout, int64_t images, OptionalTensor offset,
                                              OptionalTensor scale, OptionalTensor total, std::string activation,
                                              double temperature, OptionalTensor scaled, bool diagonal, bool shift) {
  const Device device(u);
  const Layout at = layout_of(layout);
  std::tuple<Tensor, Tensor> columns;
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    columns = activate<T>(
        device, u,
        {pointer<T>(u), scaled ? pointer<T>(*scaled) : nullptr, const_pointer<T>(offset), const_pointer<T>(scale),
         const_pointer<T>(total), nullptr, nullptr, Divisor(at.per_image), at.image, at.neuron, at.patch,
         int(images * at.per_image), int(u.size(1)), check_activation("dense_update", activation), T(temperature)},
        diagonal, shift);
  };
  if (u.scalar_type() == ScalarType::Double)
    run(double{});
  else
    run(float{});
  return columns;
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("_activate", TORCH_BOX(&activate_op)); }

}  // namespace hebbkern
