// Sums over parts that lie one behind the other, in a fixed order: neighbouring threads take neighbouring columns, and
// the rows of a block, blockDim.y of them, share the parts of each.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"

namespace vdiff {

constexpr int kSumThreads = 256;
// 8 floats are a sector of memory, so narrower blocks would read what they do not use.
constexpr int kSumRows = 32;

// The totals of what add(part, totals) adds over all parts, in the threads of row 0. All threads of a block come here.
template <int kSums, class Add>
__device__ __forceinline__ void sum_parts_of_column(bool inside, int64_t parts, Add add, double (&totals)[kSums]) {
  __shared__ double shared[kSums][kSumThreads];
  if (inside) {
#pragma unroll 4
    for (int64_t part = threadIdx.y; part < parts; part += blockDim.y) add(part, totals);
  }
  if (blockDim.y == 1) return;
#pragma unroll
  for (int k = 0; k < kSums; ++k) shared[k][threadIdx.y * blockDim.x + threadIdx.x] = totals[k];
  __syncthreads();
  if (threadIdx.y > 0) return;
  for (unsigned row = 1; row < blockDim.y; ++row) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) totals[k] += shared[k][row * blockDim.x + threadIdx.x];
  }
}

// Threads (columns, rows) of a block: rows for 8 parts each, as far as they go.
inline dim3 sum_block(int64_t parts) {
  unsigned rows = 1;
  while (rows < kSumRows && 8 * rows < parts) rows *= 2;
  return dim3(kSumThreads / rows, rows);
}

// The column of this thread, of all groups'.
__device__ __forceinline__ int64_t sum_column() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

constexpr int kMostSums = 3;

// out[k][group, column] = sum over `parts` of partial[group, part, k, column].
template <class T>
struct PartSums {
  const float* partial;
  T* out[kMostSums];
  int64_t groups, parts, width;
};

template <class T>
__global__ void __launch_bounds__(kSumThreads) sum_parts_kernel(const __grid_constant__ PartSums<T> s) {
  const int64_t i = sum_column(), group = i / s.width, column = i - group * s.width, step = gridDim.y * s.width;
  const float* from = s.partial + group * s.parts * step + blockIdx.y * s.width + column;
  double total[1] = {};
  const bool inside = group < s.groups;
  sum_parts_of_column(inside, s.parts, [&](int64_t part, double (&t)[1]) { t[0] += from[part * step]; }, total);
  if (inside && threadIdx.y == 0) s.out[blockIdx.y][i] = from_float<T>(static_cast<float>(total[0]));
}

// partial holds as many sums of each part as there are outputs.
template <class T>
void sum_parts(const float* partial, std::initializer_list<T*> out, int64_t groups, int64_t parts, int64_t width,
               cudaStream_t stream) {
  if (groups * width == 0) return;  // a grid of no blocks is an error
  PartSums<T> s{partial, {}, groups, parts, width};
  std::copy(out.begin(), out.end(), s.out);
  const dim3 block = sum_block(parts);
  const dim3 grid(static_cast<unsigned>(ceil_div(groups * width, block.x)), static_cast<unsigned>(out.size()));
  sum_parts_kernel<T><<<grid, block, 0, stream>>>(s);
  check_launch();
}

}  // namespace vdiff
