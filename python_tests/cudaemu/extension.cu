// A library for a Python process: each block passes its numbers on to their neighbours.
#include <cstdio>

#include "cudaemu.h"

namespace {

enum Fault { none, no_barrier, past_the_end, divergent };

__global__ void turn(const float* x, float* y, int fault) {  // y[i] is its right neighbour's x, in blocks of 64
  __shared__ float s[64];
  s[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  if (fault != no_barrier) __syncthreads();
  if (fault == divergent && threadIdx.x) __syncthreads();
  y[blockIdx.x * 64 + threadIdx.x + (fault == past_the_end)] = s[(threadIdx.x + 1) % 64];
  __syncthreads();
}

}  // namespace

extern "C" bool turn_blocks(const float* x, float* y, int blocks, int fault) {
  try {
    cudaemu::launch(turn, blocks, 64, 0, nullptr, x, y, fault);
    return true;
  } catch (const cudaemu::Error& e) {
    std::fprintf(stderr, "Error: %s\n", e.what());
    return false;
  }
}
