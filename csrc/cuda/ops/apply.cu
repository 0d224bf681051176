// apply_: a survey of every number of the step, then the step itself, if all of them are sound.
//
// A block of either kernel owns whole groups of rows. The survey leaves the findings of each group in a small table,
// which every block of the step reads first: either all of them write, or none does and the first counts the step as
// skipped.
#include "cuda/device/rows.cuh"
#include "cuda/device/status.cuh"
#include "cuda/device/values.cuh"

namespace hebbkern {
namespace {

// Blocks on a multiprocessor: with no limit, ptxas spills a few registers to fit one more. 24 warps of 1 KiB in flight
// each keep the memory busy.
template <class T>
constexpr int resident = sizeof(T) == 8 ? 3 : 4;

// What the survey leaves of a row: how the step is to move it.
template <class T>
struct alignas(4 * sizeof(T)) Row {
  T rate;           // lr * rho
  T tall;           // where rows are normalised the largest new weight, before that; negative: the row does not move
  T shrink, share;  // decay and denominator
};

// And of a group: the largest |delta|, |w| and rho of rows that move, and 1 if every number is finite.
template <class T>
struct alignas(4 * sizeof(T)) Finding {
  T step, weight, rate, sound;
};

template <class T>
struct Task {
  T* total;  // [K, N]
  Rates<T> rates;
  const int32_t* starts;  // lists of accumulate, or null
  const T *partial, *decay_partial;
  T* decay;
  bool average;
  Row<T>* rows;
  Finding<T>* findings;
  RowSplit split;

  __device__ __forceinline__ bool global() const { return rates.normalise == Normalise::global_max; }
  __device__ __forceinline__ bool by_row() const {
    return rates.normalise == Normalise::row_max || rates.normalise == Normalise::row_l2;
  }
};

template <class A>
__device__ __forceinline__ bool finite(A a) {
  return std::abs(a) < A(INFINITY);
}

// Of a neuron whose entries are start to end of the sorted ones.
struct List {
  int start = 0, end = 0;
  __device__ __forceinline__ bool cut() const { return end - start > piece; }
  __device__ __forceinline__ int pieces() const { return (end - start + piece - 1) / piece; }
};

template <class T>
__device__ __forceinline__ T value(const Column<T>& column, int64_t j) {
  return column.data[j * column.step];
}

// Row j before the survey looks at its entries; a list's decay is put together and kept.
template <class T>
__device__ __forceinline__ Row<T> row_of(const Task<T>& task, int64_t j, bool known, const List& list, int member) {
  Row<T> row{T(task.rates.lr), T(-1), T(0), T(1)};
  if (!known) return row;
  if (task.starts) {
    if (list.cut()) {
      row.shrink = of_pieces(task.decay_partial, 1, 0, list.start, list.end);
      if (member == 0) task.decay[j] = row.shrink;
    } else {
      row.shrink = task.decay[j];
    }
    if (task.average) row.share = row.shrink;
  } else {
    if (task.rates.decay.data) row.shrink = value(task.rates.decay, j);
    if (task.rates.denominator.data) row.share = value(task.rates.denominator, j);
  }
  if (!task.rates.frozen[j] && row.share != 0) row.tall = 0;
  return row;
}

// delta / scale; a division by 1 changes nothing.
template <class T>
__device__ __forceinline__ T delta_of(T w, T sum, const Row<T>& row, T scale) {
  T delta = std::fma(-row.shrink, w, sum);
  if (row.share != 1) delta = quotient(delta, row.share);
  return scale != 1 ? quotient(delta, scale) : delta;
}

// Entries n and following of row j's sum. Pieces of a list that was cut are added in order, as by
// of_pieces, and the sum is kept.
template <bool PACKED, int V, class T>
__device__ __forceinline__ Pack<T, V> sums(const Task<T>& task, const List& list, int64_t j, int n, int inputs) {
  T* total = task.total + j * inputs;
  if (!list.cut()) return load<PACKED, V>(static_cast<const T*>(total), n, inputs);
  Pack<T, V> all{};
#pragma unroll 4
  for (int number = 0; number < list.pieces(); ++number) {
    const int64_t slot = slot_of(list.start, number);
    const Pack<T, V> part = load<PACKED, V>(task.partial + slot * inputs, n, inputs);
#pragma unroll
    for (int i = 0; i < V; ++i) all.at[i] += part.at[i];
  }
  store<PACKED>(total, n, inputs, all);
  return all;
}

// rho = | |w| - 1 | ^ power, the norm in float64, where no square of a float32 overflows.
template <bool PACKED, class S, class T>
__device__ __forceinline__ T rho_of(const Matrix<S>& weight, const Task<T>& task, int64_t j, bool known, int member) {
  double squares = 0;
  for (int n = member * pack<S>; known && n < weight.inputs; n += task.split.team * pack<S>) {
    const auto w = load<PACKED>(weight, j, n);
#pragma unroll
    for (int i = 0; i < pack<S>; ++i) squares = std::fma(double(wide(w.at[i])), double(wide(w.at[i])), squares);
  }
  squares = of_team(squares, task.split.team, Sum());
  return T(std::pow(std::abs(std::sqrt(squares) - 1), task.rates.rate_power));
}

// Of the entries of a row that one thread reads.
template <class T>
struct Extremes {
  T step = 0, weight = 0;    // the largest |delta|, |w|
  T tall = 0, furthest = 0;  // the largest |new weight|, |step|
  bool sound = true;
};

template <class S, class T>
__device__ __forceinline__ void examine(Extremes<T>& extremes, S stored, T sum, const Row<T>& row,
                                        const Task<T>& task) {
  const T w = wide(stored);
  extremes.sound = extremes.sound && finite(w) && finite(sum);
  if (row.tall < 0) return;
  const T delta = delta_of(w, sum, row, T(1));
  extremes.sound = extremes.sound && finite(delta);
  if (task.global()) {
    extremes.step = Highest()(std::abs(delta), extremes.step);
    extremes.weight = Highest()(std::abs(w), extremes.weight);
  } else {
    const T next = moved(w, row.rate, delta);
    extremes.sound = extremes.sound && (task.by_row() ? finite(next) : finite(wide(S(next))));
    extremes.tall = Highest()(std::abs(next), extremes.tall);
    extremes.furthest = Highest()(std::abs(row.rate * delta), extremes.furthest);
  }
}

template <bool PACKED, class S, class T>
__device__ __forceinline__ void survey_row(const Matrix<S>& weight, const Task<T>& task, int64_t j, bool there,
                                           int member, Finding<T>& finding) {
  List list;
  if (there && task.starts) list = {task.starts[j], task.starts[j + 1]};
  const bool known = there && (!task.starts || list.end > list.start);
  Row<T> row = row_of(task, j, known, list, member);
  if (!finite(row.shrink) || !finite(row.share)) finding.sound = 0;
  if (task.rates.rate_power != 0) {
    const T rho = rho_of<PACKED>(weight, task, j, known, member);
    row.rate *= rho;
    if (row.tall >= 0) finding.rate = Highest()(rho, finding.rate);
  } else if (row.tall >= 0) {
    finding.rate = 1;
  }
  Extremes<T> extremes;
  for (int n = member * pack<S>; known && n < weight.inputs; n += task.split.team * pack<S>) {
    const auto w = load<PACKED>(weight, j, n);
    const auto sum = sums<PACKED, pack<S>>(task, list, j, n, weight.inputs);
#pragma unroll
    for (int i = 0; i < pack<S>; ++i) examine(extremes, w.at[i], sum.at[i], row, task);
  }
  if (!extremes.sound) finding.sound = 0;
  finding.step = Highest()(extremes.step, finding.step);
  finding.weight = Highest()(extremes.weight, finding.weight);
  if (task.by_row()) {
    const T furthest = of_team(extremes.furthest, task.split.team, Highest());
    const T tall = of_team(extremes.tall, task.split.team, Highest());
    if (row.tall >= 0) row.tall = furthest != 0 ? tall : T(-1);
  }
  if (there && member == 0) task.rows[j] = row;
}

// With lists, those that were cut are put together, and rows that no entry teaches are left out.
template <class S, class T, bool PACKED>
__global__ void __launch_bounds__(block_threads, resident<T>) survey_kernel(Matrix<S> weight, Task<T> task) {
  const bool broken = task.starts && task.starts[weight.rows + 2] > task.starts[weight.rows + 1];
  for (int group = int(blockIdx.x); group < task.split.count; group += int(gridDim.x)) {
    Finding<T> finding{T(0), T(0), T(0), T(!broken)};
    task.split.each_row(group, weight.rows, [&](int64_t j, bool there, int member) {
      survey_row<PACKED>(weight, task, j, there, member, finding);
    });
    finding.step = of_team(finding.step, block_threads, Highest());
    finding.weight = of_team(finding.weight, block_threads, Highest());
    finding.rate = of_team(finding.rate, block_threads, Highest());
    finding.sound = T(__syncthreads_and(finding.sound == 1));
    if (threadIdx.x == 0) task.findings[group] = finding;
  }
}

template <class S>
constexpr double largest_of = 1.7976931348623157e308;
template <>
constexpr double largest_of<float> = 3.4028234663852886e38;
template <>
constexpr double largest_of<BFloat16> = 3.3895313892515355e38;
template <>
constexpr double largest_of<Half> = 65504;

// Whether every new weight will be finite, in every thread of a block, and what the step is divided by.
// No new weight is above |w| + |lr| rho |delta| / scale, of which each group has the maxima.
template <class S, class T>
__device__ __forceinline__ bool verdict(const Task<T>& task, T& scale) {
  constexpr T smallest = T(1e-30), rounded = T(1 + 0x1p-18);  // more than the roundings between bound and weight
  bool good = true;
  T step = 0;
#pragma unroll 1
  for (int group = int(threadIdx.x); group < task.split.count; group += block_threads) {
    const Finding<T> finding = task.findings[group];
    good = good && finding.sound == 1;
    step = Highest()(finding.step, step);
  }
  scale = 1;
  if (!task.global()) return __syncthreads_and(good);
  scale = Highest()(of_team(step, block_threads, Highest()), smallest);
#pragma unroll 1
  for (int group = int(threadIdx.x); group < task.split.count; group += block_threads) {
    const Finding<T> finding = task.findings[group];
    const T reach = std::abs(T(task.rates.lr)) * finding.rate * quotient(finding.step, scale);
    good = good && (finding.weight + reach) * rounded < T(largest_of<S>);
  }
  return __syncthreads_and(good);
}

// The length of a row after its step, in units of its largest entry: no square overflows, and it is at least 1.
template <bool PACKED, class S, class T>
__device__ __forceinline__ T length_of(const Matrix<S>& weight, const Task<T>& task, const Row<T>& row, int64_t j,
                                       int member) {
  T squares = 0;
  for (int n = member * pack<S>; row.tall > 0 && n < weight.inputs; n += task.split.team * pack<S>) {
    const auto w = load<PACKED>(weight, j, n);
    const auto sum = load<PACKED, pack<S>>(static_cast<const T*>(task.total + j * weight.inputs), n, weight.inputs);
#pragma unroll
    for (int i = 0; i < pack<S>; ++i) {
      const T a = wide(w.at[i]), part = quotient(moved(a, row.rate, delta_of(a, sum.at[i], row, T(1))), row.tall);
      squares = std::fma(part, part, squares);
    }
  }
  squares = of_team(squares, task.split.team, Sum());
  return squares == 0 ? T(1) : std::sqrt(squares);
}

template <bool PACKED, class S, class T>
__device__ __forceinline__ void step_row(const Matrix<S>& weight, const Task<T>& task, T scale, int64_t j, bool there,
                                         int member) {
  Row<T> row{T(0), T(-1), T(0), T(1)};
  if (there) row = task.rows[j];
  T length = 1;
  if (task.rates.normalise == Normalise::row_l2) length = length_of<PACKED>(weight, task, row, j, member);
  const T tall = row.tall == 0 ? T(1) : row.tall;  // a row that became zero is left so
  for (int n = member * pack<S>; row.tall >= 0 && n < weight.inputs; n += task.split.team * pack<S>) {
    auto w = load<PACKED>(weight, j, n);
    const auto sum = load<PACKED, pack<S>>(static_cast<const T*>(task.total + j * weight.inputs), n, weight.inputs);
#pragma unroll
    for (int i = 0; i < pack<S>; ++i) {
      const T a = wide(w.at[i]), delta = delta_of(a, sum.at[i], row, scale), next = moved(a, row.rate, delta);
      if (task.by_row())
        w.at[i] = S(quotient(quotient(next, tall), length));
      else if (row.rate * delta != 0)  // -0 + 0 would lose its sign
        w.at[i] = S(next);
    }
    store<PACKED>(weight, j, n, w);
  }
}

// Each block its rows, which it reads once, or twice for their norm: from L1 then.
template <class S, class T, bool PACKED>
__global__ void __launch_bounds__(block_threads, resident<T>)
    step_kernel(Matrix<S> weight, Task<T> task, int* skipped) {
  T scale;
  if (!verdict<S>(task, scale)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *skipped += 1;
    return;
  }
  for (int group = int(blockIdx.x); group < task.split.count; group += int(gridDim.x))
    task.split.each_row(group, weight.rows, [&](int64_t j, bool there, int member) {
      step_row<PACKED>(weight, task, scale, j, there, member);
    });
}

// Where values are known, sums of lists that overflowed are told apart from steps that do.
template <class T>
void require_sums(const char* op, const Task<T>& task, int64_t rows, int inputs) {
  if (!task.starts || !values_known()) return;
  for (int64_t j = 0; j < rows; ++j) {
    if (task.starts[j + 1] == task.starts[j]) continue;
    bool sound = std::isfinite(task.decay[j]);
    for (int n = 0; n < inputs; ++n) sound = sound && std::isfinite(task.total[j * inputs + n]);
    if (!sound) fail_overflow(op, finite_sums, sizeof(T) == 8);
  }
}

template <class S, class T, bool PACKED>
void take_by(const char* op, const Device& device, const Matrix<S>& weight, const Task<T>& task) {
  const dim3 grid = task.split.grid(device);
  launch<survey_kernel<S, T, PACKED>>("apply.survey", grid, block_threads, 0, device, weight, task);
  require_sums(op, task, weight.rows, weight.inputs);
  launch<step_kernel<S, T, PACKED>>("apply.step", grid, block_threads, 0, device, weight, task, skipped(device));
  raise_if_step_skipped(op, device);
}

}  // namespace

template <class S, class T>
void take(const char* op, const Device& device, const Tensor& weight, T* total, const Rates<T>& rates,
          const Lists<T>* lists, bool average) {
  const Matrix<S> matrix(op, weight);
  const RowSplit split(matrix);
  const ScalarType dtype = result_dtype(weight.scalar_type());
  const Tensor rows = empty_like(weight, {matrix.rows, 4}, dtype);
  const Tensor findings = empty_like(weight, {split.count, 4}, dtype);
  Task<T> task{
      total, rates, nullptr, nullptr, nullptr, nullptr, false, pointer<Row<T>>(rows), pointer<Finding<T>>(findings),
      split};
  if (lists) {
    task.starts = lists->starts;
    task.partial = lists->partial;
    task.decay_partial = lists->decay_partial;
    task.decay = lists->decay;
    task.average = average;
  }
  if (matrix.in_packs() && uintptr_t(total) % 16 == 0 && uintptr_t(task.partial) % 16 == 0)
    take_by<S, T, true>(op, device, matrix, task);
  else
    take_by<S, T, false>(op, device, matrix, task);
}

template <class T>
static Column<T> column(const OptionalTensor& numbers, int64_t neurons) {
  if (!numbers) return {};
  return {const_pointer<T>(numbers), numbers->size(0) < neurons ? 0 : numbers->stride(0)};
}

static void apply_(Tensor weight, Tensor sum, OptionalTensor decay, OptionalTensor denominator, double lr,
                   std::string normalise, double rate_power, OptionalTensor frozen) {
  const char* op = "apply_";
  const Normalise kind = check_apply(weight, sum, decay, denominator, lr, normalise, rate_power, frozen);
  const Device device(weight);
  raise_if_skipped(device);
  require_finite(op, "weight", weight);
  require_finite(op, "sum", sum);
  require_finite(op, "decay", decay);
  require_finite(op, "denominator", denominator);
  const Tensor total = sum.is_contiguous() ? sum : torch::stable::contiguous(sum);
  with_dtype(weight.scalar_type(), [&](auto stored, auto tag) {
    using T = decltype(tag);
    const Rates<T> rates{
        column<T>(decay, weight.size(0)), column<T>(denominator, weight.size(0)), lr, rate_power, kind, Mask(frozen)};
    take<decltype(stored), T>(op, device, weight, pointer<T>(total), rates);
  });
}

#define TAKE(S, T) \
  template void take<S, T>(const char*, const Device&, const Tensor&, T*, const Rates<T>&, const Lists<T>*, bool);
TAKE(float, float)
TAKE(double, double)
TAKE(BFloat16, float)
TAKE(Half, float)
#undef TAKE

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("apply_.cuda", TORCH_BOX(&apply_)); }

}  // namespace hebbkern
