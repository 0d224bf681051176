// kwinners: all but the k highest along one dimension become zero.
#include "common/kwinners.h"

#include "cpu/simd/kernels.h"

namespace hebbkern {

// A slice along `dim` starts at outer and inner indices; its entries lie `along` apart.
template <class S, class T>
static bool kwinners_typed(const Tensor& y, int64_t k, int64_t dim, S* out) {
  const auto& kernel = kernels<T>();
  const int64_t n = y.size(dim), along = y.stride(dim);
  int64_t inner = 1;
  std::vector<int64_t> sizes, strides;  // of every other dimension
  for (int64_t d = 0; d < y.dim(); ++d) {
    if (d > dim) inner *= y.size(d);
    if (d != dim) {
      sizes.push_back(y.size(d));
      strides.push_back(y.stride(d));
    }
  }
  const S* data = static_cast<const S*>(y.const_data_ptr());
  const int64_t slices = n > 0 ? y.numel() / n : 0;
  const int64_t block = std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, n));  // worth a thread's wake-up
  std::atomic<bool> flaw{false};
  parallel((slices + block - 1) / block, [&](int64_t part) {
    Scratch<T> values(n), kept(n);
    Scratch<Index<T>> keys(n);
    for (int64_t slice = part * block; slice < std::min(slices, (part + 1) * block); ++slice) {
      const S* from = data;
      int64_t rest = slice;
      for (int64_t d = int64_t(sizes.size()) - 1; d >= 0; --d) {
        from += rest % sizes[d] * strides[d];
        rest /= sizes[d];
      }
      S* to = out + slice / inner * inner * n + slice % inner;
      const T* row = values.get();
      if constexpr (std::is_same_v<S, T>)
        if (along == 1) row = from;
      if (row == values.get())
        for (int64_t i = 0; i < n; ++i) values[i] = T(from[i * along]);
      if (!finite(row, n)) {
        flaw = true;
        continue;
      }
      if constexpr (std::is_same_v<S, T>)
        if (inner == 1) {
          kernel.kwinners(row, n, k, keys.get(), to);
          continue;
        }
      kernel.kwinners(row, n, k, keys.get(), kept.get());
      for (int64_t i = 0; i < n; ++i) to[i * inner] = S(kept[i]);
    }
  });
  return !flaw;
}

static Tensor kwinners(Tensor y, int64_t k, int64_t dim) {
  const char* op = "kwinners";
  dim = check_kwinners(op, y, k, dim);
  Tensor out = empty(Ints(y.sizes().begin(), y.sizes().end()), y.scalar_type());
  bool sound = true;
  with_dtype(y.scalar_type(), [&](auto stored, auto tag) {
    using S = decltype(stored);
    sound = kwinners_typed<S, decltype(tag)>(y, k, dim, static_cast<S*>(out.mutable_data_ptr()));
  });
  if (!sound) fail_finite(op, "y");
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, CPU, m) { m.impl("kwinners.cpu", TORCH_BOX(&kwinners)); }

}  // namespace hebbkern
