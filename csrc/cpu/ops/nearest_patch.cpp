// nearest_patch: each neuron's nearest patch. The search expands ||w - x||^2 into the tile's products; the distance of
// the patch it finds is then computed from the differences themselves, free of the expansion's cancellation.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/compete.h"
#include "cpu/ops/grouped.h"
#include "cpu/products/panels.h"

namespace hebbkern {

// A patch, centred or standardised: where it lies if it is raw and contiguous, else a copy in `buffer`.
template <class T>
static const T* patch_of(const Source<T>& s, const Moments<T>* m, int64_t patch, T* buffer) {
  const T* x = s.x + s.base(patch);
  if (!m && s.runs.size() == 1) return x;
  for (const auto& run : s.runs) {
    const T* from = x + s.offset[run.first];
    std::copy(from, from + run.length, buffer + run.first);
  }
  if (m)
    for (int64_t n = 0; n < s.g.inputs(); ++n) buffer[n] = (buffer[n] - m->offset[patch]) * m->scale[patch];
  return buffer;
}

// Per patch: ||x~||_1 (0 for a patch of zeros), the same in T, and ||x~||^2.
template <class T>
struct Lengths {
  Lengths(const Source<T>& s, const Moments<T>* m)
      : one(s.g.patches()), rounded(s.g.patches()), squares(s.g.patches()) {
    constexpr int64_t share = 16;  // patches to a hand-out: few enough for a small batch to feed every thread
    const int64_t patches = s.g.patches();
    std::atomic<bool> flaw{false};
    parallel((patches + share - 1) / share, [&](int64_t part) {
      Scratch<T> buffer(s.g.inputs());
      for (int64_t p = part * share; p < std::min(patches, (part + 1) * share); ++p) {
        double two;
        kernels<T>().norms(patch_of(s, m, p, buffer.get()), s.g.inputs(), &one[p], &two);
        rounded[p] = T(one[p]);
        squares[p] = T(two);
        if ((one[p] > 0 && !std::isfinite(T(1 / one[p]))) || !std::isfinite(squares[p])) flaw = true;
      }
    });
    sound = !flaw;
  }
  Scratch<double> one;
  Scratch<T> rounded, squares;
  bool sound;  // nothing left T's range
};

// The nearest of patches [first, end) to every column of one panel.
template <class T>
static void search(const Source<T>& s, const Panels<T>& panels, const Moments<T>* m, const Lengths<T>& lengths,
                   int64_t panel, int64_t first, int64_t end, T* distance, Index<T>* nearest) {
  const auto& kernel = kernels<T>();
  const int vectors = panels.vectors(panel), valid = panels.valid(panel);
  const T *wsum = &panels.wsum[panel * panels.width], *wnorm = &panels.wnorm[panel * panels.width];
  alignas(64) T dots[8 * 48];
  std::fill(distance, distance + valid, std::numeric_limits<T>::infinity());
  std::fill(nearest, nearest + valid, Index<T>(-1));
  for (int64_t i = first; i < end; i += kernel.rows) {
    const int64_t rows = std::min<int64_t>(kernel.rows, end - i);
    int64_t bases[8];
    const T* row[8];
    s.bases(i, rows, bases);
    for (int64_t r = 0; r < kernel.rows; ++r) row[r] = s.x + bases[std::min(r, rows - 1)];
    kernel.tile(row, s.offset.data(), panels.inputs, panels[panel], panels.width, vectors, dots, kernel.width, false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t p = i + r;
      T* dot = dots + r * kernel.width;
      if (lengths.rounded[p] == 0) continue;
      if (m)
        for (int j = 0; j < valid; ++j) dot[j] = m->scale[p] * (dot[j] - m->offset[p] * wsum[j]);
      kernel.nearer(dot, valid, wnorm, lengths.squares[p], lengths.rounded[p], Index<T>(p), distance, nearest);
    }
  }
}

// The nearest patch to each column in each block of patches, [blocks][columns], the earlier patches first.
template <class T>
struct SearchResult {
  SearchResult(int64_t parts, int64_t per_part)
      : blocks(parts), columns(per_part), best(parts * per_part), index(parts * per_part) {}
  const int64_t blocks, columns;
  Scratch<T> best;
  Scratch<Index<T>> index;

  // The patch nearest to a column, the lowest of those equally near; -1 for none.
  Index<T> nearest(int64_t column) const {
    T smallest = std::numeric_limits<T>::infinity();
    Index<T> patch = -1;
    for (int64_t at = column; at < blocks * columns; at += columns)
      if (best[at] < smallest) {
        smallest = best[at];
        patch = index[at];
      }
    return patch;
  }
};

// Panels times blocks of patches: a small batch feeds every thread, and the patches of a block stay in L2.
template <class T>
static SearchResult<T> search_all(const Source<T>& s, const Panels<T>& panels, const Moments<T>* m,
                                  const Lengths<T>& lengths) {
  const int64_t count = s.g.patches(), least = 64,
                most = 256;  // patches of a block; blocks that `SearchResult` has room for
  const int64_t parts = std::clamp<int64_t>(count / least, 1, most), tiles = (count + 7) / 8;
  const int64_t size = std::max<int64_t>(1, (tiles + parts - 1) / parts) * 8, blocks = (count + size - 1) / size;
  SearchResult<T> result(blocks, panels.count() * panels.width);
  parallel(blocks * panels.count(), [&](int64_t item) {
    const int64_t block = item / panels.count(), panel = item % panels.count(), first = block * size;
    const int64_t at = block * result.columns + panel * panels.width;
    search(s, panels, m, lengths, panel, first, std::min(count, first + size), &result.best[at], &result.index[at]);
  });
  return result;
}

// The exact distances, from the differences; the search only estimates them. False if one leaves T's range.
template <class T>
static bool measure(const Source<T>& s, const Panels<T>& panels, const Moments<T>* m, const Lengths<T>& lengths,
                    const SearchResult<T>& result, const Tensor& weight, int32_t* nearest, T* distance) {
  constexpr int64_t share = 16;  // neurons to a hand-out, so that handing out costs little
  const int64_t inputs = s.g.inputs(), columns = panels.names.size();
  const std::vector<int64_t> entry = weight_entries(s.g, weight);
  const bool as_it_lies = in_order(entry);
  const bool some =
      std::any_of(lengths.rounded.get(), lengths.rounded.get() + s.g.patches(), [](T i) { return i > 0; });
  std::atomic<bool> sound{true};
  with_dtype(weight.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* weights = static_cast<const S*>(weight.const_data_ptr());
    parallel((columns + share - 1) / share, [&](int64_t part) {
      Scratch<T> x(inputs), copy(inputs);
      for (int64_t column = part * share; column < std::min(columns, (part + 1) * share); ++column) {
        const int32_t neuron = panels.names[column];
        const int64_t patch = result.nearest(column);
        if (patch < 0) {
          if (some) sound = false;  // all estimates overflow
          continue;
        }
        const S* from = weights + neuron * weight.stride(0);
        const T* w = copy.get();
        if constexpr (std::is_same_v<S, T>)
          if (as_it_lies) w = from;
        for (int64_t n = 0; w == copy.get() && n < inputs; ++n) copy[n] = T(from[entry[n]]);
        nearest[neuron] = int32_t(patch);
        distance[neuron] = T(kernels<T>().apart(patch_of(s, m, patch, x.get()), w, inputs) / lengths.one[patch]);
        if (!std::isfinite(distance[neuron])) sound = false;
      }
    });
  });
  return sound;
}

// Packs some of the neurons, searches and measures. False if a number may leave T's range.
template <class T>
static bool find_for(const Source<T>& s, const Moments<T>* m, const Lengths<T>& lengths, const Tensor& weight,
                     const std::vector<int32_t>& names, bool part, int32_t* nearest, T* distance) {
  const Panels<T> panels("nearest_patch", s.g, weight, names, Prepare{2, false, true, part});
  if (panels.may_overflow(double(s.bound))) return false;
  for (size_t column = 0; column < names.size(); ++column)
    if (!std::isfinite(panels.wnorm[column])) return false;
  return measure(s, panels, m, lengths, search_all(s, panels, m, lengths), weight, nearest, distance);
}

template <class T>
static void nearest_patch_typed(const Tensor& x, const Tensor& weight, const Geometry& g, Patches patches,
                                const OptionalTensor& eligible, int32_t* nearest, T* distance) {
  const Source<T> source("nearest_patch", x, g);
  std::optional<Moments<T>> moments;
  if (patches != Patches::raw) moments.emplace("nearest_patch", source, patches);
  const Moments<T>* m = moments ? &*moments : nullptr;
  const Lengths<T> lengths(source, m);
  std::fill(nearest, nearest + g.neurons, -1);
  std::fill(distance, distance + g.neurons, std::numeric_limits<T>::infinity());
  const std::vector<int32_t> names = chosen_neurons(eligible, g.neurons);
  const int64_t columns = names.size(), width = kernels<T>().width, panels = (columns + width - 1) / width;
  // Panels enough to feed every thread: one thread packs, searches and measures a panel, which never leaves its L2.
  const bool separately = panels >= 4 * torch::stable::get_num_threads() && columns == g.neurons;
  std::atomic<bool> sound{lengths.sound};
  if (separately)
    parallel(panels, [&](int64_t panel) {
      const SingleThread single(true);
      const auto first = names.begin() + panel * width, end = names.begin() + std::min(columns, (panel + 1) * width);
      if (!find_for(source, m, lengths, weight, {first, end}, true, nearest, distance)) sound = false;
    });
  else if (!find_for(source, m, lengths, weight, names, false, nearest, distance))
    sound = false;
  if (!sound) fail_overflow("nearest_patch", finite_responses, sizeof(T) == 8);
}

static std::tuple<Tensor, Tensor> nearest_patch(Tensor x, Tensor weight, std::string patches, Ints stride, Ints padding,
                                                Ints dilation, int64_t groups, OptionalTensor eligible) {
  const char* op = "nearest_patch";
  const PatchedLayer layer = check_nearest_patch(op, x, weight, patches, stride, padding, dilation, groups, eligible);
  const ScalarType result = result_dtype(x.scalar_type());
  const int64_t neurons = weight.size(0);
  Tensor nearest = empty({neurons}, ScalarType::Int), distance = empty({neurons}, result);
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    int32_t* patch = static_cast<int32_t*>(nearest.mutable_data_ptr());
    T* far = static_cast<T*>(distance.mutable_data_ptr());
    if (layer.g.groups == 1) return nearest_patch_typed<T>(x, weight, layer.g, layer.patches, eligible, patch, far);
    const Geometry& g = layer.g;
    for (int64_t group = 0; group < g.groups; ++group, patch += g.neurons, far += g.neurons) {
      nearest_patch_typed<T>(channels_of_group(x, g, group), rows_of_group(weight, g, group), geometry_of_group(g),
                             layer.patches, mask_of_group(eligible, g, group), patch, far);
      for (int64_t j = 0; j < g.neurons; ++j) patch[j] += patch[j] < 0 ? 0 : int32_t(group * g.patches());
    }
  });
  return {nearest, distance};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("nearest_patch.cpu", TORCH_BOX(&nearest_patch)); }

}  // namespace hebbkern
