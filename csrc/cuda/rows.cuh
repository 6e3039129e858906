// Rows in chunks of eight elements a thread, vectors of runs of rows, and how a backward sums columns over rows.
#pragma once

#include <algorithm>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/store.cuh"

namespace vdiff {

constexpr int kChunk = 8;

// One vector per run of rows, by stride, unit stride inside.
struct DeviceVectors {
  const void* data;
  int64_t sample_stride, run_stride, per_sample;

  template <class T>
  __device__ __forceinline__ const T* at(int64_t run) const {
    return static_cast<const T*>(data) + run / per_sample * sample_stride + run % per_sample * run_stride;
  }
};

inline DeviceVectors device_vectors(const Tensor& v) { return {v.data_ptr(), v.stride(0), v.stride(1), v.size(1)}; }

template <class T>
struct alignas(16) Chunk {
  T v[kChunk];
};

template <class T>
__device__ __forceinline__ bool whole_chunk(const T* p, int column, int width) {
  return column + kChunk <= width && reinterpret_cast<uintptr_t>(p + column) % 16 == 0;
}

// Eight elements from `column` on, zero past the row's end; 16-byte accesses where the row allows them.
template <class T>
__device__ __forceinline__ void load_chunk(const T* row, int column, int width, float (&v)[kChunk]) {
  if (whole_chunk(row, column, width)) {
    const auto chunk = *reinterpret_cast<const Chunk<T>*>(row + column);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = to_float(chunk.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = column + j < width ? to_float(row[column + j]) : 0.0f;
  }
}
template <class T>
__device__ __forceinline__ void store_chunk(T* row, int column, int width, const float (&v)[kChunk]) {
  if (whole_chunk(row, column, width)) {
    Chunk<T> chunk;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) chunk.v[j] = from_float<T>(v[j]);
    store_whole(row + column, chunk);
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (column + j < width) row[column + j] = from_float<T>(v[j]);
    }
  }
}

// More than 32 floats added one by one would cost accuracy.
constexpr int64_t kMostSummed = 32;

// Sums over the threads of a block that differ in y alone, in those of row 0: a tree in a fixed order. All threads of
// the block come here.
template <int kMostThreads>
__device__ __forceinline__ void sum_down(float (&sum)[kChunk]) {
  __shared__ float shared[kChunk][kMostThreads];
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (unsigned rows = blockDim.y; rows > 1;) {
    const unsigned half = (rows + 1) / 2;
    if (threadIdx.y >= half && threadIdx.y < rows) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) shared[j][thread] = sum[j];
    }
    __syncthreads();
    if (threadIdx.y + half < rows) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) sum[j] += shared[j][thread + half * blockDim.x];
    }
    __syncthreads();
    rows = half;
  }
}

// How a backward that sums the columns of runs of `length` rows is cut: blocks of (chunks, rows) threads lie side by
// side across a row, and each takes `rows` rows of a run. Threads walk over several rows, and a block writes one
// partial sum for all of its rows.
struct ColumnBlocks {
  static constexpr int kThreads = 256;
  int64_t across, rows, parts;  // blocks across a row, rows of a block, blocks down a run
  dim3 threads;

  // The block's part of all runs', its first column, and whether this thread's chunk begins within the row.
  __device__ __forceinline__ int64_t part() const { return blockIdx.x / across; }
  __device__ __forceinline__ int64_t column() const {
    return (blockIdx.x % across * blockDim.x + threadIdx.x) * kChunk;
  }
};

inline ColumnBlocks column_blocks(int64_t rows, int64_t length, int64_t width) {
  // Four blocks of 256 threads on each of 132 multiprocessors.
  constexpr int64_t kWalkingThreads = 528 * ColumnBlocks::kThreads;
  // A partial sum is written and read in float32: with fewer rows its bytes would be above a tenth of theirs in bf16.
  constexpr int64_t kLeastRows = 16;
  const int64_t chunks = ceil_div(width, kChunk), whole = ceil_div(chunks, 4) * 4;
  unsigned wide = 32, deep = 1;
  // Not so wide that more than three threads have nothing of the row.
  while (wide > 1 && length > 1 && (wide >= 2 * chunks || (wide > 4 && ceil_div(chunks, wide) * wide > whole)))
    wide /= 2;
  while (deep < ColumnBlocks::kThreads / wide && deep < length) deep *= 2;
  const int64_t walk = std::min(kMostSummed, rows * chunks / kWalkingThreads);
  const int64_t taken = std::min(length, std::max({walk * deep, int64_t{deep}, kLeastRows}));
  return {ceil_div(chunks, wide), taken, ceil_div(length, taken), dim3(wide, deep)};
}

}  // namespace vdiff
