// The geometry of a layer's patches. A linear layer is a convolution of 1x1 images with N channels. A grouped
// convolution is as many layers side by side, each of its own channels and neurons.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HEBBKERN_HOST_DEVICE __host__ __device__
#else
#define HEBBKERN_HOST_DEVICE
#endif

namespace hebbkern {

enum class Patches { raw, centred, standardised };
enum class Activation { linear, relu, tanh, softmax };  // of the responses to them

struct Geometry {
  int64_t batch = 0, channels = 0, height = 1, width = 1;  // the images; channels of one group
  int64_t neurons = 0, kh = 1, kw = 1;                     // the kernels; neurons of one group
  int64_t groups = 1;
  int64_t stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  bool image = false;

  HEBBKERN_HOST_DEVICE int64_t span_h() const { return dilation[0] * (kh - 1) + 1; }
  HEBBKERN_HOST_DEVICE int64_t span_w() const { return dilation[1] * (kw - 1) + 1; }
  HEBBKERN_HOST_DEVICE int64_t padded_h() const { return height + 2 * padding[0]; }
  HEBBKERN_HOST_DEVICE int64_t padded_w() const { return width + 2 * padding[1]; }
  HEBBKERN_HOST_DEVICE int64_t out_h() const { return (padded_h() - span_h()) / stride[0] + 1; }
  HEBBKERN_HOST_DEVICE int64_t out_w() const { return (padded_w() - span_w()) / stride[1] + 1; }
  HEBBKERN_HOST_DEVICE int64_t per_image() const { return out_h() * out_w(); }
  // Of one group.
  HEBBKERN_HOST_DEVICE int64_t patches() const { return batch * per_image(); }
  HEBBKERN_HOST_DEVICE int64_t inputs() const { return channels * kh * kw; }
};

// A patch whose deviation from its mean is at most this share of its norm is flat: centred, it is all zeros. A patch of
// zeros is blank: no neuron wins it or learns from it.
constexpr double flat = 1e-6;

}  // namespace hebbkern
