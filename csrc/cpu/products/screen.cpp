// Rounding, sweeping, deciding: see screen.h for why the winners are right.
#include "cpu/products/screen.h"

#include <cmath>
#include <cstring>
#include <numeric>

namespace hebbkern {

constexpr int64_t tile = MatrixUnit::tile;
constexpr int64_t chunk = 8;        // groups of neurons whose responses to 32 patches are in L1 (16 kB) when scanned
constexpr int capacity = 64;        // candidates listed per patch on the way
constexpr double largest = 0x1p48;  // |x| and |w| beyond are not screened
constexpr int64_t most_inputs = 1 << 19;

// A thread's memory for a block of patches, used for one block after another.
struct Screen::Block {
  explicit Block(const Screen& s)
      : rows(16 * s.padded_ + 32),
        tiles(most / 16 * s.steps_ * tile),
        responses(2 * chunk * 256),
        error(s.groups_ * 16),
        candidates(most * capacity),
        upper(most * capacity),
        states(most / 16) {}
  static constexpr int64_t most = Screen::block;
  int64_t first, count, groups;  // groups of 16 patches
  int64_t bases[most];
  bool zero[most];                                        // blank patches, and those past the last
  alignas(64) float size[most], lost[most], noise[most];  // b, a and c of screen.h
  Scratch<uint16_t> rows, tiles;
  Scratch<float> responses, error;  // error: of each neuron, per size of a patch
  Scratch<int32_t> candidates;
  Scratch<float> upper;
  Scratch<ScanState> states;
};

static void add_pieces(int64_t offset, int64_t first, int64_t length, std::vector<Piece>* pieces, int64_t most = 16) {
  for (int64_t n = 0; n < length; n += most) {
    const int64_t size = std::min(most, length - n);
    pieces->push_back({offset + n, first + n, uint32_t((int64_t(1) << size) - 1)});
  }
}

Screen::Screen(const MatrixUnit& unit, const Source<float>& source, const Tensor& weight,
               const std::vector<int32_t>& names, const Prepare& prepare)
    : unit_(unit),
      source_(source),
      names_(names),
      centred_(prepare.sums),
      inputs_(source.g.inputs()),
      steps_((inputs_ + 31) / 32),
      padded_(steps_ * 32),
      groups_((int64_t(names.size()) + 15) / 16),
      grain_{1 + float(inputs_ + 64) * 0x1p-22f, float(inputs_) * 0x1p-123f},
      noise_(float(inputs_ + 64) * 0x1p-23f * (1 + 0x1p-20f)),
      root_(float(std::sqrt(double(inputs_))) * (1 + 0x1p-20f)),
      tiles_(groups_ * steps_ * tile),
      whole_(groups_ * 16),
      rest_(groups_ * 16),
      wsum_(prepare.sums ? groups_ * 16 : 0) {
  usable_ = inputs_ <= most_inputs && double(source.bound) * std::sqrt(double(inputs_)) <= largest;
  if (!usable_) return;
  for (const auto& run : source.runs) {
    stretches_.push_back({source.offset[run.first], run.length});
    add_pieces(source.offset[run.first], run.first, run.length, &pieces_);
  }
  if (source.g.kh * source.g.kw > 1 && !prepare.sums) round_images();
  prepare_rows(weight, prepare);
  if (!usable_) return;
  // Looking for it takes some 20 us: not for less than 100 us of float32.
  constexpr double worth = 1 << 24;  // multiply-adds
  if (double(source.g.patches()) * double(names.size()) * double(inputs_) > worth) find_common();
  if (!usable_) return;
  constexpr int64_t share = 4;  // groups of neurons to a hand-out
  std::vector<Piece> pieces;
  add_pieces(0, 0, inputs_, &pieces);
  parallel((groups_ + share - 1) / share, [&](int64_t part) {
    Scratch<uint16_t> rows(16 * padded_ + 16);
    for (int64_t g = part * share; g < std::min(groups_, (part + 1) * share); ++g) pack_neurons(g, pieces, rows.get());
  });
  for (size_t j = 0; j < names.size(); ++j)
    if (!(whole_[j] + common_length_ <= float(largest))) usable_ = false;
}

// The mean of some patches, in which neurons that win many are found.
std::vector<float> Screen::typical_patch() const {
  const int64_t patches = source_.g.patches(), sample = std::min<int64_t>(patches, 16);
  std::vector<float> mean(inputs_);
  for (int64_t i = 0; i < sample; ++i) {
    const float* x = source_.x + source_.base(i * patches / sample);
    for (int64_t n = 0; n < inputs_; ++n) mean[n] += x[source_.offset[n]] / float(sample);
  }
  if (centred_) {
    const float level = std::accumulate(mean.begin(), mean.end(), 0.0f) / float(inputs_);
    for (float& entry : mean) entry -= level;
  }
  return mean;
}

// m: the mean of the neurons that answer a typical patch best, a quarter of a sample. What they have in common matters,
// for they compete; the others may be what they like. None where subtracting it would not leave them much shorter.
void Screen::find_common() {
  const auto& kernel = kernels<float>();
  const int64_t neurons = names_.size(), sample = std::min<int64_t>(neurons, 32), best = (sample + 3) / 4;
  const std::vector<float> typical = typical_patch();
  std::vector<std::pair<double, int64_t>> ranking;  // -2 responses, but for a constant
  for (int64_t i = 0; i < sample; ++i) {
    const int64_t j = i * neurons / sample;
    double sum, squares;
    kernel.sums(row(j), inputs_, &sum, &squares);
    ranking.push_back({kernel.apart(row(j), typical.data(), inputs_) - squares, j});
    if (!std::isfinite(ranking.back().first)) usable_ = false;
  }
  if (!usable_) return;
  std::sort(ranking.begin(), ranking.end());
  std::vector<float> mean(inputs_);
  for (int64_t i = 0; i < best; ++i) {
    const float* w = row(ranking[i].second);
    for (int64_t n = 0; n < inputs_; ++n) mean[n] += w[n] / float(best);
  }
  double whole = 0, rest = 0, sum, squares;
  for (int64_t i = 0; i < best; ++i) {
    const float* w = row(ranking[i].second);
    kernel.sums(w, inputs_, &sum, &squares);
    whole += std::sqrt(squares);
    rest += std::sqrt(kernel.apart(w, mean.data(), inputs_));
  }
  if (!(rest < 0.7 * whole)) return;
  kernel.sums(mean.data(), inputs_, &sum, &squares);
  common_ = std::move(mean);
  common_length_ = float(std::sqrt(squares)) * (1 + 0x1p-20f);
}

void Screen::round_images() {
  const Geometry& g = source_.g;
  const int64_t span = (g.padded_h() - 1) * source_.row + (g.padded_w() - 1) * source_.column + g.channels;
  if (span > 2 * g.padded_h() * g.padded_w() * g.channels || source_.image > 2 * span) return;  // mostly gaps
  rounded_.emplace(source_, source_.end);
  for (const auto& run : source_.runs)
    add_pieces(source_.offset[run.first], run.first, run.length, &rounded_->pieces, 32);
  std::vector<Piece> across;  // of a kernel's row
  const bool dense = g.dilation[1] == 1 && source_.column == g.channels;
  for (int64_t k = 0; k < (dense ? 1 : g.kw); ++k)
    add_pieces(k * g.dilation[1] * source_.column, 0, dense ? g.kw * g.channels : g.channels, &across);
  const int64_t width = (g.out_w() - 1) * g.stride[1] * source_.column + (g.span_w() - 1) * source_.column + g.channels;
  parallel(g.batch, [&](int64_t b) {
    Scratch<float> squares(span), rests(span), columns(2 * width + 32), size(g.out_w() + 16), rest(g.out_w() + 16);
    unit_.round(source_.x + b * source_.image, span, rounded_->x.get() + b * source_.image, squares.get(), rests.get());
    for (int64_t i = 0; i < g.out_h(); ++i) {
      const int64_t from = i * g.stride[0] * source_.row, patch = b * g.per_image() + i * g.out_w();
      const Row row{squares.get() + from, rests.get() + from,     g.kh,      g.dilation[0] * source_.row, width,
                    across.data(),        int64_t(across.size()), g.out_w(), g.stride[1] * source_.column};
      unit_.lengths(row, grain_, columns.get(), size.get(), rest.get(), &rounded_->zero[patch]);
      std::copy_n(size.get(), g.out_w(), &rounded_->size[patch]);
      std::copy_n(rest.get(), g.out_w(), &rounded_->rest[patch]);
    }
  });
}

// Where the float32 rows lie; a copy, where they are not what the register tile would multiply by.
void Screen::prepare_rows(const Tensor& weight, const Prepare& prepare) {
  const std::vector<int64_t> entry = weight_entries(source_.g, weight);
  const int64_t step = weight.stride(0), count = names_.size();
  const bool plain = prepare.p == 2 && !prepare.cosine;
  with_dtype(weight.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    const S* data = static_cast<const S*>(weight.const_data_ptr());
    by_name_ = std::is_same_v<S, float> && plain && in_order(entry);
    row_step_ = by_name_ ? step : inputs_;
    if (!by_name_) copied_.emplace(count * inputs_);
    rows_ = by_name_ ? static_cast<const float*>(weight.const_data_ptr()) : copied_->get();
    if (!by_name_ || prepare.sums) {
      constexpr int64_t share = 16;  // rows to a hand-out
      parallel((count + share - 1) / share, [&](int64_t part) {
        Scratch<float> row(by_name_ ? inputs_ : 0);
        for (int64_t j = part * share; j < std::min(count, (part + 1) * share); ++j) {
          float sum = 0;
          if (!prepare_row(data + names_[j] * step, entry, prepare, by_name_ ? row.get() : copied_->get() + j * inputs_,
                           &sum))
            usable_ = false;
          if (prepare.sums) wsum_[j] = sum;
        }
      });
    }
    if (count != weight.size(0) && !rows_finite<float>(data, weight.size(0), step, entry)) usable_ = false;
  });
}

void Screen::pack_neurons(int64_t group, const std::vector<Piece>& pieces, uint16_t* packed) {
  const float shifts[16] = {};
  int64_t bases[16];
  for (int64_t r = 0; r < 16; ++r) {  // past the last neuron it is repeated
    const int64_t j = std::min<int64_t>(group * 16 + r, names_.size() - 1);
    bases[r] = (by_name_ ? names_[j] : j) * row_step_;
  }
  float* whole = &whole_[group * 16];
  float* rest = &rest_[group * 16];
  const float* common = common_.empty() ? nullptr : common_.data();
  unit_.pack(rows_, bases, pieces.data(), pieces.size(), shifts, common, grain_, padded_, packed, whole, rest);
  for (int64_t r = 0; r < 16; ++r) whole[r] = (whole[r] + rest[r]) * (1 + 0x1p-20f);
  uint16_t* to = tiles_.get() + group * steps_ * tile;
  for (int64_t s = 0; s < steps_; ++s)
    for (int64_t r = 0; r < 16; ++r) std::memcpy(to + s * tile + r * 32, packed + r * padded_ + s * 32, 64);
}

// Tiles of a block's patches, and the three lengths of each that bound its errors.
void Screen::pack_patches(Block& b, const float* offset, const float* scale) const {
  for (int64_t g = 0; g < b.groups; ++g) {
    float shifts[16] = {};
    int64_t bases[16];
    const int64_t from = g * 16, last = b.count - 1;  // past the last patch it is repeated
    for (int64_t r = 0; r < 16; ++r) {
      bases[r] = b.bases[std::min(from + r, last)];
      if (offset) shifts[r] = offset[b.first + std::min(from + r, last)];
    }
    unsigned zero = 0;
    if (rounded_) {
      unit_.collect(rounded_->x.get(), bases, rounded_->pieces.data(), rounded_->pieces.size(), padded_, b.rows.get());
      for (int64_t r = 0; r < 16; ++r) {
        const int64_t patch = b.first + std::min(from + r, last);
        b.size[from + r] = rounded_->size[patch];
        b.lost[from + r] = rounded_->rest[patch];
        zero |= unsigned(rounded_->zero[patch]) << r;
      }
    } else {
      zero = unit_.pack(source_.x, bases, pieces_.data(), pieces_.size(), shifts, nullptr, grain_, padded_,
                        b.rows.get(), b.size + from, b.lost + from);
    }
    unit_.interleave(b.rows.get(), padded_, b.tiles.get() + g * steps_ * tile);
    for (int64_t r = 0; r < 16; ++r) {
      const int64_t i = from + r;
      b.noise[i] = noise_ * (2 * b.size[i] + b.lost[i] + std::abs(shifts[r]) * root_) * (1 + 0x1p-20f);
      b.zero[i] = (zero >> r & 1) || i >= b.count || (scale && scale[b.first + i] == 0);
    }
  }
}

// The states at their start: size and error of screen.h, with r and q from the sums over all patches.
void Screen::start_races(Block& b) const {
  const auto total = [&](const float* lengths) {
    float parts[4] = {};  // four chains hide the adder's latency
    for (int64_t i = 0; i < b.groups * 16; ++i) parts[i % 4] += lengths[i];
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
  };
  const float sizes = total(b.size), wider = 1 + 0x1p-20f;
  const float r = std::max(total(b.lost) / sizes, 0x1p-30f), q = std::max(total(b.noise) / sizes, 0x1p-30f);
  for (int64_t j = 0; j < groups_ * 16; ++j)
    b.error[j] = (r * whole_[j] + rest_[j] + q * (whole_[j] + common_length_)) * wider;
  const float per_r = wider / r, per_q = wider / q;
  for (int64_t g = 0; g < b.groups; ++g) {
    ScanState& state = b.states[g];
    std::fill(&state.top[0][0], &state.top[0][0] + ScanState::most * ScanState::patches,
              -std::numeric_limits<float>::infinity());
    for (int64_t p = 0; p < 16; ++p) {
      const int64_t i = g * 16 + p;
      state.size[p] = std::max(b.size[i], std::max(b.lost[i] * per_r, b.noise[i] * per_q)) * wider;
      state.count[p] = b.zero[i] ? capacity + 1 : 0;  // no neuron need be listed
    }
  }
}

// All neurons past all patches of the block, a chunk of neurons at a time.
void Screen::sweep(Block& b, int k) const {
  const int64_t neurons = names_.size();
  unit_.begin();
  for (int64_t from = 0; from < groups_; from += chunk) {
    const int64_t groups = std::min(chunk, groups_ - from);
    const int count = int(std::min(groups * 16, neurons - from * 16));
    for (int64_t g = 0; g < b.groups; g += 2) {
      const int pair = int(std::min<int64_t>(2, b.groups - g));
      unit_.products(tiles_.get() + from * steps_ * tile, groups, b.tiles.get() + g * steps_ * tile, pair, steps_,
                     b.responses.get());
      for (int p = 0; p < pair; ++p)
        unit_.scan(b.responses.get() + p * groups * 256, count, b.error.get() + from * 16, k, int32_t(from * 16),
                   capacity, &b.states[g + p], b.candidates.get() + (g + p) * 16 * capacity,
                   b.upper.get() + (g + p) * 16 * capacity);
    }
  }
  unit_.end();
}

// One or two candidates of a patch, rescored together.
struct Screen::Rescored {
  int64_t patch, at;  // within the block; where its lists have them
  int size;
};

// The float32 responses of eight pairs (fewer at the end) go to their patches' k best.
void Screen::rescore(const Block& b, const Rescored* pairs, int count, int k, const float* offset, float* best,
                     int32_t* winners) const {
  const float *x[8], *w[16];
  float offsets[8] = {}, wsums[16] = {}, scores[16];
  for (int i = 0; i < 8; ++i) {
    const Rescored& pair = pairs[std::min(i, count - 1)];
    x[i] = source_.x + b.bases[pair.patch];
    if (offset) offsets[i] = offset[b.first + pair.patch];
    for (int c = 0; c < 2; ++c) {
      const int32_t j = b.candidates[pair.at + std::min(c, pair.size - 1)];
      w[2 * i + c] = row(j);
      if (offset) wsums[2 * i + c] = wsum_[j];
    }
  }
  unit_.rescore(x, w, stretches_.data(), stretches_.size(), offsets, offset ? wsums : nullptr, scores);
  for (int i = 0; i < count; ++i)
    for (int c = 0; c < pairs[i].size; ++c) {
      const int64_t to = pairs[i].patch * k;
      if (scores[2 * i + c] > best[to + k - 1])
        insert(scores[2 * i + c], names_[b.candidates[pairs[i].at + c]], k, best + to, winners + to);
    }
}

void Screen::decide(Block& b, int k, const float* offset, bool responses, float* best, int32_t* winners,
                    std::vector<int64_t>& left) const {
  // Rescoring a neuron takes about eight times what the register tile takes for it.
  const int many = std::min<int>(capacity, k + 2 + int(names_.size() / 8));
  Rescored pairs[8];
  int waiting = 0;
  for (int64_t i = 0; i < b.count; ++i) {
    const ScanState& state = b.states[i / 16];
    const int64_t at = i * capacity;
    const float least = threshold(state.top[k - 1][i % 16]);
    int count = 0;
    if (b.zero[i]) {
      std::fill(best + i * k, best + (i + 1) * k, 0.0f);
      std::fill(winners + i * k, winners + (i + 1) * k, -1);
      continue;
    }
    if (state.count[i % 16] <= capacity)
      for (int c = 0; c < state.count[i % 16]; ++c)
        if (!(b.upper[at + c] < least)) b.candidates[at + count++] = b.candidates[at + c];
    if (count == 0 || count > many) {
      left.push_back(b.first + i);
      continue;
    }
    if (count == 1 && !responses) {
      best[i] = 0;
      winners[i] = names_[b.candidates[at]];
      continue;
    }
    std::fill(best + i * k, best + (i + 1) * k, -std::numeric_limits<float>::infinity());
    std::fill(winners + i * k, winners + (i + 1) * k, -1);
    for (int c = 0; c < count; c += 2) {
      pairs[waiting++] = {i, at + c, std::min(2, count - c)};
      if (waiting < 8) continue;
      rescore(b, pairs, waiting, k, offset, best, winners);
      waiting = 0;
    }
  }
  if (waiting > 0) rescore(b, pairs, waiting, k, offset, best, winners);
}

void Screen::compete(int64_t first, int64_t count, int k, const float* offset, const float* scale, bool responses,
                     float* best, int32_t* winners, std::vector<int64_t>& left) const {
  Block b(*this);
  for (int64_t from = 0; from < count; from += block) {
    b.first = first + from;
    b.count = std::min(block, count - from);
    b.groups = (b.count + 15) / 16;
    source_.bases(b.first, b.count, b.bases);
    pack_patches(b, offset, scale);
    start_races(b);
    sweep(b, k);
    decide(b, k, offset, responses, best + from * k, winners + from * k, left);
  }
}

}  // namespace hebbkern
