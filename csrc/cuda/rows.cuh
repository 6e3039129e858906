// Rows in chunks of eight elements a thread, vectors of runs of rows, and how far a backward walks over rows.
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

// Threads that a walk is cut for: four blocks of 256 on each of 132 multiprocessors.
constexpr int64_t kWalkingThreads = 528 * 256;

// Rows that a thread of a backward walks over: long walks write fewer partial sums, short ones fill every
// multiprocessor. More than 32 floats added one by one would cost accuracy.
inline int64_t walk_rows(int64_t rows, int64_t length, int64_t threads_a_row) {
  const int64_t walk = rows * threads_a_row / kWalkingThreads;
  return std::max<int64_t>(1, std::min<int64_t>({walk, length, 32}));
}

}  // namespace vdiff
