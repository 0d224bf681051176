// compete: the k neurons of each patch with the highest responses. Responses are kept in one register tile's scratch
// only; there is no matrix of patches x neurons.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/compete.h"

#include "cpu/ops/compete.h"
#include "cpu/ops/grouped.h"
#include "cpu/products/screen.h"

namespace hebbkern {

constexpr int64_t longest = 256;  // patches of a block

// Patches of a block. A block reads all panels, from beyond L2 where they are many, so it should be long; but its
// patches must fit into half an L2 (1 MiB), and each thread should get at least four blocks, with few patches eight.
static int64_t block_of(int64_t patches, int64_t bytes, int64_t rows) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t even = patches / (4 * threads) >= 64 ? patches / (4 * threads) : patches / (8 * threads);
  const int64_t fit = std::clamp<int64_t>((int64_t(1) << 20) / bytes, 32, longest);
  return std::clamp<int64_t>((std::min(even, fit) + rows - 1) / rows * rows, rows, longest);
}

// Some patches, by their bases, against all panels; best and winners [count][k] hold their running k best. With `watch`
// every response is checked: false if one overflowed.
template <class T>
static bool compete_block(const Source<T>& source, const Panels<T>& panels, const int64_t* bases, const T* offset,
                          int64_t count, int k, bool watch, T* best, int32_t* winners) {
  const auto& kernel = kernels<T>();
  alignas(64) T scores[8 * 48];  // the largest tile
  std::fill(best, best + count * k, -std::numeric_limits<T>::infinity());
  std::fill(winners, winners + count * k, -1);
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
          if (!std::isfinite(scores[r * kernel.width + j] - (wsum ? offset[i + r] * wsum[j] : T(0)))) return false;
      kernel.rank(scores, int(std::min<int64_t>(kernel.rows, count - i)), vectors, panels.valid(panel),
                  offset ? offset + i : nullptr, wsum, &panels.names[panel * panels.width], k, best + i * k,
                  winners + i * k);
    }
  }
  return true;
}

// Takes the winners from raw patches of zeros, whose responses are all 0; no other patch is read again.
template <class T>
static void drop_blank(const Source<T>& source, const int64_t* bases, int64_t count, int k, const T* best,
                       int32_t* winners) {
  for (int64_t i = 0; i < count; ++i)
    if (best[i * k] == 0 && source.blank(bases[i])) std::fill(winners + i * k, winners + (i + 1) * k, -1);
}

// Responses from the best dot products; false if one overflowed.
template <class T>
static bool finish(int64_t contenders, int64_t count, int k, const T* scale, T* best, int32_t* winners) {
  for (int64_t i = 0; i < count; ++i, best += k, winners += k)
    for (int r = 0; r < k; ++r) {
      if (r >= contenders || (scale && scale[i] == 0)) {
        best[r] = 0;
        winners[r] = -1;
      } else if (!std::isfinite(best[r])) {
        return false;
      } else if (scale) {
        best[r] *= scale[i];
        if (!std::isfinite(best[r])) return false;
      }
    }
  return true;
}

// The offset and scale of each patch, [P] or null, for centred and standardised patches and cosines; fills `moments`
// where these are needed.
template <class T>
struct Scales {
  Scales(const char* op, const Source<T>& source, const CompeteSettings& contest, std::optional<Moments<T>>& moments)
      : cosine_(contest.prepare.cosine && contest.responses ? source.g.patches() : 0) {
    const bool raw = contest.patches == Patches::raw, norms = contest.prepare.cosine && contest.responses;
    if (raw && !norms) return;
    moments.emplace(op, source, contest.patches, norms);
    if (!raw) offset = moments->offset.get();
    scale = moments->scale.get();
    if (!norms) return;
    for (int64_t p = 0; p < source.g.patches(); ++p) {
      const T size = moments->norm[p];
      cosine_[p] = size > 0 && scale[p] > 0 ? 1 / size : T(0);
    }
    scale = cosine_.get();
  }
  const T *offset = nullptr, *scale = nullptr;

 private:
  Scratch<T> cosine_;
};

// The patches that screening leaves undecided, rising; all patches where there is no screening.
template <class T>
static std::vector<int64_t> undecided(const Screen* screen, const Source<T>& source, const CompeteSettings& contest,
                                      const Scales<T>& scales, T* best, int32_t* winners) {
  const int64_t count = source.g.patches();
  if constexpr (std::is_same_v<T, float>)
    if (screen) {
      // Blocks that share a hand-out, and its scratch, where each thread still gets eight.
      const int64_t threads = torch::stable::get_num_threads();
      const int64_t together = std::clamp<int64_t>(count / Screen::block / (8 * threads), 1, 16);
      const int64_t share = together * Screen::block, parts = (count + share - 1) / share;
      std::vector<std::vector<int64_t>> left(parts);
      std::atomic<int64_t> tried{0}, lost{0};
      parallel(parts, [&](int64_t part) {
        const int64_t first = part * share, size = std::min(share, count - first);
        if (lost > 64 && lost > tried / 2) {  // screening does not pay for patches like these
          for (int64_t i = 0; i < size; ++i) left[part].push_back(first + i);
          return;
        }
        screen->compete(first, size, contest.k, scales.offset, scales.scale, contest.responses,
                        best + first * contest.k, winners + first * contest.k, left[part]);
        tried += size;
        lost += left[part].size();
      });
      std::vector<int64_t> all;
      for (const auto& some : left) all.insert(all.end(), some.begin(), some.end());
      count_screened(source.g, contest.k, all.size());
      return all;
    }
  std::vector<int64_t> all(count);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// The competition of some patches in T; false if a response overflowed. With `raw` no neuron wins a blank patch;
// of other patches `finish` sees to that.
template <class T>
static bool compete_exactly(const Source<T>& source, const Panels<T>& panels, const std::vector<int64_t>& patches,
                            const T* offset, bool raw, int k, T* best, int32_t* winners) {
  const int64_t count = patches.size();
  const int64_t block = block_of(count, panels.inputs * sizeof(T), kernels<T>().rows);
  const bool watch = panels.may_overflow(double(source.bound));
  std::atomic<bool> sound{true};
  parallel((count + block - 1) / block, [&](int64_t part) {
    const int64_t from = part * block, size = std::min(block, count - from), first = patches[from];
    const bool together = patches[from + size - 1] - first == size - 1;
    int64_t bases[longest];
    T offsets[longest];
    if (together) {
      source.bases(first, size, bases);
      const T* theirs = offset ? offset + first : nullptr;
      if (!compete_block(source, panels, bases, theirs, size, k, watch, best + first * k, winners + first * k))
        sound = false;
      if (raw) drop_blank(source, bases, size, k, best + first * k, winners + first * k);
      return;
    }
    for (int64_t i = 0; i < size; ++i) {
      bases[i] = source.base(patches[from + i]);
      offsets[i] = offset ? offset[patches[from + i]] : T(0);
    }
    Scratch<T> their_best(size * k);
    Scratch<int32_t> their_winners(size * k);
    if (!compete_block(source, panels, bases, offset ? offsets : nullptr, size, k, watch, their_best.get(),
                       their_winners.get()))
      sound = false;
    if (raw) drop_blank(source, bases, size, k, their_best.get(), their_winners.get());
    for (int64_t i = 0; i < size; ++i) {
      std::copy_n(&their_best[i * k], k, best + patches[from + i] * k);
      std::copy_n(&their_winners[i * k], k, winners + patches[from + i] * k);
    }
  });
  return sound;
}

template <class T>
void find_winners(const char* op, const Source<T>& source, const Tensor& weight, const CompeteSettings& contest,
                  std::optional<Moments<T>>& moments, T* best, int32_t* winners) {
  const int64_t count = source.g.patches();
  const std::vector<int32_t> names = chosen_neurons(contest.eligible, source.g.neurons);
  std::optional<Screen> screen;
  if constexpr (std::is_same_v<T, float>)
    if (const MatrixUnit* unit = worth_screening(source.g, int64_t(names.size()), contest.k))
      screen.emplace(*unit, source, weight, names, contest.prepare);
  if (screen && !screen->usable()) screen.reset();
  std::optional<Panels<T>> panels;
  if (!screen) panels.emplace(op, source.g, weight, names, contest.prepare);
  const Scales<T> scales(op, source, contest, moments);
  const std::vector<int64_t> left = undecided(screen ? &*screen : nullptr, source, contest, scales, best, winners);
  bool sound = true;
  if (!left.empty()) {
    if (!panels) panels.emplace(op, source.g, weight, names, contest.prepare);
    const bool raw = contest.patches == Patches::raw;
    sound = compete_exactly(source, *panels, left, scales.offset, raw, contest.k, best, winners);
  }
  if (screen && left.empty() && !scales.scale) return;  // the screen has written all of them
  const int k = contest.k;
  std::atomic<bool> finished{sound};
  constexpr int64_t share = 4096;  // patches to a hand-out
  parallel((count + share - 1) / share, [&](int64_t part) {
    const int64_t first = part * share, size = std::min(share, count - first);
    const T* scale = scales.scale ? scales.scale + first : nullptr;
    if (!finish(int64_t(names.size()), size, k, scale, best + first * k, winners + first * k)) finished = false;
  });
  if (!finished) fail_overflow(op, finite_responses, sizeof(T) == 8);
}

template void find_winners(const char*, const Source<float>&, const Tensor&, const CompeteSettings&,
                           std::optional<Moments<float>>&, float*, int32_t*);
template void find_winners(const char*, const Source<double>&, const Tensor&, const CompeteSettings&,
                           std::optional<Moments<double>>&, double*, int32_t*);

static std::tuple<Tensor, Tensor> compete(Tensor x, Tensor weight, int64_t k, double p, bool cosine,
                                          std::string patches, Ints stride, Ints padding, Ints dilation, int64_t groups,
                                          OptionalTensor eligible) {
  const char* op = "compete";
  const PatchedLayer layer =
      check_compete(op, x, weight, k, p, cosine, patches, stride, padding, dilation, groups, eligible);
  const int64_t count = layer.g.groups * layer.g.patches();
  const ScalarType result = result_dtype(x.scalar_type());
  Tensor winners = empty({count, k}, ScalarType::Int), responses = empty({count, k}, result);
  const CompeteSettings contest{int(k), {p, cosine, layer.patches != Patches::raw}, layer.patches, eligible};
  with_dtype(result, [&](auto, auto tag) {
    using T = decltype(tag);
    T* const best = static_cast<T*>(responses.mutable_data_ptr());
    int32_t* const named = static_cast<int32_t*>(winners.mutable_data_ptr());
    if (layer.g.groups > 1) return find_grouped_winners(op, x, layer.g, weight, contest, best, named);
    const Source<T> source(op, x, layer.g);
    std::optional<Moments<T>> moments;
    find_winners(op, source, weight, contest, moments, best, named);
  });
  return {winners, responses};
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("compete.cpu", TORCH_BOX(&compete)); }

}  // namespace hebbkern
