// What the emulator computes, against plain loops: functions NAME. Exit 0, or 1 after the lines that do not hold.
#include <cstdio>
#include <functional>
#include <map>
#include <set>

#include "cudaemu_cub.h"
#include "cudaemu_ptx.h"

namespace {

using cudaemu::launch;
int wrongs = 0;

#define CHECK(...)                                                                                               \
  do {                                                                                                           \
    if (!(__VA_ARGS__)) std::printf("line %d, seed %ld: %s\n", __LINE__, cudaemu::seed, #__VA_ARGS__), ++wrongs; \
  } while (false)

// A product by each of the layouts, of small numbers that `make` turns into their bits.
template <int K, class Mma>
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* c, Mma mma) {  // a [16][K], b [8][K]
  constexpr int words = 8;  // a row's, of a tf32 or a pair of 16 bits each
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = a[(g + i % 2 * 8) * words + t + i / 2 * 4];
  for (int i = 0; i < 2; ++i) right[i] = b[g * words + t + i * 4];
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = float(i);
  for (int repeat = 0; repeat < 3; ++repeat) mma(d, left, right);
  for (int i = 0; i < 4; ++i) c[threadIdx.x / 32 * 128 + (g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}
template <int K, class Mma>
void product(Mma mma, uint32_t (*make)(float)) {
  std::vector<uint32_t> a(16 * 8), b(8 * 8);
  std::vector<float> c(2 * 16 * 8);
  const auto left = [](int row, int k) { return float((row * 5 + k * 3) % 17 - 8); };
  const auto right = [](int column, int k) { return float((column * 7 + k) % 13 - 6) / 4; };
  const auto word = [&](auto value, int row, int i) {
    return K == 8 ? make(value(row, i)) : make(value(row, 2 * i)) | make(value(row, 2 * i + 1)) << 16;
  };
  for (int i = 0; i < 16 * 8; ++i) a[i] = word(left, i / 8, i % 8);
  for (int i = 0; i < 8 * 8; ++i) b[i] = word(right, i / 8, i % 8);
  launch(multiply<K, Mma>, 1, 64, 0, nullptr, a.data(), b.data(), c.data(), mma);
  for (int i = 0; i < 2 * 16 * 8; ++i) {
    const int row = i / 8 % 16, column = i % 8;
    float want = float(row / 8 * 2 + column % 2);
    for (int k = 0; k < K; ++k) want += 3 * left(row, k) * right(column, k);
    CHECK(c[i] == want);
  }
}
uint32_t half_bits(float x) {  // of what a half holds exactly and is not subnormal
  const auto v = std::bit_cast<uint32_t>(x);
  return x == 0 ? 0 : (v >> 31 << 15) | ((v >> 23 & 255) - 112) << 10 | (v >> 13 & 1023);
}
void mma() {
  const auto line = [](auto f) { return [f](float (&d)[4], auto& a, auto& b) { f(d, a, b); }; };
  product<8>(line([](auto& d, auto& a, auto& b) { cudaemu::mma_tf32(d, a, b); }), cudaemu::to_tf32);
  product<16>(line([](auto& d, auto& a, auto& b) { cudaemu::mma_bf16(d, a, b); }),
              [](float x) { return std::bit_cast<uint32_t>(x) >> 16; });
  product<16>(line([](auto& d, auto& a, auto& b) { cudaemu::mma_f16(d, a, b); }), half_bits);
}
void halves() {
  for (uint32_t bits = 0; bits < 0x8000; ++bits) {
    const int exponent = bits >> 10, mantissa = bits & 1023;
    const float want = exponent ? std::ldexp(1 + mantissa / 1024.0f, exponent - 15) : std::ldexp(float(mantissa), -24);
    const float got = cudaemu::f16(bits), negative = cudaemu::f16(bits | 0x8000);
    if (exponent == 31) {
      CHECK(mantissa ? std::isnan(got) : got == INFINITY && negative == -INFINITY);
    } else {
      CHECK(got == want && negative == -want && std::signbit(negative));
    }
  }
  CHECK(cudaemu::to_tf32(1.0f + 0x1p-11f) == std::bit_cast<uint32_t>(1.0f + 0x1p-10f));  // a tie, away from zero
  CHECK(cudaemu::to_tf32(-1.0f - 0x1p-12f) == std::bit_cast<uint32_t>(-1.0f));
  CHECK(std::isinf(std::bit_cast<float>(cudaemu::to_tf32(INFINITY))));
}

__global__ void load(uint16_t* out) {  // out [32][12][2]: the numbers each lane gets
  alignas(16) __shared__ uint16_t s[32][8];
  for (int i = 0; i < 8; ++i) s[threadIdx.x][i] = uint16_t(threadIdx.x * 8 + i);
  __syncwarp();
  uint32_t r[4], two[2], all[12];
  const auto keep = [&](int at, auto& values) { std::copy(std::begin(values), std::end(values), all + at); };
  cudaemu::ldmatrix_x4(r, s[threadIdx.x]), keep(0, r);
  cudaemu::ldmatrix_x4_trans(r, s[threadIdx.x]), keep(4, r);
  cudaemu::ldmatrix_x2(two, threadIdx.x < 16 ? s[threadIdx.x] : nullptr), keep(8, two);
  cudaemu::ldmatrix_x2_trans(two, threadIdx.x < 16 ? s[threadIdx.x] : nullptr), keep(10, two);
  std::memcpy(out + threadIdx.x * 24, all, sizeof all);
}
void ldmatrix() {
  std::vector<uint16_t> out(32 * 24);
  launch(load, 1, 32, 0, nullptr, out.data());
  for (int i = 0; i < 32 * 24; ++i) {
    const int lane = i / 24, word = i % 24 / 2, matrix = word % 4 % (word < 8 ? 4 : 2), pair = 2 * (lane % 4) + i % 2;
    const bool transposed = word < 8 ? word >= 4 : word >= 10;
    const int row = transposed ? pair : lane / 4, column = transposed ? lane / 4 : pair;
    CHECK(out[i] == matrix * 64 + row * 8 + column);
  }
}

__global__ void copy(const unsigned char* x, unsigned char* y,
                     int limit) {  // each thread 16 bytes, to limit and then 0
  alignas(16) __shared__ unsigned char s[32][16];
  const int bytes = min(max(limit - int(threadIdx.x) * 16, 0), 16);
  cudaemu::cp_async_zfill<16>(s[threadIdx.x], bytes ? x + threadIdx.x * 16 : nullptr, bytes);
  cudaemu::cp_async_commit();
  cudaemu::cp_async_commit();
  CHECK(s[threadIdx.x][0] == 0xff);
  cudaemu::cp_async_wait<1>();
  for (int i = 0; i < 16; ++i) y[threadIdx.x * 16 + i] = s[threadIdx.x][i];
}
void zfill() {
  for (int limit : {0, 1, 100, 112, 512}) {
    std::vector<unsigned char> padded(limit + 16), y(512);
    unsigned char* x = padded.data();
    while (std::bit_cast<uintptr_t>(x) % 16) ++x;
    for (int i = 0; i < limit; ++i) x[i] = static_cast<unsigned char>(i * 7 + 1);
    launch(copy, 1, 32, 0, nullptr, x, y.data(), limit);
    for (int i = 0; i < 512; ++i) CHECK(y[i] == (i < limit ? (i * 7 + 1) % 256 : 0));
  }
}

void cub_sort_and_scan() {
  for (int n : {0, 1, 1000})
    for (auto [begin, end] : {std::pair(0, 32), std::pair(3, 9), std::pair(0, 5), std::pair(4, 4)}) {
      std::vector<uint32_t> keys(n), sorted(n);
      std::vector<int32_t> values(n), moved(n), before(n);
      for (int i = 0; i < n; ++i) keys[i] = uint32_t(i) * 2654435761u >> 7, values[i] = i;
      size_t bytes = 0;
      const auto sort = [&, begin = begin, end = end](void* temp) {
        return cub::DeviceRadixSort::SortPairs(temp, bytes, keys.data(), sorted.data(), values.data(), moved.data(), n,
                                               begin, end, cudaStream_t());
      };
      CHECK(sort(nullptr) == cudaSuccess && bytes > 0);
      std::vector<unsigned char> temp(bytes);
      CHECK(sort(temp.data()) == cudaSuccess);
      const uint32_t mask = uint32_t((1ull << end) - 1) & ~uint32_t((1ull << begin) - 1);
      for (int i = 0; i < n; ++i) {
        CHECK(sorted[i] == keys[moved[i]]);
        if (i)
          CHECK((sorted[i - 1] & mask) < (sorted[i] & mask) ||
                ((sorted[i - 1] & mask) == (sorted[i] & mask) && moved[i - 1] < moved[i]));
      }
      CHECK(std::set<int>(moved.begin(), moved.end()).size() == size_t(n));
      CHECK(n == 0 || temp[0] == 0xff);
      bytes = 1;
      CHECK(sort(temp.data()) == cudaErrorInvalidValue);

      bytes = 0;
      CHECK(cub::DeviceScan::ExclusiveSum(nullptr, bytes, values.data(), before.data(), n) == cudaSuccess && bytes > 0);
      temp.resize(bytes);
      CHECK(cub::DeviceScan::ExclusiveSum(temp.data(), bytes, values.data(), before.data(), n) == cudaSuccess);
      for (int i = 0; i < n; ++i) CHECK(before[i] == i * (i - 1) / 2);
    }
}

template <class T>
__global__ void exchange(bool* right) {
  const int lane = threadIdx.x % 32, half = lane / 16 * 16;
  const auto value = [](int lane) { return T(lane) * T(1000003) / T(2); };
  const T mine = value(lane);
  bool ok = __shfl_sync(~0u, mine, 5) == value(5) && __shfl_sync(~0u, mine, 33) == value(1);
  ok &= __shfl_xor_sync(~0u, mine, 3) == value(lane ^ 3);
  ok &= __shfl_down_sync(~0u, mine, 2) == value(lane + 2 < 32 ? lane + 2 : lane);
  ok &= __shfl_up_sync(~0u, mine, 2, 16) == value(lane - 2 >= half ? lane - 2 : lane);
  right[threadIdx.x] = ok;
}
__global__ void vote(bool* right) {
  const int i = threadIdx.x, lane = i % 32;
  bool ok = __ballot_sync(~0u, lane % 3 == 0) == 0x49249249 && __match_any_sync(~0u, lane / 8) == 255u << lane / 8 * 8;
  ok &=
      __any_sync(~0u, lane == 7) && !__any_sync(~0u, lane > 31) && __all_sync(~0u, lane < 32) && !__all_sync(~0u, lane);
  ok &=
      __reduce_add_sync(~0u, lane) == 496 && __reduce_max_sync(~0u, -lane) == 0 && __reduce_min_sync(~0u, -lane) == -31;
  ok &= __reduce_or_sync(~0u, 1u << lane) == ~0u && __reduce_xor_sync(~0u, unsigned(lane)) == 0;
  ok &= __reduce_and_sync(~0u, lane | 4u) == 4 && __activemask() == ~0u;
  ok &= __syncthreads_count(i % 2) == 48 && __syncthreads_or(i == 95) && !__syncthreads_and(i);
  ok &= !__syncthreads_or(0) && __syncthreads_and(1);
  right[i] = ok;
}
void warps() {
  for (auto kernel : {exchange<int>, exchange<unsigned>, exchange<float>, exchange<double>, exchange<int64_t>,
                      exchange<uint64_t>, exchange<long long>, vote}) {
    bool right[96] = {};
    launch(kernel, 1, 96, 0, nullptr, right);
    CHECK(std::all_of(right, right + 96, [](bool ok) { return ok; }));
  }
}

__global__ void atomics(int* i, unsigned long long* u, float* f, int* log) {
  atomicAdd(&i[0], 2), atomicSub(&i[1], 2), atomicMax(&i[2], int(threadIdx.x)), atomicMin(&i[3], -int(threadIdx.x));
  atomicOr(&i[4], 1 << threadIdx.x % 31), atomicXor(&i[5], 1), atomicAnd(&i[6], 6), atomicCAS(&i[7], 0, 9);
  atomicAdd(u, 1ull << 40), atomicAdd(f, 0.5f);
  if (log) log[atomicAdd(&i[8], 1)] = threadIdx.x + blockIdx.x * 64;
}
void order() {
  std::map<long, std::vector<int>> logs;
  for (long seed : {0, 1, 2, 1, 0}) {
    cudaemu::seed = seed;
    int i[9] = {0, 0, 0, 0, 0, 0, 7, 0, 0};
    unsigned long long u = 0;
    float f = 0;
    std::vector<int> log(192);
    launch(atomics, 3, 64, 0, nullptr, i, &u, &f, log.data());
    CHECK(i[0] == 384 && i[1] == -384 && i[2] == 63 && i[3] == -63 && i[4] == 0x7fffffff && i[5] == 0 && i[6] == 6);
    CHECK(i[7] == 9 && u == 192ull << 40 && f == 96);
    CHECK(logs.insert({seed, log}).first->second == log);  // a seed's order is the same again
    CHECK(std::set<int>(log.begin(), log.end()).size() == 192);
    CHECK(std::is_sorted(log.begin(), log.end()) == (seed == 0));
  }
  CHECK(logs[1] != logs[2]);
}

__global__ void ones(int* count) {
  __syncthreads();
  atomicAdd(count, 1);
}
void threads() {  // of the system, that launch at once
  int counts[4] = {};
  std::vector<std::thread> all;
  for (int& count : counts)
    all.emplace_back([&count] {
      for (int i = 0; i < 5; ++i) launch(ones, 2, 33, 0, nullptr, &count);
    });
  for (std::thread& thread : all) thread.join();
  for (int count : counts) CHECK(count == 330);
}

__global__ void place(uint3* at, float* poison) {
  CUDAEMU_DYNAMIC_SHARED(float, s);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  at[block * 24 + thread] = {threadIdx.x + 10 * blockIdx.x, threadIdx.y + 10 * blockIdx.y,
                             threadIdx.z + 10 * blockIdx.z};
  if (thread == 0) poison[block] = s[99];
}
void geometry() {
  std::vector<uint3> at(6 * 24);
  std::vector<float> poison(6);
  launch(place, dim3(1, 2, 3), dim3(4, 3, 2), 400, nullptr, at.data(), poison.data());
  for (unsigned i = 0; i < 6 * 24; ++i) {
    const unsigned t = i % 24, b = i / 24;
    CHECK(at[i].x == t % 4 && at[i].y == t / 4 % 3 + 10 * (b % 2) && at[i].z == t / 12 + 10 * (b / 2));
    CHECK(std::isnan(poison[b]));
  }
  static_assert(sizeof(float3) == 12 && alignof(float4) == 16 && alignof(uchar4) == 4 && sizeof(short4) == 8);
  static_assert(alignof(longlong2) == 16 && sizeof(double4) == 32 && alignof(float2) == 8 && alignof(int3) == 4);
}

void arithmetic() {
  CHECK(__umulhi(0xffffffffu, 0xfffffffeu) == 0xfffffffdu && __mulhi(-1, 5) == -1);
  CHECK(__umul64hi(~0ull, ~0ull) == ~0ull - 1);
  CHECK(__brev(1) == 0x80000000 && __brev(0x80000001) == 0x80000001 && __brevll(2) == 1ull << 62);
  CHECK(__byte_perm(0x33221100, 0x77665544, 0x7410) == 0x77441100 && __byte_perm(0x80, 0, 0x1888) == 0x00ffffff);
  CHECK(__funnelshift_l(0x80000000, 1, 1) == 3 && __funnelshift_r(2, 1, 1) == 0x80000001 &&
        __funnelshift_l(1, 5, 32) == 5);
  CHECK(__clz(1) == 31 && __clz(0) == 32 && __clzll(1) == 63 && __ffs(8) == 4 && __ffs(0) == 0 &&
        __ffsll(1ll << 40) == 41);
  CHECK(__popc(0xf0f0) == 8 && __popcll(~0ull) == 64);
  CHECK(__longlong_as_double(__double_as_longlong(-2.5)) == -2.5 && __double_as_longlong(1.0) == 0x3ff0000000000000);
  CHECK(__int_as_float(__float_as_int(-2.5f)) == -2.5f && __float2int_rn(2.5f) == 2 && __float2int_rd(-0.5f) == -1);
  CHECK(__saturatef(NAN) == 0 && __saturatef(2.0f) == 1 && __saturatef(0.25f) == 0.25f && rsqrtf(4.0f) == 0.5f);
  const float tiny = 1 + 0x1p-12f;
  CHECK(__fmaf_rn(tiny, tiny, -1.0f) != __fadd_rn(__fmul_rn(tiny, tiny), -1.0f));
  CHECK(__fdiv_rn(1, 3) == 1.0f / 3 && __fsqrt_rn(9) == 3 && __ddiv_rn(1, 3) == 1.0 / 3 && __dsqrt_rn(9) == 3);
  CHECK(__fsub_rn(1, 3) == -2 && __dadd_rn(1, 2) == 3 && __dmul_rn(2, 3) == 6 && __fma_rn(2, 3, 1) == 7);
}

const std::map<std::string, void (*)()> cases{
    {"mma", mma},     {"halves", halves}, {"ldmatrix", ldmatrix}, {"zfill", zfill},       {"cub", cub_sort_and_scan},
    {"warps", warps}, {"order", order},   {"threads", threads},   {"geometry", geometry}, {"arithmetic", arithmetic},
};

}  // namespace

int main(int argc, char** argv) {
  for (const auto& [name, test] : cases)
    for (cudaemu::seed = 0; cudaemu::seed < 3; ++cudaemu::seed)
      if (argc < 2 || name == argv[1]) {
        const long seed = cudaemu::seed;
        test();
        cudaemu::seed = seed;
      }
  return wrongs != 0;
}
