// Internal operators of dense_update and dense_step_ that hebbkern/backends/dense.py calls: moments, the commit of a
// step, checks.
#include "cuda/device/status.cuh"
#include "cuda/ops/apply.cuh"
#include "cuda/ops/dense_update.cuh"

namespace hebbkern {

// Whether values of tensors on the kernels' device can be looked at.
static bool readable_op(Tensor) { return values_known(); }

static void raise_if_skipped_op(Tensor weight) { raise_if_skipped(Device(weight)); }

// offset, scale and total of Moments; nothing [0] where they are the same everywhere.
static std::tuple<Tensor, Tensor, Tensor> moments_op(Tensor x, Ints stride, Ints padding, Ints dilation, Tensor weight,
                                                     std::string op, std::string patches) {
  const Device device(x);
  const Geometry g = check_layer(op.c_str(), x, weight, stride, padding, dilation);
  std::tuple<Tensor, Tensor, Tensor> result;
  with_dtype(x.scalar_type(), [&](auto stored, auto tag) {
    using S = decltype(stored);
    using T = decltype(tag);
    const PatchView<S> view(op.c_str(), x, g), rows(const_pointer<S>(weight), g.neurons, g.inputs());
    const Moments<T> known = moments<S, S, T>(op.c_str(), device, x, view, check_patches(op.c_str(), patches), &rows);
    size_t next = 0;
    const auto take = [&](const T* numbers) {
      return numbers ? known.memory[next++] : empty_like(x, {0}, result_dtype(x.scalar_type()));
    };
    const Tensor offset = take(known.offset), scale = take(known.scale);
    result = {offset, scale, take(known.total)};
  });
  return result;
}

static void commit_op(std::string op, Tensor weight, Tensor moved, Tensor sound, OptionalTensor frozen) {
  const Device device(weight);
  with_dtype(weight.scalar_type(), [&](auto stored, auto) {
    using S = decltype(stored);
    commit<S>(op.c_str(), device, weight, const_pointer<S>(moved), const_pointer<int32_t>(sound), sound.numel(),
              Mask(frozen));
  });
}

STABLE_TORCH_LIBRARY_IMPL(hebbkern, HEBBKERN_KEY, m) {
  m.impl("_readable", TORCH_BOX(&readable_op));
  m.impl("_raise_if_skipped", TORCH_BOX(&raise_if_skipped_op));
  m.impl("_moments", TORCH_BOX(&moments_op));
  m.impl("_commit", TORCH_BOX(&commit_op));
}

}  // namespace hebbkern
