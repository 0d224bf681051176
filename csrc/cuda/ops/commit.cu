// commit: writes new weights if every block that computed them reports finite ones.
#include "cuda/device/rows.cuh"
#include "cuda/device/status.cuh"

namespace hebbkern {
namespace {

template <class S, bool PACKED>
__global__ void __launch_bounds__(block_threads)
    commit_kernel(Matrix<S> weight, RowSplit split, const S* moved, const int32_t* sound, int64_t blocks, Mask frozen,
                  int* skipped) {
  bool good = true;
  for (int64_t part = threadIdx.x; part < blocks; part += block_threads) good = good && sound[part] == 1;
  if (!__syncthreads_and(good)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *skipped += 1;
    return;
  }
  for (int group = int(blockIdx.x); group < split.count; group += int(gridDim.x))
    split.each_row(group, weight.rows, [&](int64_t j, bool there, int member) {
      if (!there || frozen[j]) return;
      for (int n = member * pack<S>; n < weight.inputs; n += split.team * pack<S>)
        store<PACKED>(weight, j, n, load<PACKED, pack<S>>(moved + j * weight.inputs, n, weight.inputs));
    });
}

}  // namespace

template <class S>
void commit(const char* op, const Device& device, const Tensor& weight, const S* moved, const int32_t* sound,
            int64_t blocks, const Mask& frozen) {
  const Matrix<S> matrix(op, weight);
  const RowSplit split(matrix);
  if (matrix.in_packs() && uintptr_t(moved) % (pack<S> * sizeof(S)) == 0)
    launch<commit_kernel<S, true>>("apply.commit", split.grid(device), block_threads, 0, device, matrix, split, moved,
                                   sound, blocks, frozen, skipped(device));
  else
    launch<commit_kernel<S, false>>("apply.commit", split.grid(device), block_threads, 0, device, matrix, split, moved,
                                    sound, blocks, frozen, skipped(device));
  raise_if_step_skipped(op, device);
}

#define COMMIT(S) \
  template void commit<S>(const char*, const Device&, const Tensor&, const S*, const int32_t*, int64_t, const Mask&);
COMMIT(float)
COMMIT(double)
COMMIT(BFloat16)
COMMIT(Half)
#undef COMMIT

}  // namespace hebbkern
