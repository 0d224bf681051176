// How the dense rules multiply: Singles, numbers of T one at a time, or Pairs, bfloat16 numbers two at a time. Both
// have the same members, so that an algorithm is written once:
//
//     Input   a number of a patch, as Source holds it
//     Entry   a number of a register tile's row
//     Cell    `per` numbers of a panel, which one step multiplies by as many entries of a row
//     Sum     the type that products are added up in
#pragma once

#include <cstring>

#include "cpu/products/pairs.h"
#include "cpu/products/panels.h"

namespace hebbkern {

template <class T>
struct Singles {
  using Input = T;
  using Entry = T;
  using Cell = T;
  using Sum = T;
  static constexpr int64_t per = 1;

  const Kernels<T>& kernel = kernels<T>();
  const int64_t lanes = kernel.lanes, rows = kernel.rows;  // cells of a vector, rows of a tile

  void tile(const T* const* rows, const int64_t* steps, int64_t n, const T* panel, int64_t stride, int vectors, T* out,
            int64_t out_stride, bool add) const {
    kernel.tile(rows, steps, n, panel, stride, vectors, out, out_stride, add);
  }
  void transpose(const T* x, int64_t step, int64_t count, int64_t size, T* out, int64_t width) const {
    kernel.transpose(x, step, count, size, out, width);
  }

  // Cells of the entries of two rows; of one row, as a cell is one entry here.
  void join(const T* a, const T*, int64_t n, T* out) const { std::copy_n(a, n, out); }
  // Cells, entries and sums of the precision of entries, from sums: nothing to do.
  void round(const T*, const T*, int64_t, T*) const {}
  void narrow(const T*, int64_t, T*) const {}
  void shorten(T*, int64_t) const {}

  // The largest |entry|, infinite or NaN if one is.
  T bound(const T* row, int64_t n) const { return kernel.bound(row, n); }

  // A row of weights as entries, in `copy` if it does not lie so. `entry`: see weight_entries.
  template <class S>
  const T* read(const S* row, const std::vector<int64_t>& entry, bool in_order, T* copy) const {
    if constexpr (std::is_same_v<S, T>)
      if (in_order) return row;
    for (size_t n = 0; n < entry.size(); ++n) copy[n] = T(row[entry[n]]);
    return copy;
  }
  // Cells of weights [first, first + n) of a row.
  template <class S>
  void weights(const S* row, const S*, const std::vector<int64_t>& entry, bool in_order, int64_t first, int64_t n,
               T* out) const {
    if (in_order)
      for (int64_t i = 0; i < n; ++i) out[i] = T(row[first + i]);
    else
      for (int64_t i = 0; i < n; ++i) out[i] = T(row[entry[first + i]]);
  }
};

struct Pairs {
  using Input = BFloat16;
  using Entry = uint16_t;
  using Cell = Pair;
  using Sum = float;
  static constexpr int64_t per = 2;

  explicit Pairs(const PairUnit& unit) : unit(unit) {}
  const PairUnit& unit;
  const Kernels<float>& kernel = kernels<float>();
  const int64_t lanes = unit.lanes, rows = unit.rows;

  void tile(const uint16_t* const* rows, const int64_t* steps, int64_t n, const Pair* panel, int64_t stride,
            int vectors, float* out, int64_t out_stride, bool add) const {
    unit.tile(rows, steps, n, panel, stride, vectors, out, out_stride, add);
  }
  // Rows of pairs, `step` pairs apart. To be moved about they may as well be float32.
  void transpose(const uint16_t* x, int64_t step, int64_t count, int64_t size, Pair* out, int64_t width) const {
    kernel.transpose(reinterpret_cast<const float*>(x), step, count, size, reinterpret_cast<float*>(out), width);
  }

  void join(const uint16_t* a, const uint16_t* b, int64_t n, Pair* out) const { unit.join(a, b, n, out); }
  void round(const float* a, const float* b, int64_t n, Pair* out) const { unit.round(a, b, n, out); }
  void narrow(const float* x, int64_t n, uint16_t* out) const { unit.narrow(x, n, out); }
  void shorten(float* x, int64_t n) const { unit.shorten(x, n); }

  float bound(const uint16_t* row, int64_t n) const {
    return float(largest_of(reinterpret_cast<const BFloat16*>(row), n));
  }

  // To a whole number of pairs.
  template <class S>
  const uint16_t* read(const S* row, const std::vector<int64_t>& entry, bool in_order, uint16_t* copy) const {
    const int64_t n = entry.size();
    if (n % 2) copy[n] = 0;
    if (std::is_same_v<S, float> && in_order)
      unit.narrow(reinterpret_cast<const float*>(row), n, copy);
    else if (std::is_same_v<S, BFloat16> && in_order)
      std::memcpy(copy, row, n * sizeof(S));
    else
      for (int64_t i = 0; i < n; ++i) copy[i] = bits(row[entry[i]]);
    return copy;
  }
  // Of two rows; the second null: zeros.
  template <class S>
  void weights(const S* a, const S* b, const std::vector<int64_t>& entry, bool in_order, int64_t first, int64_t n,
               Pair* out) const {
    if constexpr (std::is_same_v<S, float>)
      if (in_order) return unit.round(a + first, b ? b + first : nullptr, n, out);
    if constexpr (std::is_same_v<S, BFloat16>)
      if (in_order) return unit.join(&a[first].x, b ? &b[first].x : nullptr, n, out);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = entry[first + i];
      out[i] = {bits(a[at]), b ? bits(b[at]) : uint16_t(0)};
    }
  }

 private:
  template <class S>
  static uint16_t bits(S weight) {
    return BFloat16(float(weight)).x;
  }
};

// Entries of patches or of cells.
template <class P>
const typename P::Entry* entries_of(const void* numbers) {
  return static_cast<const typename P::Entry*>(numbers);
}

}  // namespace hebbkern
