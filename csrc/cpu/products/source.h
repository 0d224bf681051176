// Patches as the kernels read them: entry n of patch p is at x[base(p) + offset[n]]. Inputs are in
// (row, column, channel) order, so that neighbours in a channels-last image are neighbours in the patch.
#pragma once

#include "common/checks.h"
#include "cpu/simd/kernels.h"

namespace hebbkern {

// Input n of (row, column, channel) order in a contiguous [channels, kh, kw] row of weights.
inline int64_t in_weight(const Geometry& g, int64_t n) { return n % g.channels * g.kh * g.kw + n / g.channels; }

// The largest |x[i]|, infinite or NaN if an entry is.
BFloat16 largest_of(const BFloat16* x, int64_t n);

template <class T>
class Source {
 public:
  // Reads x where it lies if its channels are contiguous, its dtype is T and nothing is padded; else one copy of the
  // images, padded and channels-last. Never a tensor of patches x inputs. Raises if x is not finite. Of bfloat16, read
  // two at a time, always a copy, with an entry more behind it.
  Source(const char* op, const Tensor& x, const Geometry& geometry);

  const Geometry g;
  const T* x = nullptr;                    // image 0
  int64_t image = 0, row = 0, column = 0;  // distances between images, rows, pixels
  T bound = 0;                             // the largest |entry|
  int64_t end = 0;                         // entries that may be read from x on
  std::vector<int64_t> offset;             // [N], from a patch's base

  // The runs of neighbouring inputs: first input and length.
  struct Run {
    int64_t first, length;
  };
  std::vector<Run> runs;

  int64_t base(int64_t patch) const {
    const int64_t inside = patch % per_image_, w = g.out_w();
    return (patch / per_image_) * image + (inside / w) * g.stride[0] * row + (inside % w) * g.stride[1] * column;
  }

  // The bases of patches [first, first + count), one division instead of four a patch.
  void bases(int64_t first, int64_t count, int64_t* out) const {
    const int64_t h = g.out_h(), w = g.out_w(), down = g.stride[0] * row, right = g.stride[1] * column;
    int64_t b = first / per_image_, i = first % per_image_ / w, j = first % w;
    for (int64_t p = 0; p < count; ++p) {
      out[p] = b * image + i * down + j * right;
      if (++j == w) {
        j = 0;
        if (++i == h) {
          i = 0;
          ++b;
        }
      }
    }
  }

  // Whether the patch at `base` is all zeros. A few entries tell most others, the middle one first: padding lies at the
  // rim.
  bool blank(int64_t base) const {
    const int64_t n = g.inputs();
    for (const int64_t sixteenth : {8, 5, 11, 2, 14})
      if (x[base + offset[sixteenth * n / 16]] != T(0)) return false;
    return zeros(base);
  }

 private:
  bool zeros(int64_t base) const;
  void copy(const Tensor& from);
  T largest() const;

  int64_t per_image_;
  std::optional<Scratch<T>> copied_;
};

// Per patch: x~ = (x - offset) * scale, and norm = ||x~|| before scaling (the patch's own norm for raw ones). Of
// patches that are not raw a scale of 0 says that they are flat. Raises where a norm that is divided by (standardised
// patches, or `norms`) leaves the range of T.
template <class T>
struct Moments {
  Moments(const char* op, const Source<T>& source, Patches patches, bool norms = false);
  Scratch<T> offset, scale, norm;  // [P]
};

}  // namespace hebbkern
