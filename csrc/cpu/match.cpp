// match: each neuron's nearest patch. The search expands ||w - x||^2 into the tile's products; the distance of the
// patch it finds is then computed from the differences themselves, free of the expansion's cancellation.
#include <algorithm>
#include <cmath>
#include <limits>

#include "panels.h"

namespace hebbkern {

// Patches of a search that one thread does alone; fixed, so that the merge is the same on any number of threads.
constexpr int64_t block = 64;

// One patch as the differences need it: x~[n] for n < N.
template <class T>
static void read_patch(const Source<T>& s, const Moments<T>* m, int64_t patch, T* out) {
  const T* x = s.x + s.base(patch);
  const T offset = m ? m->offset[patch] : T(0), scale = m ? m->scale[patch] : T(1);
  for (size_t n = 0; n < s.offset.size(); ++n) out[n] = (x[s.offset[n]] - offset) * scale;
}

// ||x~||_1 of a patch, and the squared distance of w from it (w null: ||x~||^2). Four chains hide the adder's latency.
template <class T>
static void measure(const T* x, const T* w, int64_t n, double* one, double* squares) {
  double ones[4] = {}, twos[4] = {};
  for (int64_t i = 0; i < n; ++i) {
    const double d = w ? double(w[i]) - double(x[i]) : double(x[i]);
    ones[i % 4] += std::abs(double(x[i]));
    twos[i % 4] += d * d;
  }
  *one = (ones[0] + ones[1]) + (ones[2] + ones[3]);
  *squares = (twos[0] + twos[1]) + (twos[2] + twos[3]);
}

// 1 / ||x~||_1 (0 for a patch of zeros) and ||x~||^2 of each patch; false if one leaves T's range.
template <class T>
static bool norms(const Source<T>& s, const Moments<T>* m, T* inverse, T* squares) {
  const int64_t patches = s.g.patches(), inputs = s.g.inputs();
  std::atomic<bool> sound{true};
  parallel((patches + block - 1) / block, [&](int64_t part) {
    Scratch<T> x(inputs);
    for (int64_t p = part * block; p < std::min(patches, (part + 1) * block); ++p) {
      double one, two;
      read_patch(s, m, p, x.get());
      measure<T>(x.get(), nullptr, inputs, &one, &two);
      inverse[p] = one > 0 ? T(1 / one) : T(0);
      squares[p] = T(two);
      if (!std::isfinite(inverse[p]) || !std::isfinite(squares[p])) sound = false;
    }
  });
  return sound;
}

// The nearest of patches [first, first + count) to every column of the panels.
template <class T>
static void match_block(const Source<T>& s, const Panels<T>& panels, const Moments<T>* m, const T* inverse,
                        const T* squares, int64_t first, int64_t count, T* distance, Index<T>* nearest) {
  const auto& kernel = kernels<T>();
  alignas(64) T dots[8 * 48];
  std::fill(distance, distance + panels.count() * panels.width, std::numeric_limits<T>::infinity());
  std::fill(nearest, nearest + panels.count() * panels.width, Index<T>(-1));
  int64_t bases[block];
  s.bases(first, count, bases);
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int vectors = panels.vectors(panel);
    const int64_t at = panel * panels.width;
    for (int64_t i = 0; i < count; i += kernel.rows) {
      const T* rows[8];
      for (int r = 0; r < kernel.rows; ++r) rows[r] = s.x + bases[std::min(i + r, count - 1)];
      kernel.tile(rows, s.offset.data(), panels.inputs, panels[panel], panels.width, vectors, dots, kernel.width,
                  false);
      for (int64_t r = 0; r < kernel.rows && i + r < count; ++r) {
        const int64_t p = first + i + r;
        T* dot = dots + r * kernel.width;
        if (inverse[p] == 0) continue;
        if (m)
          for (int j = 0; j < panels.valid(panel); ++j)
            dot[j] = m->scale[p] * (dot[j] - m->offset[p] * panels.wsum[at + j]);
        kernel.nearer(dot, panels.valid(panel), &panels.wnorm[at], squares[p], inverse[p], Index<T>(p), distance + at,
                      nearest + at);
      }
    }
  }
}

// The distance that the search only estimated, from the differences themselves.
template <class T>
static T true_distance(const Source<T>& s, const Moments<T>* m, const Tensor& weight, int64_t neuron, int64_t patch,
                       const std::vector<int64_t>& entry) {
  const int64_t inputs = entry.size();
  Scratch<T> x(inputs), w(inputs);
  read_patch(s, m, patch, x.get());
  with_dtype(weight.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* from = static_cast<const S*>(weight.const_data_ptr()) + neuron * weight.stride(0);
    for (int64_t n = 0; n < inputs; ++n) w[n] = T(from[entry[n]]);
  });
  double one, two;
  measure<T>(x.get(), w.get(), inputs, &one, &two);
  return T(two / one);
}

template <class T>
static void match_typed(const Tensor& x, const Tensor& weight, const Geometry& g, Patches patches,
                        const OptionalTensor& mask, int32_t* nearest, T* distance) {
  const Source<T> source("match", x, g);
  const Panels<T> panels("match", source, weight, chosen_neurons(mask, g.neurons), Prepare{2, false, true});
  std::optional<Moments<T>> moments;
  if (patches != Patches::raw) moments.emplace("match", source, patches);
  const Moments<T>* m = moments ? &*moments : nullptr;
  const int64_t count = g.patches(), blocks = (count + block - 1) / block, columns = panels.count() * panels.width;
  Scratch<T> inverse(count), squares(count), best(blocks * columns);
  Scratch<Index<T>> who(blocks * columns);
  bool sound = norms(source, m, inverse.get(), squares.get());
  for (size_t column = 0; column < panels.names.size(); ++column) sound &= std::isfinite(panels.wnorm[column]);
  if (!sound || panels.may_overflow(source)) fail_overflow("match", finite_responses, sizeof(T) == 8);
  parallel(blocks, [&](int64_t part) {
    match_block(source, panels, m, inverse.get(), squares.get(), part * block, std::min(block, count - part * block),
                best.get() + part * columns, who.get() + part * columns);
  });
  std::fill(nearest, nearest + g.neurons, -1);
  std::fill(distance, distance + g.neurons, std::numeric_limits<T>::infinity());
  const std::vector<int64_t> entry = weight_entries(source, weight);
  parallel(panels.names.size(), [&](int64_t column) {
    const int32_t neuron = panels.names[column];
    T smallest = std::numeric_limits<T>::infinity();
    for (int64_t part = 0; part < blocks; ++part)
      if (best[part * columns + column] < smallest) {
        smallest = best[part * columns + column];
        nearest[neuron] = int32_t(who[part * columns + column]);
      }
    if (nearest[neuron] >= 0) distance[neuron] = true_distance(source, m, weight, neuron, nearest[neuron], entry);
  });
}

static std::tuple<Tensor, Tensor> match(Tensor x, Tensor weight, std::string patches, Ints stride, Ints padding,
                                        Ints dilation, OptionalTensor mask) {
  const char* op = "match";
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "mask", mask, g.neurons);
  if (g.patches() > std::numeric_limits<int32_t>::max())
    fail(op, "x must have at most ", std::numeric_limits<int32_t>::max(), " patches, got ", g.patches());
  const ScalarType result = result_dtype(x.scalar_type());
  Tensor nearest = empty({g.neurons}, ScalarType::Int), distance = empty({g.neurons}, result);
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    match_typed<T>(x, weight, g, kind, mask, static_cast<int32_t*>(nearest.mutable_data_ptr()),
                   static_cast<T*>(distance.mutable_data_ptr()));
  });
  return {nearest, distance};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("match", TORCH_BOX(&match)); }

}  // namespace hebbkern
