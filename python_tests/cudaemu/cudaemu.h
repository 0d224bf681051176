// Runs CUDA C++ kernels on the CPU, to test them where no GPU and no CUDA toolkit is. A .cu file that includes this
// header builds with g++ -std=c++20 -x c++ -Wno-unknown-pragmas (x86-64). Every CUDA thread of a block is a fiber;
// blocks run one after another. Threads and blocks take turns in a random, seeded order, so that a result that depends
// on it changes with it.
//
// What a kernel must look like: it lives in an anonymous namespace, with its templates (AddressSanitizer gives no red
// zones to the static variables of templates with external linkage); it is launched by cudaemu::launch; dynamic shared
// memory is CUDAEMU_DYNAMIC_SHARED(float, name) and static __shared__ stays as it is; inline PTX is behind the wrappers
// of cudaemu_ptx.h. Cooperative groups, textures, wgmma, TMA, mbarrier, cuda_fp16.h are not there.
//
// What is noticed:
//   always                 divergent barriers, partial or divergent warp calls, reading a lane that takes no part,
//                          deadlock: cudaemu::Error from launch(). Shared memory that was not written is 0xff, NaN or
//                          -1 (but for static __shared__ under AddressSanitizer, which keeps its values). A missing
//                          barrier or cp.async wait: a wrong result, with most seeds.
//   -fsanitize=address     accesses out of bounds, of shared memory too; ,undefined: misaligned vectors.
//   -fsanitize=thread      data races, in any order: a missing __syncthreads or __syncwarp, or atomic across blocks.
// What is not: a thread runs undisturbed from one barrier or warp call to the next, so a spin-wait on another one
// hangs. Divergence is told by the line of the call: two calls on one line, or one helper's call reached from both
// sides of a branch, pass as the same. Arithmetic is the host's: no flushing of subnormals, no GPU rounding of __expf.
//
// Environment: CUDAEMU_SEED (default 1; 0 runs threads in order), CUDAEMU_STACK (bytes a thread, default 65536).
#pragma once
#include <math.h>

#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "cudaemu_block.h"

#define __CUDAEMU__ 1
#define CUDAEMU_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(cudaemu::block.dynamic)

namespace CUDAEMU_OWN cudaemu {

inline void run_grid(dim3 grid, dim3 dims, size_t smem, void (*call)(const void*), const void* body) {
  static std::mutex one_launch;
  const std::lock_guard lock(one_launch);
  const u64 threads = u64(dims.x) * dims.y * dims.z, blocks = u64(grid.x) * grid.y * grid.z;
  if (!threads || threads > most_threads || dims.z > 64 || !blocks || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535 || smem > 227 * 1024)
    throw Error("invalid launch configuration");
  gridDim = grid, blockDim = dims;
  block.count = unsigned(threads), block.call = call, block.body = body;
  static std::vector<u64> turn;
  turn.resize(blocks);
  std::iota(turn.begin(), turn.end(), u64(0));
  if (seed) Random{u64(seed)}.shuffle(turn.data(), blocks);
#ifdef __SANITIZE_THREAD__
  // Stacks and a thread of their own give each block memory that no other has touched: two blocks, which nothing
  // orders, do not race for it.
  std::exception_ptr error;
  for (const u64 index : turn) {
    std::thread([&] {
      const Quiet quiet;
      try {
        run_block(index, smem, Stacks(threads));
      } catch (...) {
        error = std::current_exception();
      }
    }).join();
    if (error) break;
  }
  __tsan_acquire(&block.end_sync);
  if (error) std::rethrow_exception(error);
#else
  static const Stacks stacks(most_threads);
  for (const u64 index : turn) run_block(index, smem, stacks);
#endif
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 dims, size_t smem, cudaStream_t, A&&... args) {
  const auto body = [&] { kernel(static_cast<P>(args)...); };
  run_grid(grid, dims, smem, [](const void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
}

}  // namespace CUDAEMU_OWN cudaemu

#include "cudaemu_device.h"
