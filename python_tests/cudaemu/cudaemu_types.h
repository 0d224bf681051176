// CUDA's words and types for a plain host compiler: qualifiers, vectors, dim3, the runtime's few names. See cudaemu.h.
#pragma once
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // nothing: the standard library writes __attribute__((__noinline__))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#if defined __SANITIZE_ADDRESS__
#define __shared__ static  // has red zones, which a thread_local has not
#else
#define __shared__ \
  static thread_local  // nothing else of the library should be one: each block begins by poisoning them
#endif
// Of this library alone, whatever else of the process was built with these headers.
#define CUDAEMU_OWN __attribute__((visibility("hidden")))

#define CUDAEMU_VECTORS(T, name, align2, align4)                        \
  struct name##1 { T x; };                                              \
  struct alignas(align2) name##2 { T x, y; };                           \
  struct name##3 { T x, y, z; };                                        \
  struct alignas(align4) name##4 { T x, y, z, w; };                     \
  constexpr name##1 make_##name##1(T x) { return {x}; }                 \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDAEMU_VECTORS(signed char, char, 2, 4)
CUDAEMU_VECTORS(unsigned char, uchar, 2, 4)
CUDAEMU_VECTORS(short, short, 4, 8)
CUDAEMU_VECTORS(unsigned short, ushort, 4, 8)
CUDAEMU_VECTORS(int, int, 8, 16)
CUDAEMU_VECTORS(unsigned, uint, 8, 16)
CUDAEMU_VECTORS(long long, longlong, 16, 16)
CUDAEMU_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDAEMU_VECTORS(float, float, 8, 16)
CUDAEMU_VECTORS(double, double, 16, 16)
#undef CUDAEMU_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
