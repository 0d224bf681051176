// accumulate: patches grouped by neuron with a counting sort, then added up list by list.
#include "common/accumulate.h"

#include "cpu/ops/accumulate.h"
#include "cpu/ops/grouped.h"

#include <algorithm>
#include <cmath>

namespace hebbkern {

// Entries of a neuron's list that are added in one go. A longer list is cut into pieces, whose sums are added in order:
// every thread has work even where one neuron wins every patch.
constexpr int64_t piece = 256;

// Calls f(patch, neuron, coefficient, response), in patch order, for the entries of patches [first, last) that teach.
template <class T, class F>
static void each_entry(const Assignments<T>& assignments, int64_t first, int64_t last, const F& f) {
  const int32_t* target = assignments.targets + first * assignments.ranks;
  for (int64_t p = first; p < last; ++p)
    for (int64_t r = 0; r < assignments.ranks; ++r) {
      const int32_t j = *target++;
      const T c = assignments.coefficients(p, r);
      if (j >= 0 && c != 0 && !assignments.frozen[j]) f(p, j, c, assignments.responses(p, r));
    }
}

template <class T>
void forget_blank(const Source<T>& source, const Moments<T>* moments, int64_t ranks, int32_t* targets) {
  const int64_t patches = source.g.patches();
  constexpr int64_t share = 1024;  // patches to a hand-out
  parallel(ranks > 0 ? (patches + share - 1) / share : 0, [&](int64_t part) {
    const int64_t first = part * share, last = std::min(patches, first + share);
    int64_t bases[share];
    if (!moments) source.bases(first, last - first, bases);
    for (int64_t p = first; p < last; ++p)
      if (moments ? moments->scale[p] == 0 : source.blank(bases[p - first]))
        std::fill_n(targets + p * ranks, ranks, -1);
  });
}

// Counts, then places the entries: two passes, each in chunks of patches that depend on the number of patches alone.
// The decays are summed in patch order within a chunk, then chunk by chunk.
template <class T>
Lists<T> group(const Source<T>& source, const Moments<T>* moments, const Assignments<T>& assignments) {
  const int64_t neurons = source.g.neurons, patches = source.g.patches();
  const int64_t chunks = std::clamp<int64_t>(patches / 8192, 1, 8), size = (patches + chunks - 1) / chunks;
  std::vector<int64_t> next(chunks * neurons);  // of each neuron: how many entries, then where the next one goes
  std::vector<double> total(chunks * neurons);
  parallel(chunks, [&](int64_t chunk) {
    int64_t* count = &next[chunk * neurons];
    double* sum = &total[chunk * neurons];
    each_entry(assignments, chunk * size, std::min(patches, (chunk + 1) * size), [&](int64_t, int32_t j, T c, T s) {
      ++count[j];
      sum[j] += double(c) * double(s);
    });
  });
  std::vector<int32_t> taught;
  std::vector<int64_t> start{0};
  for (int64_t j = 0; j < neurons; ++j) {
    int64_t at = start.back();
    for (int64_t chunk = 0; chunk < chunks; ++chunk) at += std::exchange(next[chunk * neurons + j], at);
    if (at == start.back()) continue;
    taught.push_back(int32_t(j));
    start.push_back(at);
  }
  Lists<T> lists(std::move(taught), std::move(start));
  for (int64_t i = 0; i < lists.size(); ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += total[chunk * neurons + lists.neurons[i]];
    lists.decay[i] = T(sum);
  }
  parallel(chunks, [&](int64_t chunk) {
    const int64_t first = chunk * size, last = std::min(patches, first + size);
    Scratch<int64_t> bases(last - first);
    source.bases(first, last - first, bases.get());
    each_entry(assignments, first, last, [&](int64_t p, int32_t j, T c, T) {
      const int64_t at = next[chunk * neurons + j]++;
      lists.base[at] = bases[p - first];
      const T scaled = moments ? c * moments->scale[p] : c;
      lists.coefficient[at] = scaled;
      lists.shift[at] = moments ? scaled * moments->offset[p] : T(0);
    });
  });
  return lists;
}

// Vectors of neighbouring inputs that cover a patch. The last of a run reads past it, into entries that are not stored.
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

// Entries [from, to) of a list. A list of several such pieces is long: each piece fills a row of partial sums.
struct Work {
  int64_t list, from, to;
  int64_t partial = -1, long_list = -1;
};

// Lists in pieces, and pieces in parts that are worth waking a thread for.
struct Plan {
  template <class T>
  Plan(const Lists<T>& lists, int64_t inputs) {
    constexpr int64_t worth = 1 << 18;  // multiply-adds
    int64_t load = worth;
    for (int64_t i = 0; i < lists.size(); ++i) {
      const int64_t from = lists.start[i], to = lists.start[i + 1];
      const bool is_long = to - from > piece;
      if (is_long) first_partial.push_back(partials);
      for (int64_t at = from; at < to; at += piece) {
        if (load >= worth) {
          hand_out.push_back(int64_t(work.size()));
          load = 0;
        }
        const int64_t end = std::min(at + piece, to);
        work.push_back({i, at, end});
        if (is_long) {
          work.back().partial = partials++;
          work.back().long_list = int64_t(first_partial.size()) - 1;
        }
        load += (end - at + 4) * inputs;  // what a row costs by itself is about four entries
      }
    }
    hand_out.push_back(int64_t(work.size()));
    first_partial.push_back(partials);
  }
  std::vector<Work> work;
  std::vector<int64_t> hand_out;       // number h is work [hand_out[h], hand_out[h + 1])
  std::vector<int64_t> first_partial;  // of each long list, and of the end
  int64_t partials = 0;
};

template <class T>
void add_lists(const Source<T>& source, const Lists<T>& lists, const std::function<T*(int64_t)>& row,
               const std::function<void(int64_t, const T*)>& done) {
  const int64_t inputs = source.g.inputs();
  const bool in_order = source.g.kh * source.g.kw == 1;
  const Vectors vectors = cover(source);
  const Plan plan(lists, inputs);
  Scratch<T> partials(plan.partials * inputs);
  std::vector<std::atomic<int64_t>> added(plan.first_partial.size());  // pieces of each long list
  const auto store = [&](int64_t list, const T* sum) {
    T* to = row(list);
    for (int64_t n = 0; n < inputs; ++n) to[in_weight(source.g, n)] = sum[n];
  };
  // The thread that adds a long list's last piece adds the pieces' sums, in their order.
  const auto merge = [&](const Work& w) {
    const int64_t first = plan.first_partial[w.long_list], end = plan.first_partial[w.long_list + 1];
    if (++added[w.long_list] < end - first) return false;
    T* sum = partials.get() + first * inputs;
    for (const T* next = sum + inputs; next < partials.get() + end * inputs; next += inputs)
      for (int64_t n = 0; n < inputs; ++n) sum[n] += next[n];
    store(w.list, sum);
    return true;
  };
  parallel(int64_t(plan.hand_out.size()) - 1, [&](int64_t part) {
    Scratch<T> buffer(in_order ? 0 : inputs);
    for (int64_t i = plan.hand_out[part]; i < plan.hand_out[part + 1]; ++i) {
      const Work& w = plan.work[i];
      T* const sum = w.partial >= 0 ? partials.get() + w.partial * inputs : in_order ? row(w.list) : buffer.get();
      add_piece(source, vectors, lists, w.from, w.to, sum);
      if (w.partial >= 0) {
        if (!merge(w)) continue;
      } else if (!in_order) {
        store(w.list, sum);
      }
      done(w.list, row(w.list));
    }
  });
}

template <class I>
static void copy_indices(const char* op, const char* argument, const Tensor& tensor, int64_t repeat, int64_t neurons,
                         int64_t groups, int32_t* out) {
  const I* indices = static_cast<const I*>(tensor.const_data_ptr());
  const int64_t columns = tensor.dim() == 2 ? tensor.size(1) : 1, down = tensor.stride(0);
  const int64_t right = tensor.dim() == 2 ? tensor.stride(1) : 0;
  const int64_t each = neurons / groups, rows = tensor.size(0) / groups;
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    const int64_t group = i / rows, first = group * each;
    for (int64_t copy = 0; copy < repeat; ++copy)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t index = indices[i * down + j * right];
        if (index != -1 && (index < first || index >= first + each))
          fail_index(op, argument, each, index, group, groups);
        *out++ = int32_t(index);
      }
  }
}

Scratch<int32_t> checked_indices(const char* op, const char* argument, const Tensor& tensor, int64_t repeat,
                                 int64_t neurons, int64_t groups) {
  Scratch<int32_t> indices(tensor.numel() * repeat);
  if (tensor.scalar_type() == ScalarType::Int)
    copy_indices<int32_t>(op, argument, tensor, repeat, neurons, groups, indices.get());
  else
    copy_indices<int64_t>(op, argument, tensor, repeat, neurons, groups, indices.get());
  return indices;
}

template void forget_blank(const Source<float>&, const Moments<float>*, int64_t, int32_t*);
template void forget_blank(const Source<double>&, const Moments<double>*, int64_t, int32_t*);
template Lists<float> group(const Source<float>&, const Moments<float>*, const Assignments<float>&);
template Lists<double> group(const Source<double>&, const Moments<double>*, const Assignments<double>&);
template void add_lists(const Source<float>&, const Lists<float>&, const std::function<float*(int64_t)>&,
                        const std::function<void(int64_t, const float*)>&);
template void add_lists(const Source<double>&, const Lists<double>&, const std::function<double*(int64_t)>&,
                        const std::function<void(int64_t, const double*)>&);

// [P, R], or [R] for the same in every patch.
template <class T>
static Numbers<T> numbers_of(const char* argument, const Tensor& tensor) {
  const int64_t inner = tensor.dim() - 1;
  const Numbers<T> numbers{static_cast<const T*>(tensor.const_data_ptr()), inner ? tensor.stride(0) : 0,
                           tensor.stride(inner)};
  for (int64_t p = 0; p < (inner ? tensor.size(0) : 1); ++p)
    for (int64_t r = 0; r < tensor.size(inner); ++r)
      if (!std::isfinite(numbers(p, r))) fail_finite("accumulate", argument);
  return numbers;
}

template <class T>
static void accumulate_typed(const Tensor& x, const Geometry& g, const Tensor& targets, const Tensor& coefficients,
                             const OptionalTensor& responses, const OptionalTensor& frozen, Patches patches, T* sum,
                             T* decay, T* count) {
  const char* op = "accumulate";
  Assignments<T> assignments{targets.size(1), nullptr, numbers_of<T>("coefficients", coefficients), {}, Mask(frozen)};
  if (responses) assignments.responses = numbers_of<T>("responses", *responses);
  const Scratch<int32_t> indices = checked_indices(op, "targets", targets, 1, g.groups * g.neurons, g.groups);
  assignments.targets = indices.get();
  if (g.groups > 1) return add_grouped(op, x, g, patches, assignments, {sum, decay, count});
  const Source<T> source(op, x, g);
  std::optional<Moments<T>> moments;
  if (patches != Patches::raw) moments.emplace(op, source, patches);
  const Moments<T>* const known = moments ? &*moments : nullptr;
  forget_blank(source, known, assignments.ranks, indices.get());
  const Lists<T> lists = group(source, known, assignments);
  const int64_t inputs = g.inputs();
  std::vector<bool> is_taught(g.neurons);
  std::fill(decay, decay + g.neurons, T(0));
  std::fill(count, count + g.neurons, T(0));
  for (int64_t i = 0; i < lists.size(); ++i) {
    const int32_t j = lists.neurons[i];
    is_taught[j] = true;
    decay[j] = lists.decay[i];
    count[j] = T(lists.start[i + 1] - lists.start[i]);
  }
  const int64_t block = std::max<int64_t>(1, (1 << 18) / inputs);  // rows that are worth waking a thread for
  parallel((g.neurons + block - 1) / block, [&](int64_t part) {
    for (int64_t j = part * block; j < std::min(g.neurons, (part + 1) * block); ++j)
      if (!is_taught[j]) std::fill(sum + j * inputs, sum + (j + 1) * inputs, T(0));
  });
  add_lists<T>(
      source, lists, [&](int64_t list) { return sum + lists.neurons[list] * inputs; }, [](int64_t, const T*) {});
}

static std::tuple<Tensor, Tensor, Tensor> accumulate(Tensor x, Tensor targets, Tensor coefficients,
                                                     OptionalTensor responses, int64_t neurons, Ints kernel,
                                                     std::string patches, Ints stride, Ints padding, Ints dilation,
                                                     int64_t groups, OptionalTensor frozen) {
  const PatchedLayer layer = check_accumulate(x, targets, coefficients, responses, neurons, kernel, patches, stride,
                                              padding, dilation, groups, frozen);
  const Geometry& g = layer.g;
  const ScalarType result = result_dtype(x.scalar_type());
  Tensor sum = g.image ? empty({neurons, g.channels, g.kh, g.kw}, result) : empty({neurons, g.channels}, result);
  Tensor decay = empty({neurons}, result), count = empty({neurons}, result);
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    accumulate_typed<T>(x, g, targets, coefficients, responses, frozen, layer.patches,
                        static_cast<T*>(sum.mutable_data_ptr()), static_cast<T*>(decay.mutable_data_ptr()),
                        static_cast<T*>(count.mutable_data_ptr()));
  });
  return {sum, decay, count};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("accumulate.cpu", TORCH_BOX(&accumulate)); }

}  // namespace hebbkern
