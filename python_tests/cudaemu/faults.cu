// Kernels with one fault each, to see that it is noticed: faults NAME plants it, faults runs them all without.
// Exit 0: right results with every seed. 1: "wrong". 3: an Error of the emulator, printed.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include "cudaemu_ptx.h"

namespace {

using cudaemu::launch;
int wrongs = 0;

void same(double got, double want) {
  if (!(got == want)) std::printf("wrong with seed %ld: %g, not %g\n", cudaemu::seed, got, want), ++wrongs;
}

__device__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_down_sync(0xffffffff, v, d);
  return v;
}

enum class Sum { right, no_barrier, past_static, divergent_barrier, partial_warp, no_atomic };

template <int THREADS>
__global__ void __launch_bounds__(THREADS) block_sum(const float* __restrict__ x, float* out, int n, Sum fault) {
  __shared__ float part[THREADS / 32];
  float v = 0;
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) v += __ldg(x + i);
  if (fault != Sum::partial_warp || threadIdx.x < THREADS - 5) v = warp_sum(v);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32 + (fault == Sum::past_static)] = v;
  if (fault == Sum::divergent_barrier && threadIdx.x < 32) __syncthreads();
  if (fault != Sum::no_barrier) __syncthreads();
  if (threadIdx.x >= 32) return;
  v = warp_sum(threadIdx.x < THREADS / 32 ? part[threadIdx.x] : 0.0f);
  if (threadIdx.x) return;
  if (fault == Sum::no_atomic)
    *out += v;
  else
    atomicAdd(out, v);
}
void sum(Sum fault) {
  const int n = 1000;
  std::vector<float> x(n, 1.0f), out(1);
  launch(block_sum<128>, 3, 128, 0, nullptr, x.data(), out.data(), n, fault);
  same(out[0], n);
}

enum class Product { right, no_second_barrier, past_matrix, past_dynamic };

__global__ void product(const float* a, const float* b, float* c, int m, int n, int k, Product fault) {
  CUDAEMU_DYNAMIC_SHARED(float, tiles);
  float *const left = tiles, *const right = tiles + 64 + (fault == Product::past_dynamic);
  const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 8 + y, column = blockIdx.x * 8 + x;
  float sum = 0;
  for (int k0 = 0; k0 < k; k0 += 8) {
    left[y * 8 + x] = row < m && k0 + x < k ? a[row * k + k0 + x] : 0.0f;
    right[y * 8 + x] = k0 + y < k && column < n ? b[(k0 + y) * n + column] : 0.0f;
    __syncthreads();
    for (int i = 0; i < 8; ++i) sum += left[y * 8 + i] * right[i * 8 + x];
    if (fault != Product::no_second_barrier) __syncthreads();
  }
  if (fault == Product::past_matrix || (row < m && column < n)) c[row * n + column] = sum;
}
void multiply(Product fault) {
  const int m = 13, n = 11, k = 30;
  std::vector<float> a(m * k), b(k * n), c(m * n);
  for (int i = 0; i < m * k; ++i) a[i] = float(i % 7);
  for (int i = 0; i < k * n; ++i) b[i] = float(i % 5);
  launch(product, dim3(2, 2), dim3(8, 8), 128 * sizeof(float), nullptr, a.data(), b.data(), c.data(), m, n, k, fault);
  for (int i = 0; i < m * n; ++i) {
    double want = 0;
    for (int j = 0; j < k; ++j) want += double(a[i / n * k + j]) * b[j * n + i % n];
    same(c[i], want);
  }
}

__global__ void count(const int* bins, int* counts, int n, bool atomic) {
  __shared__ int local[8];
  if (threadIdx.x < 8) local[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    if (atomic)
      atomicAdd(&local[bins[i]], 1);
    else
      local[bins[i]] += 1;
  __syncthreads();
  if (threadIdx.x < 8) counts[threadIdx.x] = local[threadIdx.x];
}
void histogram(bool atomic) {
  std::vector<int> bins(200), counts(8);
  for (int i = 0; i < 200; ++i) bins[i] = i % 8;
  launch(count, 1, 64, 0, nullptr, bins.data(), counts.data(), 200, atomic);
  for (int c : counts) same(c, 25);
}

enum class Pipe { right, no_wait, no_barrier_before_reuse };

__global__ void rotate(const float4* x, float4* y, int steps, Pipe fault) {
  __shared__ float4 buffer[2][64];
  cudaemu::cp_async<16>(&buffer[0][threadIdx.x], &x[threadIdx.x]);
  cudaemu::cp_async_commit();
  for (int s = 0; s < steps; ++s) {
    if (s + 1 < steps) cudaemu::cp_async<16>(&buffer[(s + 1) % 2][threadIdx.x], &x[(s + 1) * 64 + threadIdx.x]);
    cudaemu::cp_async_commit();
    if (fault != Pipe::no_wait) cudaemu::cp_async_wait<1>();
    __syncthreads();
    y[s * 64 + threadIdx.x] = buffer[s % 2][(threadIdx.x + 1) % 64];
    if (fault != Pipe::no_barrier_before_reuse) __syncthreads();
  }
}
void pipe(Pipe fault) {
  std::vector<float4> x(5 * 64), y(5 * 64);
  for (int i = 0; i < 320; ++i) x[i] = make_float4(float(i), 0, 0, 0);
  launch(rotate, 1, 64, 0, nullptr, x.data(), y.data(), 5, fault);
  for (int i = 0; i < 320; ++i) same(y[i].x, i / 64 * 64 + (i + 1) % 64);
}

__global__ void neighbour(int* y, bool warp_barrier) {
  __shared__ int s[32];
  s[threadIdx.x] = threadIdx.x;
  if (warp_barrier) __syncwarp();
  y[threadIdx.x] = s[(threadIdx.x + 31) % 32];
}
void neighbours(bool warp_barrier) {
  std::vector<int> y(32);
  launch(neighbour, 1, 32, 0, nullptr, y.data(), warp_barrier);
  for (int i = 0; i < 32; ++i) same(y[i], (i + 31) % 32);
}

template <int N>  // each block fills only a part of its shared memory if it is not the first
__global__ void leftovers(int* y, bool fill) {
  __shared__ int s[N];
  if (fill || blockIdx.x == 0) s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[blockIdx.x * N + threadIdx.x] = s[N - 1 - threadIdx.x];
}
void left_over(bool fill) {
  std::vector<int> y(4 * 48);
  launch(leftovers<48>, 4, 48, 0, nullptr, y.data(), fill);
  for (int i = 0; i < 4 * 48; ++i) same(y[i], 47 - i % 48);
}

__global__ void sum_of_pairs(const float* x, float* y, int shift) {  // 4 * shift bytes off where a float2 may be
  const float2 v = reinterpret_cast<const float2*>(x + shift)[threadIdx.x];
  y[threadIdx.x] = v.x + v.y;
}
void pairs(int shift) {
  alignas(8) float x[66];
  std::vector<float> y(32);
  for (int i = 0; i < 66; ++i) x[i] = float(i);
  launch(sum_of_pairs, 1, 32, 0, nullptr, &x[0], y.data(), shift);
  for (int i = 0; i < 32; ++i) same(y[i], 4 * i + 1 + 2 * shift);
}

// Misuse of calls. Each kernel is right where `fault` is false.
__global__ void half_mask(bool fault) {
  if (threadIdx.x < 16)
    __shfl_sync(fault ? 0xffffffff : 0xffff, 1, 0);
  else
    __syncwarp(0xffff0000);
  __syncthreads();
}
__global__ void absent_lane(bool fault) {
  if (threadIdx.x < 20) __shfl_down_sync(0xfffff, 1.0f, fault ? 16 : 0);
}
__global__ void short_warp(bool fault) { __shfl_xor_sync(0xffffffff, 1.0f, fault ? 16 : 8); }
__global__ void two_branches(bool fault) {
  const unsigned odd = 0xaaaaaaaa;
  if (threadIdx.x % 2)
    __any_sync(fault ? ~0u : odd, 1);
  else
    __any_sync(fault ? ~0u : ~odd, 0);
}
__global__ void foreign_mask(bool fault) { __syncwarp(fault ? 0xffff : 0xffffffff); }
__global__ void circle(bool fault) {  // each of three lanes waits for the next
  const unsigned i = threadIdx.x;
  if (i < 3) __syncwarp(fault ? 1u << i | 1u << (i + 1) % 3 : 7u);
}
__global__ void odd_row(bool fault) {
  alignas(16) __shared__ uint16_t s[32 * 8 + 4];
  uint32_t r[4];
  cudaemu::ldmatrix_x4(r, &s[threadIdx.x * 8 + (fault ? 4 : 0)]);
}
__global__ void odd_copy(bool fault) {
  alignas(16) __shared__ float s[8];
  cudaemu::cp_async_zfill<16>(&s[fault ? 1 : 0], nullptr, 0);
}
__global__ void half_product(bool fault) {
  const uint32_t a[4] = {}, b[2] = {};
  float d[4] = {};
  if (!fault || threadIdx.x < 16) cudaemu::mma_bf16(d, a, b);
}
__global__ void trapped(bool fault) {
  __syncthreads();
  if (fault && threadIdx.x == 7) __trap();
  __syncthreads();
}
__attribute__((noinline)) void fill_stack() {
  volatile char large[65700];
  for (size_t i = sizeof large; i-- > 0;) large[i] = 1;
}
__global__ void deep(bool fault) {
  if (fault && threadIdx.x == 1) fill_stack();  // into the stack below, of the first thread, which is done
}

using Case = std::function<void(bool)>;
Case misuse(void (*kernel)(bool), int threads) {
  return [=](bool fault) { launch(kernel, 2, threads, 0, nullptr, fault); };
}
const std::map<std::string, Case> cases{
    {"no_barrier", [](bool f) { sum(f ? Sum::no_barrier : Sum::right); }},
    {"past_static", [](bool f) { sum(f ? Sum::past_static : Sum::right); }},
    {"divergent_barrier", [](bool f) { sum(f ? Sum::divergent_barrier : Sum::right); }},
    {"partial_warp", [](bool f) { sum(f ? Sum::partial_warp : Sum::right); }},
    {"no_atomic_global", [](bool f) { sum(f ? Sum::no_atomic : Sum::right); }},
    {"no_second_barrier", [](bool f) { multiply(f ? Product::no_second_barrier : Product::right); }},
    {"past_matrix", [](bool f) { multiply(f ? Product::past_matrix : Product::right); }},
    {"past_dynamic", [](bool f) { multiply(f ? Product::past_dynamic : Product::right); }},
    {"no_atomic_shared", [](bool f) { histogram(!f); }},
    {"no_wait", [](bool f) { pipe(f ? Pipe::no_wait : Pipe::right); }},
    {"no_barrier_before_reuse", [](bool f) { pipe(f ? Pipe::no_barrier_before_reuse : Pipe::right); }},
    {"no_warp_barrier", [](bool f) { neighbours(!f); }},
    {"left_over", [](bool f) { left_over(!f); }},
    {"misaligned", [](bool f) { pairs(f); }},
    {"half_mask", misuse(half_mask, 32)},
    {"absent_lane", misuse(absent_lane, 32)},
    {"short_warp", misuse(short_warp, 48)},
    {"two_branches", misuse(two_branches, 32)},
    {"foreign_mask", misuse(foreign_mask, 32)},
    {"circle", misuse(circle, 32)},
    {"odd_row", misuse(odd_row, 32)},
    {"odd_copy", misuse(odd_copy, 1)},
    {"half_product", misuse(half_product, 32)},
    {"trapped", misuse(trapped, 64)},
    {"deep", misuse(deep, 2)},
    {"too_many", [](bool f) { launch(short_warp, 1, f ? 1025 : 64, 0, nullptr, false); }},
};

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "none";
  const auto right = [] {
    for (cudaemu::seed = 0; cudaemu::seed < 3; ++cudaemu::seed)
      for (const auto& [name, test] : cases) test(false);
  };
  try {
    if (name == "none") right();
    for (cudaemu::seed = 0; cudaemu::seed < 4; ++cudaemu::seed)
      if (name != "none") cases.at(name)(true);
    return wrongs != 0;
  } catch (const cudaemu::Error& e) {
    std::printf("Error: %s\n", e.what());
    right();  // other launches are none the worse for it
    return wrongs ? 4 : 3;
  }
}
