// How kernels see the patches of an input: entry n of patch p is x[corner(p).start + tap(n).offset], or 0
// in the padding. A linear layer is 1x1 patches of images of one pixel. Patches are never written out. With groups they
// are numbered by (group, image, row, column), and every group has as many patches and neurons.
#pragma once

#include "cuda/device/device.cuh"

namespace hebbkern {

// Division of numbers below 2^31 by one that kernels do not know: a multiplication and a shift.
struct Divisor {
  uint32_t divisor = 1, factor = 1, shift = 0;
  Divisor() = default;
  explicit Divisor(int64_t by) : divisor(uint32_t(by)) {
    while ((int64_t(1) << shift) < by) ++shift;
    // For any n < 2^31, n / by = (n * factor) >> (31 + shift): factor exceeds 2^(31 + shift) / by by at most 1.
    factor = uint32_t((uint64_t(1) << (31 + shift)) / uint64_t(by) + 1);
  }
  __device__ __forceinline__ int quotient(int n) const { return int((uint64_t(uint32_t(n)) * factor) >> (31 + shift)); }
  __device__ __forceinline__ int remainder(int n) const { return n - quotient(n) * int(divisor); }
};

// Patches, inputs and entries that kernels number: below 2^31 by more than a tile or a run, whose end is a number too.
constexpr int64_t most_numbered = largest_extent - (1 << 24);

struct Corner {
  int64_t start;
  int row, column;
};

struct Tap {
  int64_t offset;
  int down, right;
};

template <class S>
struct PatchView {
  const S* x;
  int64_t across = 0;                   // from a group to the next
  int64_t image, channel, line, pixel;  // strides
  int height, width;
  int stride[2], padding[2], dilation[2];
  Divisor of_group, per_image, columns, area, kernel_width;
  int groups = 1;
  int patches, inputs;  // patches of all groups
  bool flat;            // linear: entry n of patch p is x[p * image + n * channel]
  bool inside;          // no padding: every entry lies in its image

  // Raises where there are more than kernels can number, or images whose padded coordinates they cannot.
  PatchView(const char* op, const Tensor& x, const Geometry& g);
  // Rows of a contiguous matrix as patches.
  PatchView(const S* rows, int64_t count, int64_t inputs)
      : x(rows),
        image(inputs),
        channel(1),
        line(0),
        pixel(0),
        height(1),
        width(1),
        stride{1, 1},
        padding{0, 0},
        dilation{1, 1},
        patches(int(count)),
        inputs(int(inputs)),
        flat(true),
        inside(true) {}

  HEBBKERN_HOST_DEVICE int of_a_group() const { return int(of_group.divisor); }  // patches; 1 where there are none
  __device__ __forceinline__ int group(int patch) const { return of_group.quotient(patch); }
  // Of a patch of the first group.
  __device__ __forceinline__ int image_of(int patch) const { return per_image.quotient(patch); }
  __device__ __forceinline__ Corner corner(int patch) const {
    if (flat) return {int64_t(patch) * image, 0, 0};
    const int g = group(patch), own = patch - g * of_a_group();
    const int b = image_of(own), within = own - b * int(per_image.divisor);
    const int y = columns.quotient(within), z = within - y * int(columns.divisor);
    const int row = y * stride[0] - padding[0], column = z * stride[1] - padding[1];
    return {g * across + b * image + row * line + column * pixel, row, column};
  }
  __device__ __forceinline__ Tap tap(int entry) const {
    if (flat) return {int64_t(entry) * channel, 0, 0};
    const int c = area.quotient(entry), within = entry - c * int(area.divisor);
    const int i = kernel_width.quotient(within), j = within - i * int(kernel_width.divisor);
    const int down = i * dilation[0], right = j * dilation[1];
    return {c * channel + down * line + right * pixel, down, right};
  }
  __device__ __forceinline__ bool in_image(const Corner& corner, const Tap& tap) const {
    return inside || (unsigned(corner.row + tap.down) < unsigned(height) &&
                      unsigned(corner.column + tap.right) < unsigned(width));
  }
  // For a patch and an entry that there are.
  __device__ __forceinline__ S load(const Corner& corner, const Tap& tap) const {
    return in_image(corner, tap) ? x[corner.start + tap.offset] : S(0);
  }
  // Whether groups of `each` entries lie side by side, aligned to their size, in every patch.
  bool in_groups(int each) const {
    return flat && channel == 1 && inputs % each == 0 && image % each == 0 && uintptr_t(x) % (each * sizeof(S)) == 0;
  }
};

template <class S>
PatchView<S>::PatchView(const char* op, const Tensor& t, const Geometry& g)
    : x(const_pointer<S>(t)),
      across(g.channels * t.stride(1)),
      image(t.stride(0)),
      channel(t.stride(1)),
      line(g.image ? t.stride(2) : 0),
      pixel(g.image ? t.stride(3) : 0),
      height(int(g.height)),
      width(int(g.width)),
      of_group(std::max<int64_t>(g.patches(), 1)),
      per_image(std::max<int64_t>(g.per_image(), 1)),
      columns(std::max<int64_t>(g.out_w(), 1)),
      area(g.kh * g.kw),
      kernel_width(g.kw),
      groups(int(g.groups)),
      patches(int(g.groups * g.patches())),
      inputs(int(g.inputs())),
      flat(!g.image),
      inside(g.padding[0] == 0 && g.padding[1] == 0) {
  const int64_t count = g.groups * g.patches();
  if (count > most_numbered) fail(op, "x must have at most ", most_numbered, " patches, got ", count);
  if (g.inputs() > most_numbered) fail(op, "x must have at most ", most_numbered, " inputs a patch, got ", g.inputs());
  if (g.padded_h() > largest_extent || g.padded_w() > largest_extent)
    fail(op, "padding must leave images of less than 2^31 rows and columns, got ", g.padded_h(), "x", g.padded_w());
  for (int axis = 0; axis < 2; ++axis) {
    stride[axis] = int(g.stride[axis]);
    padding[axis] = int(g.padding[axis]);
    dilation[axis] = int(g.dilation[axis]);
  }
}

// A stored number as it is computed with.
__device__ __forceinline__ float wide(float a) { return a; }
__device__ __forceinline__ double wide(double a) { return a; }
__device__ __forceinline__ float wide(BFloat16 a) { return float(a); }
__device__ __forceinline__ float wide(Half a) { return float(a); }

// a / b, correctly rounded whatever the compiler's options.
__device__ __forceinline__ float quotient(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double quotient(double a, double b) { return __ddiv_rn(a, b); }

// Whether a patch, the same for all lanes of a warp, is all zeros.
template <class S>
__device__ __forceinline__ bool all_zeros(const PatchView<S>& view, int patch) {
  const Corner corner = view.corner(patch);
  for (int first = 0; first < view.inputs; first += 128) {
    bool any = false;
#pragma unroll
    for (int entry = first + int(threadIdx.x) % 32; entry < first + 128; entry += 32)
      if (entry < view.inputs && wide(view.load(corner, view.tap(entry))) != 0) any = true;
    if (__any_sync(~0u, any)) return false;
  }
  return true;
}

}  // namespace hebbkern
