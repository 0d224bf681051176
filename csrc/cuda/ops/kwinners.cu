// kwinners: all but the k highest along one dimension become zero, in one launch.
//
// Entries compete as unsigned integers that are ordered as they are, so every dtype is a matter of 16, 32 or 64 bits
// and of exact comparisons. Rows of up to `widest` entries lie in the registers of a warp, which finds the k-th
// highest bit by bit: two instructions an entry and bit are less than a shared atomic an entry and digit, most bits
// are not needed once k entries stand apart, and nothing waits for other warps. Longer rows are a block's, which finds
// it by digits of 8 bits, counted in shared memory: a barrier a digit instead of a bit, and as few times to read.
#include "cuda/ops/kwinners.cuh"

#include "common/kwinners.h"
#include "cuda/device/values.cuh"

namespace hebbkern {
namespace {

constexpr int widest = 1024;  // 32 registers of a lane

constexpr int rows_warps = 4;  // small blocks: few rows still reach many multiprocessors

// A warp owns a row whose entries lie side by side in aligned groups.
template <class B, int SLOTS>
__global__ void __launch_bounds__(32 * rows_warps) rows_kernel(const B* y, B* out, Lines lines, int k) {
  using Key = typename Order<B>::Key;
  constexpr int each = group<B>;
  const int64_t number = int64_t(blockIdx.x) * rows_warps + threadIdx.x / 32;
  if (number >= lines.rows) return;
  const int row = int(number);
  y += lines.of_y(row);
  out += lines.of_out(row);
  const int lane = int(threadIdx.x) % 32;
  Key keys[SLOTS];
  uint32_t negative = 0;
#pragma unroll
  for (int slot = 0; slot < SLOTS; slot += each) {
    const int entry = slot * 32 + lane * each;
    B bits[each] = {};
    if (entry < lines.entries) load_group(y + entry, bits);
#pragma unroll
    for (int i = 0; i < each; ++i) {
      keys[slot + i] = entry < lines.entries ? Order<B>::key(bits[i]) : 0;
      negative |= uint32_t(bits[i] >> (Order<B>::bits - 1)) << (slot + i);
    }
  }
  const uint32_t kept = kept_in_warp<B, SLOTS, each>(keys, lines.entries, k);
#pragma unroll
  for (int slot = 0; slot < SLOTS; slot += each) {
    const int entry = slot * 32 + lane * each;
    if (entry >= lines.entries) break;
    B bits[each];
#pragma unroll
    for (int i = 0; i < each; ++i)
      bits[i] = kept >> (slot + i) & 1 ? Order<B>::bits_of(keys[slot + i], negative >> (slot + i) & 1) : B(0);
    store_group(out + entry, bits);
  }
}

// Of a tile: entry i of row r is at i * pitch + r, and lanes that read a row meet 32 banks.
template <class B>
constexpr int gap = sizeof(B) == 2 ? 2 : 1;

constexpr int tile_threads = 256;  // a warp to each of 8 rows; what a multiprocessor holds is bounded by the tiles

// Calls f(row of the tile, entry) for all there are: neighbouring lanes `across` rows, or along them.
template <class F>
__device__ __forceinline__ void each_of_tile(bool across, int rows, int log_rows, int entries, const F& f) {
  if (across) {
    const int row = int(threadIdx.x) & ((1 << log_rows) - 1);
    if (row >= rows) return;
#pragma unroll 4
    for (int entry = int(threadIdx.x) >> log_rows; entry < entries; entry += tile_threads >> log_rows) f(row, entry);
  } else {
    for (int row = int(threadIdx.x) / 32; row < rows; row += tile_threads / 32)
#pragma unroll 4
      for (int entry = int(threadIdx.x) % 32; entry < entries; entry += 32) f(row, entry);
  }
}

// A block owns 2^log_rows <= 32 rows, and passes them through shared memory: read and written in the order in which
// they lie, a warp has one at a time in registers.
template <class B, int SLOTS>
__global__ void __launch_bounds__(tile_threads)
    tile_kernel(const B* y, B* out, Lines lines, int k, int log_rows, bool read_across, bool write_across) {
  HEBBKERN_SHARED(B, tile);
  __shared__ int64_t from[32], to[32];
  const int64_t first = int64_t(blockIdx.x) << log_rows;
  const int rows = int(min(lines.rows - first, int64_t(1) << log_rows)), pitch = (1 << log_rows) + gap<B>;
  if (int(threadIdx.x) < rows) {
    from[threadIdx.x] = lines.of_y(int(first) + int(threadIdx.x));
    to[threadIdx.x] = lines.of_out(int(first) + int(threadIdx.x));
  }
  __syncthreads();
  each_of_tile(read_across, rows, log_rows, lines.entries,
               [&](int row, int entry) { tile[entry * pitch + row] = y[from[row] + entry * lines.y_along]; });
  __syncthreads();
  const int lane = int(threadIdx.x) % 32;
  for (int row = int(threadIdx.x) / 32; row < rows; row += tile_threads / 32) {
    typename Order<B>::Key keys[SLOTS];
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
      const int entry = slot * 32 + lane;
      keys[slot] = entry < lines.entries ? Order<B>::key(tile[entry * pitch + row]) : 0;
    }
    const uint32_t kept = kept_in_warp<B, SLOTS, 1>(keys, lines.entries, k);
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot)
      if (slot * 32 + lane < lines.entries && !(kept >> slot & 1)) tile[(slot * 32 + lane) * pitch + row] = 0;
  }
  __syncthreads();
  each_of_tile(write_across, rows, log_rows, lines.entries,
               [&](int row, int entry) { out[to[row] + entry * lines.out_along] = tile[entry * pitch + row]; });
}

template <class B>
constexpr int slots = sizeof(B) == 8 ? 8 : 16;  // of a lane: 1024 threads have 64 registers each, half for other things
constexpr int long_threads = 512;  // where entries are read again and again, two blocks or more to a multiprocessor
constexpr int digit_bits = 8, digits = 1 << digit_bits;

// A warp's strip, an equal share of the entries of each of R rows side by side: 32 / R lanes along, R across.
// HELD: it is read once. Otherwise what a lane holds is the part that is looked at.
template <class B, int R, int EACH, bool HELD>
struct Strip {
  static constexpr int along = 32 / R * EACH, parts = slots<B> / EACH;  // entries of a row at a time; how often
  const B* y;
  int64_t step;
  int begin, end;  // of the lane: its first entry, and the strip's end
  bool there;      // whether there is such a row
  B held[parts][EACH];

  __device__ __forceinline__ void load(int first) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const int entry = first + part * along;
      const bool within = there && entry < end;
      if constexpr (EACH == 1)
        held[part][0] = within ? y[entry * step] : B(0);
      else if (within)
        load_group(y + entry, held[part]);
    }
  }
  // Calls f(entry, whether it is there, EACH of them) in the order of entries, all lanes together.
  template <class F>
  __device__ __forceinline__ void walk(const F& f) {
    const int lead = int(threadIdx.x) % 32 / R * EACH;
    for (int first = begin; first - lead < end; first += parts * along) {
      if (!HELD) load(first);
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        const int entry = first + part * along;
        f(entry, there && entry < end, held[part]);
      }
      if (HELD) break;
    }
  }
};

// The highest digit that as many as `room` entries reach; a warp chooses for a row. Changes the row's cut.
template <class Key>
__device__ __forceinline__ void choose_digit(const int* counts, int shift, Key* threshold, int* room) {
  constexpr int each = digits / 32;
  const int lane = int(threadIdx.x) % 32, wanted = *room;
  const int top = digits - 1 - lane * each;  // a lane's digits, the highest first
  int sum = 0;
  for (int i = 0; i < each; ++i) sum += counts[top - i];
  int reached = sum;
  for (int apart = 1; apart < 32; apart *= 2) {
    const int higher = __shfl_up_sync(~0u, reached, apart);
    if (lane >= apart) reached += higher;
  }
  int above = reached - sum;
  if (above >= wanted || reached < wanted) return;
  int digit = top;
  while (above + counts[digit] < wanted) above += counts[digit--];
  *threshold |= Key(digit) << shift;
  *room = above + counts[digit] == wanted ? all_equal : wanted - above;
}

// What a block shares of its R rows.
template <class Key, int R>
struct Shared {
  int counts[R][digits];
  Key threshold[R];
  int room[R];
  int equals[32][R];  // of the strips
};

// Digit by digit; true once every row's k highest stand apart.
template <class B, int R, class Key, class S>
__device__ __forceinline__ bool cut_in_block(S& strip, Shared<Key, R>& shared, int row) {
  for (int shift = Order<B>::bits - digit_bits; shift >= 0; shift -= digit_bits) {
    for (int i = int(threadIdx.x); i < R * digits; i += int(blockDim.x)) shared.counts[i / digits][i % digits] = 0;
    __syncthreads();
    const Key chosen = shared.threshold[row];
    if (shared.room[row] != all_equal)
      strip.walk([&](int, bool there, const auto& bits) {
        for (const B b : bits) {
          const Key key = Order<B>::key(b);
          if (there && ((key ^ chosen) >> shift) >> digit_bits == 0)
            atomicAdd(&shared.counts[row][key >> shift & (digits - 1)], 1);
        }
      });
    __syncthreads();
    for (int r = int(threadIdx.x) / 32; r < R; r += int(blockDim.x) / 32)
      if (shared.room[r] != all_equal) choose_digit(shared.counts[r], shift, &shared.threshold[r], &shared.room[r]);
    __syncthreads();
    const bool apart = shared.room[row] == all_equal;
    if (R == 1 ? apart : __syncthreads_and(apart)) return true;
  }
  return false;
}

// How many entries of the row equal its threshold in the strips before.
template <class B, int R, class Key, class S>
__device__ __forceinline__ int equals_before(S& strip, Shared<Key, R>& shared, int row, Key threshold) {
  int mine = 0, before = 0;
  strip.walk([&](int, bool there, const auto& bits) {
    for (const B b : bits) mine += there && Order<B>::key(b) == threshold;
  });
  for (int apart = R; apart < 32; apart *= 2) mine += __shfl_xor_sync(~0u, mine, apart);
  const int warp = int(threadIdx.x) / 32;
  if (int(threadIdx.x) % 32 < R) shared.equals[warp][row] = mine;
  __syncthreads();
  for (int other = 0; other < warp; ++other) before += shared.equals[other][row];
  return before;
}

template <class B, int R, int EACH, class Key, class S>
__device__ __forceinline__ void write_strip(S& strip, B* out, int64_t step, Cut<Key> cut, bool ties, int before) {
  const int lane = int(threadIdx.x) % 32;
  unsigned alike = 0;  // lanes of the same row
  for (int other = lane % R; other < 32; other += R) alike |= 1u << other;
  const unsigned lower = alike & ((1u << lane) - 1);
  strip.walk([&](int entry, bool there, const auto& bits) {
    int mine = before;
    if (ties)
      for (const B b : bits) {
        const unsigned equal = __ballot_sync(~0u, there && Order<B>::key(b) == cut.threshold);
        mine += __popc(equal & lower);
        before += __popc(equal & alike);
      }
    B chosen[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const Key key = Order<B>::key(bits[i]);
      chosen[i] = (cut.room == all_equal ? key >= cut.threshold : cut.keeps(key, mine)) ? bits[i] : B(0);
      mine += key == cut.threshold;
    }
    if (!there) return;
    if constexpr (EACH == 1)
      out[entry * step] = chosen[0];
    else
      store_group(out + entry, chosen);
  });
}

// A block owns R rows, a warp a strip of them.
template <class B, int R, int EACH, bool HELD>
__global__ void __launch_bounds__(HELD ? 1024 : long_threads) strips_kernel(const B* y, B* out, Lines lines, int k) {
  using Key = typename Order<B>::Key;
  __shared__ Shared<Key, R> shared;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t number = int64_t(blockIdx.x) * R + lane % R;
  const bool there = number < lines.rows;
  const int row = there ? int(number) : 0;
  Strip<B, R, EACH, HELD> strip;
  const int share = (lines.entries + warps * strip.along - 1) / (warps * strip.along) * strip.along;
  strip.y = y + lines.of_y(row);
  strip.step = lines.y_along;
  strip.begin = warp * share + lane / R * EACH;
  strip.end = min(lines.entries, (warp + 1) * share);
  strip.there = there;
  if (HELD) strip.load(strip.begin);
  if (int(threadIdx.x) < R) {
    shared.threshold[lane] = 0;
    shared.room[lane] = there ? k : all_equal;
  }
  __syncthreads();
  const bool ties = !cut_in_block<B, R>(strip, shared, lane % R);
  const Cut<Key> cut{shared.threshold[lane % R], shared.room[lane % R]};
  const int before = ties ? equals_before<B, R>(strip, shared, lane % R, cut.threshold) : 0;
  write_strip<B, R, EACH>(strip, out + lines.of_out(row), lines.out_along, cut, ties, before);
}

// Rows of a tile, as a power of two: at least a sector of 32 bytes side by side, and as many as leave room for five
// tiles on a multiprocessor, but not so many that multiprocessors are left without a block.
template <class B>
int log_rows_of(const Lines& lines, const Device& device) {
  int log_rows = 5 - (sizeof(B) == 2 ? 1 : sizeof(B) == 4 ? 2 : 3);
  const auto fits = [&](int log) { return lines.entries * ((1 << log) + gap<B>)*int(sizeof(B)) <= 40 * 1024; };
  while (log_rows < 5 && fits(log_rows + 1) && lines.rows >> (log_rows + 1) >= 2 * device.processors) ++log_rows;
  return log_rows;
}

template <class B, int SLOTS>
void run_short(const B* y, B* out, const Lines& lines, int k, bool in_groups, const Device& device) {
  if (in_groups) {
    launch<rows_kernel<B, SLOTS>>("kwinners.rows", dim3(unsigned(cdiv(lines.rows, rows_warps))), 32 * rows_warps, 0,
                                  device, y, out, lines, k);
    return;
  }
  const int log_rows = log_rows_of<B>(lines, device);
  const size_t bytes = size_t(lines.entries) * ((1 << log_rows) + gap<B>)*sizeof(B);
  const bool read_across = (lines.columns() ? lines.y_near : lines.y_far) < lines.y_along,
             write_across = lines.columns();
  launch<tile_kernel<B, SLOTS>>("kwinners.tile", dim3(unsigned(cdiv(lines.rows, 1 << log_rows))), tile_threads, bytes,
                                device, y, out, lines, k, log_rows, read_across, write_across);
}

template <class B, int R, int EACH, bool HELD>
void run_long(const B* y, B* out, const Lines& lines, int k, const Device& device) {
  const unsigned threads = HELD ? 32 * unsigned(cdiv(lines.entries, 32 * slots<B>)) : long_threads;
  launch<strips_kernel<B, R, EACH, HELD>>("kwinners.strips", dim3(unsigned(cdiv(lines.rows, R))), threads, 0, device, y,
                                          out, lines, k);
}

template <class B>
void run(const Tensor& from, const Tensor& to, const Lines& lines, int k, const Device& device) {
  const B* y = const_pointer<B>(from);
  B* out = pointer<B>(to);
  constexpr int each = group<B>, sector = 32 / sizeof(B);
  const bool in_groups = !lines.columns() && lines.y_along == 1 && lines.entries % each == 0 &&
                         (lines.rows == 1 || lines.y_far % each == 0) && uintptr_t(y) % 16 == 0 &&
                         uintptr_t(out) % 16 == 0;
  if (lines.entries <= 256)
    run_short<B, 8>(y, out, lines, k, in_groups, device);
  else if (lines.entries <= widest)
    run_short<B, 32>(y, out, lines, k, in_groups, device);
  else if (in_groups && lines.entries <= 1024 * slots<B>)
    run_long<B, 1, each, true>(y, out, lines, k, device);
  else if (in_groups)
    run_long<B, 1, each, false>(y, out, lines, k, device);
  else if (!lines.columns() && (lines.rows == 1 || lines.y_far >= lines.y_along))
    run_long<B, 1, 1, false>(y, out, lines, k, device);
  else  // rows lie side by side where they are read or where they are written
    run_long<B, sector, 1, false>(y, out, lines, k, device);
}

// One size and one stride for dimensions that lie regularly.
struct Merged {
  int64_t size = 1, stride = 0;
};

std::optional<Merged> merged(const Tensor& y, int64_t first, int64_t end) {
  Merged all;
  for (int64_t d = end - 1; d >= first; --d) {
    if (y.size(d) == 1) continue;
    if (all.size == 1)
      all.stride = y.stride(d);
    else if (y.stride(d) != all.size * all.stride)
      return std::nullopt;
    all.size *= y.size(d);
  }
  return all;
}

}  // namespace

static Tensor kwinners(Tensor y, int64_t k, int64_t dim) {
  const char* op = "kwinners";
  dim = check_kwinners(op, y, k, dim);
  constexpr int64_t longest = int64_t(1) << 30;
  if (y.size(dim) >= longest) fail(op, "y must have fewer than 2^30 entries along dim ", dim, ", got ", y.size(dim));
  if (y.numel() > largest_extent * y.size(dim))
    fail(op, "y must have fewer than 2^31 rows of entries along dim ", dim, ", got ", y.numel() / y.size(dim));
  require_finite(op, "y", y);
  const Device device(y);
  const Tensor out = empty_like(y, Ints(y.sizes().begin(), y.sizes().end()), y.scalar_type());
  if (y.numel() == 0) return out;
  if (!merged(y, 0, dim) || !merged(y, dim + 1, y.dim())) y = torch::stable::contiguous(y);
  const Merged far = *merged(y, 0, dim), near = *merged(y, dim + 1, y.dim());
  const Lines lines{
      int(far.size * near.size), int(y.size(dim)), Divisor(near.size), far.stride, near.stride, y.stride(dim),
      y.size(dim) * near.size,   near.size};
  if (y.element_size() == 2)
    run<uint16_t>(y, out, lines, int(k), device);
  else if (y.element_size() == 4)
    run<uint32_t>(y, out, lines, int(k), device);
  else
    run<uint64_t>(y, out, lines, int(k), device);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) { m.impl("kwinners.cuda", TORCH_BOX(&kwinners)); }

}  // namespace hebbkern
