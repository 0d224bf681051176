// Argument checks of every device, and their sentences: the argument, what it must be and what came.
#pragma once

#include <cmath>
#include <sstream>
#include <stdexcept>

#include "common/patches.h"
#include "common/stable.h"

namespace hebbkern {

// Python raises std::invalid_argument as ValueError.
template <class... Args>
[[noreturn]] void fail(const char* op, const Args&... args) {
  std::ostringstream text;
  text << "hebbkern." << op << ": ";
  (text << ... << args);
  throw std::invalid_argument(text.str());
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

// As Python prints a list.
template <class Sizes>
std::string list(const Sizes& sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

inline std::string describe(const Tensor& t) {
  return std::string(name_of(t.scalar_type())) + " of shape " + list(t.sizes());
}

inline bool is_index(ScalarType dtype) { return dtype == ScalarType::Int || dtype == ScalarType::Long; }

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

inline void check_floating(const char* op, const char* argument, const Tensor& t) {
  if (!is_floating(t.scalar_type()))
    fail(op, argument, " must be float32, float64, bfloat16 or float16, got ", name_of(t.scalar_type()));
}

inline bool has_shape(const Tensor& t, const Ints& sizes) {
  if (t.dim() != int64_t(sizes.size())) return false;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (t.size(i) != sizes[i]) return false;
  return true;
}

inline std::string device_of(const Tensor& t) {
  return t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : t.is_cpu() ? "cpu" : "another device";
}

inline bool together(const Tensor& a, const Tensor& b) {
  return a.device().type() == b.device().type() && (!a.is_cuda() || a.get_device_index() == b.get_device_index());
}

inline void check_device(const char* op, const char* argument, const Tensor& t, const char* owner, const Tensor& like) {
  if (!together(t, like))
    fail(op, argument, " must be on ", owner, "'s device ", device_of(like), ", got ", device_of(t));
}

inline void check_mask(const char* op, const char* argument, const OptionalTensor& mask, int64_t neurons,
                       const Tensor& like) {
  if (mask && (mask->scalar_type() != ScalarType::Bool || !has_shape(*mask, {neurons}) || !together(*mask, like)))
    fail(op, argument, " must be bool of shape [", neurons, "] on ", device_of(like), ", got ", describe(*mask), " on ",
         device_of(*mask));
}

// One bool a neuron; without a tensor, false for every neuron.
class Mask {
 public:
  explicit Mask(const OptionalTensor& mask)
      : data_(mask ? static_cast<const bool*>(mask->const_data_ptr()) : nullptr), step_(mask ? mask->stride(0) : 0) {}
  HEBBKERN_HOST_DEVICE bool operator[](int64_t neuron) const { return data_ && data_[neuron * step_]; }
  HEBBKERN_HOST_DEVICE bool given() const { return data_; }
  // Of the neurons from `first` on.
  Mask from(int64_t first) const {
    Mask rest = *this;
    if (data_) rest.data_ += first * step_;
    return rest;
  }

 private:
  const bool* data_;
  int64_t step_;
};

inline void check_x(const char* op, const Tensor& x) {
  if (x.dim() != 2 && x.dim() != 4)
    fail(op, "x must be [batch, inputs] or [batch, channels, height, width], got shape ", list(x.sizes()));
  check_floating(op, "x", x);
}

// Channels and neurons divide into groups.
inline void check_groups(const char* op, const Tensor& x, int64_t neurons, int64_t groups) {
  if (groups == 1) return;
  if (x.dim() == 2) fail(op, "groups must be 1 for a linear layer, got ", groups);
  if (groups < 1 || x.size(1) % groups != 0 || neurons % groups != 0)
    fail(op, "groups must divide x's ", x.size(1), " channels and the ", neurons, " neurons, got ", groups);
}

// dtype: what the weight's must be; none: x's.
inline void check_weight(const char* op, const Tensor& x, const Tensor& weight, int64_t groups,
                         std::optional<ScalarType> dtype = std::nullopt) {
  if (weight.dim() != x.dim())
    fail(op, "weight must be ", x.dim() == 4 ? "[neurons, channels, height, width]" : "[neurons, inputs]", " like x's ",
         x.dim(), " dimensions, got shape ", list(weight.sizes()));
  if (dtype && weight.scalar_type() != *dtype)
    fail(op, "weight must be ", name_of(*dtype), ", got ", name_of(weight.scalar_type()));
  if (!dtype && weight.scalar_type() != x.scalar_type())
    fail(op, "weight must have x's dtype ", name_of(x.scalar_type()), ", got ", name_of(weight.scalar_type()));
  check_device(op, "weight", weight, "x", x);
  if (weight.numel() == 0)
    fail(op, "weight must have at least one neuron and one input, got shape ", list(weight.sizes()));
  check_groups(op, x, weight.size(0), groups);
  if (weight.size(1) * groups != x.size(1))
    fail(op, "weight must have x's ", x.size(1), x.dim() == 4 ? " channels" : " inputs",
         groups == 1 ? "" : " / " + std::to_string(groups) + " groups", ", got ", weight.size(1));
}

inline void check_rate(const char* op, double lr) {
  if (!std::isfinite(lr)) fail(op, "lr must be finite, got ", lr);
}

// Of a competition for k ranks whose responses have Lebesgue exponent p.
inline void check_contest(const char* op, int64_t k, double p, bool cosine, const Geometry& g) {
  const int64_t most = g.neurons < 64 ? g.neurons : 64;
  if (k < 1 || k > most)
    fail(op, "k must be between 1 and min(64, ", g.neurons, " neurons", g.groups == 1 ? "" : " of a group", "), got ",
         k);
  if (!(p >= 1) || std::isinf(p)) fail(op, "p must be a finite number of at least 1, got ", p);
  if (cosine && p != 2) fail(op, "p must be 2 with cosine responses, got ", p);
}

inline Patches check_patches(const char* op, const std::string& patches) {
  if (patches == "raw") return Patches::raw;
  if (patches == "centred") return Patches::centred;
  if (patches == "standardised") return Patches::standardised;
  fail(op, "patches must be \"raw\", \"centred\" or \"standardised\", got \"", patches, "\"");
}

// Extents below it multiply without overflow.
constexpr int64_t largest_extent = (int64_t(1) << 31) - 1;

inline void check_pair(const char* op, const char* argument, const Ints& pair, int64_t least) {
  if (pair.size() != 2 || pair[0] < least || pair[1] < least)
    fail(op, argument, " must be two numbers of at least ", least, ", got ", list(pair));
  if (pair[0] > largest_extent || pair[1] > largest_extent)
    fail(op, argument, " must be two numbers of at most ", largest_extent, ", got ", list(pair));
}

// kernel: (kh, kw) for images, empty for a linear layer. `argument`: which argument gave it.
inline Geometry check_geometry(const char* op, const Tensor& x, int64_t neurons, const Ints& kernel, const Ints& stride,
                               const Ints& padding, const Ints& dilation, int64_t groups, const char* argument) {
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  Geometry g;
  g.batch = x.size(0);
  g.channels = x.size(1) / groups;
  g.neurons = neurons / groups;
  g.groups = groups;
  if (x.dim() == 2) {
    if (stride != Ints{1, 1} || padding != Ints{0, 0} || dilation != Ints{1, 1})
      fail(op, "stride, padding and dilation must be 1, 0 and 1 for a linear layer, got ", list(stride), ", ",
           list(padding), ", ", list(dilation));
    return g;
  }
  g.image = true;
  g.height = x.size(2);
  g.width = x.size(3);
  g.kh = kernel[0];
  g.kw = kernel[1];
  for (int i = 0; i < 2; ++i) {
    g.stride[i] = stride[i];
    g.padding[i] = padding[i];
    g.dilation[i] = dilation[i];
  }
  if (g.span_h() > g.padded_h() || g.span_w() > g.padded_w())
    fail(op, argument, " must fit into the padded image ", g.padded_h(), "x", g.padded_w(),
         ", got a kernel that spans ", g.span_h(), "x", g.span_w());
  if (double(g.padded_h()) * double(g.padded_w()) * double(x.size(1) + 1) * double(g.batch + 1) > 1e15)
    fail(op, "padding must leave images that fit into memory, got ", list(padding));
  return g;
}

// A layer, and how its patches are read.
struct PatchedLayer {
  Geometry g;
  Patches patches;
};

inline Geometry check_layer(const char* op, const Tensor& x, const Tensor& weight, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t groups = 1,
                            std::optional<ScalarType> dtype = std::nullopt) {
  check_x(op, x);
  check_weight(op, x, weight, groups, dtype);
  const Ints kernel = x.dim() == 4 ? Ints{weight.size(2), weight.size(3)} : Ints{};
  return check_geometry(op, x, weight.size(0), kernel, stride, padding, dilation, groups, "weight");
}

// The sentences about values, which a device checks where it can read them.
[[noreturn]] inline void fail_overflow(const char* op, const char* what, bool wide) {
  fail(op, what, ", got an overflow of ", wide ? "float64" : "float32");
}

constexpr const char* finite_responses = "x and weight must give finite responses";
constexpr const char* finite_sums = "x and weight must give finite sums";

[[noreturn]] inline void fail_finite(const char* op, const char* argument) {
  fail(op, argument, " must be finite, got a NaN or an infinity");
}

// The neurons are those of one group, all of which are alike.
[[noreturn]] inline void fail_index(const char* op, const char* argument, int64_t neurons, int64_t index,
                                    int64_t group = 0, int64_t groups = 1) {
  fail(op, argument, " must name neurons ", group * neurons, " to ", (group + 1) * neurons - 1, ", or -1 for no neuron",
       groups == 1 ? "" : " in patches of group " + std::to_string(group), ", got ", index);
}

[[noreturn]] inline void fail_norms(const char* op, bool wide) {
  fail(op, "x must have patches whose norm and its inverse are finite, got one beyond ", wide ? "float64" : "float32");
}

}  // namespace hebbkern
