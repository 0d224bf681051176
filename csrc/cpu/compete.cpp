// compete: each patch's k best neurons. Responses live in a register tile's worth of scratch and nowhere else.
#include <algorithm>
#include <cmath>

#include "compete.h"

namespace hebbkern {

constexpr int64_t longest = 256;  // patches of a block

// Patches that a thread takes at once. Every block streams all panels, from beyond L2 where they are many, so it should
// be long; but its patches must stay in half an L2 (1 MiB), and each thread should get four blocks or more to share
// evenly, with few patches eight.
static int64_t block_of(int64_t patches, int64_t bytes, int64_t rows) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t even = patches / (4 * threads) >= 64 ? patches / (4 * threads) : patches / (8 * threads);
  const int64_t fit = std::clamp<int64_t>((int64_t(1) << 20) / bytes, 64, longest);
  return std::clamp<int64_t>((std::min(even, fit) + rows - 1) / rows * rows, rows, longest);
}

// One block of patches against all panels; best and who hold its running k best. With `watch` every response is
// looked at: false if one overflowed.
template <class T>
static bool compete_block(const Source<T>& source, const Panels<T>& panels, const T* offset, int64_t first,
                          int64_t count, int k, bool watch, T* best, int32_t* who) {
  const auto& kernel = kernels<T>();
  alignas(64) T scores[8 * 48];  // the largest tile
  std::fill(best, best + count * k, -std::numeric_limits<T>::infinity());
  std::fill(who, who + count * k, -1);
  int64_t bases[longest];
  source.bases(first, count, bases);
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    const int vectors = panels.vectors(panel);
    for (int64_t i = 0; i < count; i += kernel.rows) {
      const T* rows[8];
      for (int r = 0; r < kernel.rows; ++r)  // past the last patch the tile repeats it
        rows[r] = source.x + bases[std::min(i + r, count - 1)];
      kernel.tile(rows, source.offset.data(), panels.inputs, panels[panel], panels.width, vectors, scores, kernel.width,
                  false);
      const T* wsum = offset ? &panels.wsum[panel * panels.width] : nullptr;
      for (int64_t r = 0; watch && r < kernel.rows && i + r < count; ++r)
        for (int j = 0; j < panels.valid(panel); ++j)
          if (!std::isfinite(scores[r * kernel.width + j] - (wsum ? offset[first + i + r] * wsum[j] : T(0))))
            return false;
      kernel.rank(scores, int(std::min<int64_t>(kernel.rows, count - i)), vectors, panels.valid(panel),
                  offset ? offset + first + i : nullptr, wsum, &panels.names[panel * panels.width], k, best + i * k,
                  who + i * k);
    }
  }
  return true;
}

// Responses from the best dot products; false if one overflowed.
template <class T>
static bool finish(const Panels<T>& panels, int64_t count, int k, const T* scale, T* best, int32_t* who) {
  const int contenders = int(std::min<int64_t>(k, panels.names.size()));
  for (int64_t i = 0; i < count; ++i, best += k, who += k)
    for (int r = 0; r < k; ++r) {
      if (r >= contenders) {
        best[r] = 0;
        who[r] = -1;
      } else if (scale && scale[i] == 0) {  // a patch of zeros: every response is 0, the first neurons win
        best[r] = 0;
        who[r] = panels.names[r];
      } else if (who[r] < 0 || !std::isfinite(best[r])) {
        return false;
      } else if (scale) {
        best[r] *= scale[i];
        if (!std::isfinite(best[r])) return false;
      }
    }
  return true;
}

template <class T>
void find_winners(const char* op, const Source<T>& source, const Tensor& weight, const Contest& contest, T* best,
                  int32_t* who) {
  const Geometry& g = source.g;
  const Prepare& prepare = contest.prepare;
  const bool raw = contest.patches == Patches::raw;
  const Panels<T> panels(op, source, weight, chosen_neurons(contest.mask, g.neurons), prepare);
  const int64_t count = g.patches();
  std::optional<Moments<T>> moments;
  Scratch<T> scale(prepare.cosine ? count : 0);
  if (!raw || prepare.cosine) moments.emplace(op, source, contest.patches, prepare.cosine);
  const T* scaled = moments ? moments->scale.get() : nullptr;
  if (prepare.cosine) {
    for (int64_t p = 0; p < count; ++p) {
      const T size = moments->norm[p];
      scale[p] = size > 0 && moments->scale[p] > 0 ? 1 / size : T(0);
    }
    scaled = scale.get();
  }
  const T* offset = raw ? nullptr : moments->offset.get();
  const int k = contest.k;
  const int64_t block = block_of(count, panels.inputs * sizeof(T), kernels<T>().rows);
  const bool watch = panels.may_overflow(source);
  std::atomic<bool> flaw{false};
  parallel((count + block - 1) / block, [&](int64_t part) {
    const int64_t first = part * block, size = std::min(block, count - first);
    if (!compete_block(source, panels, offset, first, size, k, watch, best + first * k, who + first * k) ||
        !finish(panels, size, k, scaled ? scaled + first : nullptr, best + first * k, who + first * k))
      flaw = true;
  });
  if (flaw) fail_overflow(op, finite_responses, sizeof(T) == 8);
}

template void find_winners(const char*, const Source<float>&, const Tensor&, const Contest&, float*, int32_t*);
template void find_winners(const char*, const Source<double>&, const Tensor&, const Contest&, double*, int32_t*);

static std::tuple<Tensor, Tensor> compete(Tensor x, Tensor weight, int64_t k, double p, bool cosine,
                                          std::string patches, Ints stride, Ints padding, Ints dilation,
                                          OptionalTensor mask) {
  const char* op = "compete";
  const Geometry g = check_layer(op, x, weight, stride, padding, dilation);
  if (k < 1 || k > std::min<int64_t>(64, g.neurons))
    fail(op, "k must be between 1 and min(64, ", g.neurons, " neurons), got ", k);
  if (!(p >= 1) || std::isinf(p)) fail(op, "p must be a finite number of at least 1, got ", p);
  if (cosine && p != 2) fail(op, "p must be 2 with cosine responses, got ", p);
  const Patches kind = check_patches(op, patches);
  check_mask(op, "mask", mask, g.neurons);
  const ScalarType result = result_dtype(x.scalar_type());
  Tensor winners = empty({g.patches(), k}, ScalarType::Int), responses = empty({g.patches(), k}, result);
  int32_t* who = static_cast<int32_t*>(winners.mutable_data_ptr());
  const Contest contest{int(k), {p, cosine, kind != Patches::raw}, kind, mask};
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    const Source<T> source(op, x, g);
    find_winners(op, source, weight, contest, static_cast<T*>(responses.mutable_data_ptr()), who);
  });
  return {winners, responses};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("compete", TORCH_BOX(&compete)); }

}  // namespace hebbkern
