// accumulate: each taught neuron adds its patches in patch order. No atomics, no sums that depend on the threads.
#include <algorithm>
#include <cmath>

#include "source.h"

namespace hebbkern {

// Entries of a neuron's list that are added in one go. A longer list is cut, its pieces' sums are added in order: one
// neuron may win everything and still keep every thread busy.
constexpr int64_t piece = 256;

// Patches grouped by taught neuron, a stable counting sort: neuron j's entries are [start[j], start[j + 1]).
template <class T>
struct Lists {
  explicit Lists(std::vector<int64_t> starts)
      : start(std::move(starts)), base(start.back()), coefficient(start.back()), shift(start.back()) {}
  const std::vector<int64_t> start;
  Scratch<int64_t> base;
  Scratch<T> coefficient;  // coefficient * scale
  Scratch<T> shift;        // coefficient * scale * offset, where patches have an offset
};

struct Taught {
  const Tensor& neurons;       // [P, R]
  const Tensor& coefficients;  // [P, R] or [R]
  const OptionalTensor& responses;
  const bool* frozen;
  int64_t frozen_step;
};

// Calls f(patch, neuron, coefficient, response) for every entry that teaches, in patch order. A neuron out of range
// is returned.
template <class T, class I, class F>
static std::optional<int64_t> each_entry(const Taught& taught, int64_t neurons, const F& f) {
  const int64_t patches = taught.neurons.size(0), ranks = taught.neurons.size(1);
  const int64_t np = taught.neurons.stride(0), nr = taught.neurons.stride(1);
  const bool shared = taught.coefficients.dim() == 1;
  const int64_t cp = shared ? 0 : taught.coefficients.stride(0), cr = taught.coefficients.stride(shared ? 0 : 1);
  const I* who = static_cast<const I*>(taught.neurons.const_data_ptr());
  const T* coefficient = static_cast<const T*>(taught.coefficients.const_data_ptr());
  const T* response = taught.responses ? static_cast<const T*>(taught.responses->const_data_ptr()) : nullptr;
  const int64_t sp = response ? taught.responses->stride(0) : 0, sr = response ? taught.responses->stride(1) : 0;
  for (int64_t p = 0; p < patches; ++p)
    for (int64_t r = 0; r < ranks; ++r) {
      const int64_t j = who[p * np + r * nr];
      if (j < -1 || j >= neurons) return j;
      const T c = coefficient[p * cp + r * cr];
      if (j < 0 || c == 0 || (taught.frozen && taught.frozen[j * taught.frozen_step])) continue;
      f(p, j, c, response ? response[p * sp + r * sr] : T(1));
    }
  return std::nullopt;
}

template <class T, class F>
static std::optional<int64_t> each_entry(const Taught& taught, int64_t neurons, const F& f) {
  if (taught.neurons.scalar_type() == ScalarType::Int) return each_entry<T, int32_t>(taught, neurons, f);
  return each_entry<T, int64_t>(taught, neurons, f);
}

template <class T>
static void check_entries(const Taught& taught) {
  auto sound = [](const Tensor& t) {
    const T* data = static_cast<const T*>(t.const_data_ptr());
    const int64_t inner = t.size(t.dim() - 1), outer = t.dim() == 2 ? t.size(0) : 1;
    for (int64_t i = 0; i < outer; ++i)
      for (int64_t j = 0; j < inner; ++j)
        if (!std::isfinite(data[(t.dim() == 2 ? i * t.stride(0) : 0) + j * t.stride(t.dim() - 1)])) return false;
    return true;
  };
  if (!sound(taught.coefficients)) fail_finite("accumulate", "coefficients");
  if (taught.responses && !sound(*taught.responses)) fail_finite("accumulate", "responses");
}

// Counts, then places: two walks over the entries. Also yields decay and count, summed in patch order.
template <class T>
static Lists<T> group(const Source<T>& source, const Moments<T>* moments, const Taught& taught, int64_t neurons,
                      T* decay, T* count) {
  std::vector<int64_t> start(neurons + 1);
  std::vector<double> total(neurons);
  const auto wrong = each_entry<T>(taught, neurons, [&](int64_t, int64_t j, T c, T s) {
    ++start[j + 1];
    total[j] += double(c) * double(s);
  });
  if (wrong) fail("accumulate", "taught must name neurons 0 to ", neurons - 1, ", or -1 for nobody, got ", *wrong);
  for (int64_t j = 0; j < neurons; ++j) {
    decay[j] = T(total[j]);
    count[j] = T(start[j + 1]);
    start[j + 1] += start[j];
  }
  Lists<T> lists(start);
  Scratch<int64_t> bases(source.g.patches());
  source.bases(0, source.g.patches(), bases.get());
  each_entry<T>(taught, neurons, [&](int64_t p, int64_t j, T c, T) {
    const int64_t at = start[j]++;
    lists.base[at] = bases[p];
    const T scaled = moments ? c * moments->scale[p] : c;
    lists.coefficient[at] = scaled;
    lists.shift[at] = moments ? scaled * moments->offset[p] : T(0);
  });
  return lists;
}

// Vectors of neighbouring inputs that cover a patch: the last of a run reads past it, into entries nobody stores.
struct Vectors {
  std::vector<int64_t> offset, first, length;
};

template <class T>
static Vectors cover(const Source<T>& source) {
  Vectors vectors;
  const int64_t lanes = kernels<T>().lanes;
  for (const auto& run : source.runs)
    for (int64_t at = 0; at < run.length; at += lanes) {
      vectors.offset.push_back(source.offset[run.first] + at);
      vectors.first.push_back(run.first + at);
      vectors.length.push_back(std::min(lanes, run.length - at));
    }
  return vectors;
}

// sum of coefficient * (x - offset) over entries [from, to) of the lists into `row`, in the source's input order.
template <class T>
static void add_piece(const Source<T>& source, const Vectors& vectors, const Lists<T>& lists, int64_t from, int64_t to,
                      T* row) {
  const auto& kernel = kernels<T>();
  const int64_t lanes = kernel.lanes, groups = vectors.offset.size();
  T shift = 0;
  for (int64_t e = from; e < to; ++e) shift += lists.shift[e];
  alignas(64) T sums[8 * 16], tail[16];
  for (int64_t g = 0; g < groups; g += 8) {
    const int size = int(std::min<int64_t>(8, groups - g));
    // Bases rise with the patch, so those whose last vector would leave the images' memory end the list.
    int64_t inside = to;
    while (inside > from && lists.base[inside - 1] + vectors.offset[g + size - 1] + lanes > source.end) --inside;
    const bool whole =
        vectors.length[g + size - 1] == lanes && vectors.first[g + size - 1] == vectors.first[g] + (size - 1) * lanes;
    T* out = whole ? row + vectors.first[g] : sums;
    kernel.gather(source.x, &lists.base[from], &lists.coefficient[from], inside - from, &vectors.offset[g], size, shift,
                  out);
    for (int64_t e = inside; e < to; ++e)
      for (int v = 0; v < size; ++v) {
        const int64_t length = vectors.length[g + v], zero = 0;
        const T* x = source.x + lists.base[e] + vectors.offset[g + v];
        std::fill(std::copy(x, x + length, tail), tail + lanes, T(0));
        T one[16];
        kernel.gather(tail, &zero, &lists.coefficient[e], 1, &zero, 1, T(0), one);
        for (int64_t l = 0; l < length; ++l) out[v * lanes + l] += one[l];
      }
    for (int v = 0; !whole && v < size; ++v)
      for (int64_t l = 0; l < vectors.length[g + v]; ++l) row[vectors.first[g + v] + l] = sums[v * lanes + l];
  }
}

template <class T>
static void accumulate_typed(const Tensor& x, const Geometry& g, const Taught& taught, Patches patches, T* sum,
                             T* decay, T* count) {
  const Source<T> source("accumulate", x, g);
  check_entries<T>(taught);
  std::optional<Moments<T>> moments;
  if (patches != Patches::raw) moments.emplace("accumulate", source, patches);
  const Lists<T> lists = group(source, moments ? &*moments : nullptr, taught, g.neurons, decay, count);
  const Vectors vectors = cover(source);
  const int64_t inputs = g.inputs();

  struct Work {
    int64_t neuron, from, to, partial;  // partial: the row of `partials` it fills, or -1 for the neuron's sum itself
  };
  std::vector<Work> work;
  std::vector<int64_t> long_lists, first_partial;
  int64_t partial = 0;
  for (int64_t j = 0; j < g.neurons; ++j) {
    const int64_t from = lists.start[j], to = lists.start[j + 1];
    if (to - from <= piece) {
      work.push_back({j, from, to, -1});
      continue;
    }
    long_lists.push_back(j);
    first_partial.push_back(partial);
    for (int64_t at = from; at < to; at += piece) work.push_back({j, at, std::min(at + piece, to), partial++});
  }
  first_partial.push_back(partial);
  Scratch<T> partials(partial * inputs);

  const bool in_order = g.kh * g.kw == 1;
  const auto store = [&](int64_t j, const T* row) {
    T* to = sum + j * inputs;
    for (int64_t n = 0; n < inputs; ++n) to[source.in_weight(n)] = row[n];
  };
  constexpr int64_t batch = 8;  // most lists are short: eight to a hand-out
  parallel((int64_t(work.size()) + batch - 1) / batch, [&](int64_t part) {
    Scratch<T> row(inputs);
    for (int64_t i = part * batch; i < std::min<int64_t>(work.size(), (part + 1) * batch); ++i) {
      const Work& w = work[i];
      if (w.from == w.to) {
        std::fill(sum + w.neuron * inputs, sum + (w.neuron + 1) * inputs, T(0));
      } else if (w.partial >= 0) {
        add_piece(source, vectors, lists, w.from, w.to, partials.get() + w.partial * inputs);
      } else if (in_order) {
        add_piece(source, vectors, lists, w.from, w.to, sum + w.neuron * inputs);
      } else {
        add_piece(source, vectors, lists, w.from, w.to, row.get());
        store(w.neuron, row.get());
      }
    }
  });
  parallel(long_lists.size(), [&](int64_t i) {
    T* row = partials.get() + first_partial[i] * inputs;
    for (int64_t piece = first_partial[i] + 1; piece < first_partial[i + 1]; ++piece)
      for (int64_t n = 0; n < inputs; ++n) row[n] += partials[piece * inputs + n];
    store(long_lists[i], row);
  });
}

static void check_taught(const Tensor& x, const Tensor& taught, const Tensor& coefficients,
                         const OptionalTensor& responses, int64_t patches) {
  const char* op = "accumulate";
  const ScalarType result = result_dtype(x.scalar_type());
  if ((taught.scalar_type() != ScalarType::Int && taught.scalar_type() != ScalarType::Long) || taught.dim() != 2 ||
      taught.size(0) != patches)
    fail(op, "taught must be int32 or int64 of shape [patches = ", patches, ", ranks], got ", describe(taught));
  const int64_t ranks = taught.size(1);
  if (coefficients.scalar_type() != result ||
      !(has_shape(coefficients, {ranks}) || has_shape(coefficients, {patches, ranks})))
    fail(op, "coefficients must be ", name_of(result), " of shape [", ranks, "] or [", patches, ", ", ranks, "], got ",
         describe(coefficients));
  if (responses && (responses->scalar_type() != result || !has_shape(*responses, {patches, ranks})))
    fail(op, "responses must be ", name_of(result), " of shape [", patches, ", ", ranks, "], got ",
         describe(*responses));
}

static std::tuple<Tensor, Tensor, Tensor> accumulate(Tensor x, Tensor taught, Tensor coefficients,
                                                     OptionalTensor responses, int64_t neurons, Ints kernel,
                                                     std::string patches, Ints stride, Ints padding, Ints dilation,
                                                     OptionalTensor frozen) {
  const char* op = "accumulate";
  check_x(op, x);
  if (x.size(1) == 0) fail(op, "x must have at least one input, got shape ", list(x.sizes()));
  if (neurons < 1) fail(op, "neurons must be at least 1, got ", neurons);
  if (x.dim() == 2 && !kernel.empty()) fail(op, "kernel must be empty for x [batch, inputs], got ", list(kernel));
  if (x.dim() == 4 && (kernel.size() != 2 || kernel[0] < 1 || kernel[1] < 1))
    fail(op, "kernel must be two numbers of at least 1 for images, got ", list(kernel));
  const Geometry g = check_geometry(op, x, neurons, kernel, stride, padding, dilation, "kernel");
  const Patches kind = check_patches(op, patches);
  check_taught(x, taught, coefficients, responses, g.patches());
  check_mask(op, "frozen", frozen, neurons);
  const ScalarType result = result_dtype(x.scalar_type());
  Tensor sum = g.image ? empty({neurons, g.channels, g.kh, g.kw}, result) : empty({neurons, g.channels}, result);
  Tensor decay = empty({neurons}, result), count = empty({neurons}, result);
  const Taught who{taught, coefficients, responses,
                   frozen ? static_cast<const bool*>(frozen->const_data_ptr()) : nullptr,
                   frozen ? frozen->stride(0) : 0};
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    accumulate_typed<T>(x, g, who, kind, static_cast<T*>(sum.mutable_data_ptr()),
                        static_cast<T*>(decay.mutable_data_ptr()), static_cast<T*>(count.mutable_data_ptr()));
  });
  return {sum, decay, count};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("accumulate", TORCH_BOX(&accumulate)); }

}  // namespace hebbkern
