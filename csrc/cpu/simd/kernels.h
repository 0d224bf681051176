// The inner loops, compiled once per instruction set (isa_*.cpp) and chosen at run time.
// Everything above them is plain portable C++.
#pragma once

#include <cstdint>
#include <utility>

#include "common/patches.h"

namespace hebbkern {

// The order-preserving integer image of a float has its width.
template <class T>
struct IndexOf;
template <>
struct IndexOf<float> {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <class T>
using Index = typename IndexOf<T>::type;

// One row's step in apply_: w' = w + rate * ((sum - decay * w) * scale * inverse), then divided as `normalise` says.
template <class T>
struct RowStep {
  T decay;        // subtracted per unit of weight
  T inverse;      // 1 / (denominator * scale)
  T rate;         // lr * rho, divided by the mantissa of the global maximum where that is asked for
  int normalise;  // 0 none, 1 row max, 2 row L2
  T scale = 1;    // a power of two, with which no factor overflows
};

template <class T>
struct Kernels {
  const char* name;
  int lanes;  // entries of one vector
  int rows;   // rows of a register tile
  int width;  // columns of a register tile, and of a panel

  // out[i][0 .. vectors*lanes) (+)= sum over l < n of rows[i][steps[l]] * panel[l * stride ...], i < rows.
  // The one product behind responses, weight gradients, Gram matrices and triangular decay.
  void (*tile)(const T* const* rows, const int64_t* steps, int64_t n, const T* panel, int64_t stride, int vectors,
               T* out, int64_t out_stride, bool add);

  // out[n * width + j] = x[j * step + n], n < size; columns j from `count` to a whole vector become zeros.
  void (*transpose)(const T* x, int64_t step, int64_t count, int64_t size, T* out, int64_t width);

  // Merges a tile's columns into each row's k best, falling, ties to the lower index.
  // scores [count][width]: columns from `valid` on are ignored, offset[i] * wsum[j] is subtracted where wsum is given;
  // names maps columns to neurons; best, winners: [count][k].
  void (*rank)(T* scores, int count, int vectors, int valid, const T* offset, const T* wsum, const int32_t* names,
               int k, T* best, int32_t* winners);

  // nearest[j], distance[j] <- the smaller of itself and (wnorm[j] + xnorm - 2 * dot[j]) / length, strictly. A
  // quotient rounded once, as distances that tie exactly must compare equal.
  void (*nearer)(const T* dot, int64_t n, const T* wnorm, T xnorm, T length, Index<T> patch, T* distance,
                 Index<T>* nearest);

  // out[g*lanes ...] = sum over e < n of coefficient[e] * x[base[e] + offset[g] ...], g < groups <= 8, in the order of
  // e.
  void (*gather)(const T* x, const int64_t* base, const T* coefficient, int64_t n, const int64_t* offset, int groups,
                 T shift, T* out);

  // The largest |x[i]|, infinite or NaN if an entry is.
  T (*bound)(const T* x, int64_t n);

  // The sums of x[i] and of x[i]^2; of |x[i]| and of x[i]^2; of (x[i] - y[i])^2. In double.
  void (*sums)(const T* x, int64_t n, double* sum, double* squares);
  void (*norms)(const T* x, int64_t n, double* one, double* squares);
  double (*apart)(const T* x, const T* y, int64_t n);

  // y [rows][width] of dot products becomes f(scale[i] * (y - offset[i] * wsum[j])); offset null: raw patches.
  void (*respond)(T* y, int64_t rows, int64_t width, const T* offset, const T* scale, const T* wsum, Activation f);
  // out[j] = sum over i < rows of a[i][j] * b[i][j], j < width; b null: of a[i][j].
  void (*columns)(const T* a, const T* b, int64_t rows, int64_t width, T* out);
  // out[i][j] = factor[i] * y[i][j].
  void (*scale)(const T* y, const T* factor, int64_t rows, int64_t width, T* out);

  // r = softmax(u / temperature) over n entries, in place, with the sign flipped for all but the highest.
  void (*soft)(T* u, int64_t n, T temperature);

  // apply_: the row's new weights into `out` (may be w itself); false if one is not finite. moved: any entry stepped.
  bool (*step)(const T* w, const T* sum, int64_t n, const RowStep<T>& row, T* out, bool* moved);
  // Largest |(sum - decay * w) * scale * inverse|, largest |w|, and whether w and sum are finite.
  bool (*largest)(const T* w, const T* sum, int64_t n, T decay, T scale, T inverse, T* delta, T* weight);

  // Small groups (cpu/ops/planes.h): arrays [..][length], an entry a patch; patch o reads x[o + taps[l]], l < n.
  // out[j][o] = sum over l of weights[j][l] * x[o + taps[l]].
  void (*slide)(const T* x, const int64_t* taps, int64_t n, const T* weights, int64_t neurons, int64_t length, T* out);
  // sums[j][l] += sum over o of c[j][o] * x[o + taps[l]].
  void (*dots)(const T* c, int64_t neurons, int64_t length, const T* x, const int64_t* taps, int64_t n, double* sums);
  // The k <= 4 best of u [count][length], falling, ties to the earlier: scores and names, or -infinity and -1.
  void (*champions)(const T* u, const int32_t* names, int64_t count, int64_t length, int k, T* best, Index<T>* winners);
  // Whether a value is 0 where `valid` is not.
  bool (*any_zero)(const T* values, const T* valid, int64_t length);
  // winners[r][o] = -1 for patches of zeros.
  void (*drop_blank)(const T* x, const int64_t* taps, int64_t n, int64_t length, int64_t ranks, Index<T>* winners);
  // c[o] = sum of coefficient[r][o] over the ranks that the neuron won; adds c * response (or c) and how many entries.
  void (*teach)(const Index<T>* winners, const T* coefficient, const T* response, int64_t ranks, int64_t length,
                int64_t neuron, T* c, double* decay, double* count);
  // As Moments (products/source.h); norm may be null where patches are not to be standardised.
  void (*spread)(const T* x, const int64_t* taps, int64_t n, int64_t length, bool raw, bool standardised, T* offset,
                 T* scale, T* norm);
  // Responses of one rank by scale, or 1 / norm where given: 0, and no winner, where scale is 0. False if a response is
  // not finite where `valid` is not 0.
  bool (*settle)(const T* valid, const T* scale, const T* norm, int64_t length, T* best, Index<T>* winners);
  // out[o] = coefficient, times the response where given and positive (else 0); 0 where not valid.
  void (*shares)(const T* valid, T coefficient, const T* response, int64_t length, T* out);
  // u[o] -= offset[o] * wsum; u[o] = f(scale[o] * u[o]), or 0 where not valid; the softmax over neurons, as `soft`.
  void (*centre)(T* u, int64_t length, const T* offset, T wsum);
  void (*answer)(T* u, int64_t length, const T* scale, const T* valid, Activation f);
  void (*soft_lanes)(T* u, int64_t neurons, int64_t length, const T* valid, T temperature);

  // out = y with all but the k highest of n entries zero, ties to the lower index; keys: scratch of n.
  void (*kwinners)(const T* y, int64_t n, int64_t k, Index<T>* keys, T* out);
};

// Puts (score, neuron), which beats the last of the k best, behind every better or equal one; ties keep the order of
// arrival, which is by index. Static: each instruction set's file has its own.
template <class T>
static inline void insert(T score, int32_t neuron, int k, T* best, int32_t* winners) {
  int at = k - 1;
  for (; at > 0 && best[at - 1] < score; --at) {
    best[at] = best[at - 1];
    winners[at] = winners[at - 1];
  }
  best[at] = score;
  winners[at] = neuron;
}

template <class T>
const Kernels<T>& kernels();

template <class T>
bool finite(const T* x, int64_t n) {
  return kernels<T>().bound(x, n) < T(__builtin_inf());  // false for NaN
}

}  // namespace hebbkern
