// The inner loops of certified winners on a processor's matrix unit (isa_amx.cpp). screen.h explains how they work
// together.
#pragma once

#include <cstdint>

namespace hebbkern {

// Neighbouring inputs of a patch: `length` entries, the first at `offset` from the patch's base.
struct Stretch {
  int64_t offset, length;
};

// Up to 16 of them, a vector's worth, which become entries `first` and on; lanes: as many low bits.
struct Piece {
  int64_t offset, first;
  uint32_t lanes;
};

// One row of patches of an image whose entries' squares are known: see `lengths`.
struct Row {
  const float *squares, *rests;  // of the first image row that the patches reach
  int64_t height, down;          // rows of a kernel, and from one to the next
  int64_t width;                 // entries of an image row that the patches reach
  const Piece* pieces;           // of a kernel's row, from its first entry
  int64_t count;
  int64_t patches, right;  // and from one patch to the next
};

// How much rounding may have taken from a length: sqrt(squares * wider + least) is no shorter than the true one.
struct Grain {
  float wider, least;
};

// 16 patches on their way through the neurons.
struct ScanState {
  static constexpr int patches = 16, chunk = 128, most = 8;  // chunk: neurons of a scan; most: the largest k
  alignas(64) float top[most][patches];                      // the k highest lower bounds so far, falling
  alignas(64) float size[patches];                           // a response is off by less than size * error[neuron]
  int32_t count[patches];                                    // candidates listed; capacity + 1: they did not fit
};

struct MatrixUnit {
  static constexpr int64_t tile = 512;  // bf16 entries of a tile

  const char* name;

  // rows[r][0 .. padded) = bf16(x - shifts[r]) of 16 patches' (or neurons') pieces, zeros behind them; rows has room
  // for 16 entries more. size: their lengths |x - shift|, rest: |x - shift - bf16|, both rounded up. Bit r of the
  // result: all entries are zero, and so is the shift.
  unsigned (*pack)(const float* x, const int64_t* bases, const Piece* pieces, int64_t count, const float* shifts,
                   const float* common, const Grain& grain, int64_t padded, uint16_t* rows, float* size, float* rest);

  // The same where patches overlap: entries are rounded once, with the squares of each and of what bf16 loses of it; a
  // patch of zeros alone has a sum of squares of 0.
  void (*round)(const float* x, int64_t count, uint16_t* out, float* squares, float* rests);
  // size and rest of a row's patches (room for 16 more), and whether each is zero. `columns`: room for 2 width + 32.
  void (*lengths)(const Row& row, const Grain& grain, float* columns, float* size, float* rest, bool* zero);
  // rows[r] = 16 patches' pieces, as pack leaves them; pieces may have 32 entries, rows has room for 32 more.
  void (*collect)(const uint16_t* x, const int64_t* bases, const Piece* pieces, int64_t count, int64_t padded,
                  uint16_t* rows);

  // rows [16][step of steps][32] of bf16 become tiles [steps][16 pairs of inputs][16 patches][2].
  void (*interleave)(const uint16_t* rows, int64_t padded, uint16_t* tiles);

  // Around products, on every thread.
  void (*begin)();
  void (*end)();

  // out[b][16 * a + neuron][patch] = the products of neuron tiles [groups][steps][16][32] with patch tiles
  // [pair <= 2][steps][16][16][2], in float32.
  void (*products)(const uint16_t* neurons, int64_t groups, const uint16_t* patches, int pair, int64_t steps,
                   float* out);

  // One chunk of responses [neurons][16]: raises state.top, then lists the neurons that may still be among the k best,
  // with the upper bounds of their responses, in [16][capacity].
  void (*scan)(const float* responses, int neurons, const float* error, int k, int32_t first, int capacity,
               ScanState* state, int32_t* candidates, float* upper);

  // Eight pairs of neurons, each with a patch: out[2 i + j] = the response of w[2 i + j] to x[i], added up in the order
  // of the float32 register tile, less offset[i] * wsum[2 i + j] where wsum is given.
  void (*rescore)(const float* const* x, const float* const* w, const Stretch* stretches, int64_t count,
                  const float* offset, const float* wsum, float* out);
};

// A neuron whose upper bound lies below it is beaten by k others; `top` is the lowest of their lower bounds.
inline float threshold(float top) { return top - (top < 0 ? -top : top) * 0x1p-22f; }

// Null where the processor has none, or the system does not let this process use it.
const MatrixUnit* matrix_unit();

}  // namespace hebbkern
