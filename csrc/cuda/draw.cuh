// The four elements of a thread: where they lie, their noise, and how they are loaded and stored.
#pragma once

#include "common/frame_correlation.h"
#include "common/philox.h"
#include "common/video.h"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/store.cuh"

namespace vdiff {

constexpr int kDrawThreads = 256;

// The noise of a kernel: the tensor `given`, drawn if seed is not null, or none if both are null.
struct DeviceNoise {
  const void* given;
  bool given_is_float;
  const int64_t *seed, *sample_offset, *stream;
  FrameCorrelation correlation;  // of drawn noise
};

inline DeviceNoise device_noise(const MaybeTensor& given, const MaybeTensor& seed, const MaybeTensor& sample_offset,
                                const MaybeTensor& stream, const FrameCorrelation& correlation) {
  return {given.has_value() ? given->data_ptr() : nullptr,
          given.has_value() && given->scalar_type() == ScalarType::Float,
          data<int64_t>(seed),
          data<int64_t>(sample_offset),
          data<int64_t>(stream),
          seed.has_value() ? correlation : FrameCorrelation{}};
}

// Blocks per sample at four elements per thread; a thread computes its elements in every frame if frames are
// correlated.
inline int64_t draw_blocks(const SampleLayout& layout, const DeviceNoise& noise) {
  const int64_t frames = noise.correlation.frames > 0 ? noise.correlation.frames : 1;
  return ceil_div(ceil_div(layout.channels * layout.positions / frames, 4), kDrawThreads);
}

// The counter of a thread and the offsets of its four elements in the sample, of which `count` exist. `packed`: they
// are adjacent.
struct Quad {
  uint64_t index;
  int64_t at[4];
  int count;
  bool packed;
};

__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  // A 64-bit division takes ten times as many instructions as a 32-bit one.
  if ((static_cast<uint64_t>(a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The i-th counter, in an order in which the accesses of a warp are coalesced as far as possible; false past the last
// one. Channels are `plane` elements apart.
__device__ __forceinline__ bool find_quad(int64_t channels, int64_t positions, int64_t plane, int64_t i, Quad& quad) {
  const int64_t elements = channels * positions;
  if (4 * i >= elements) return false;
  quad.index = i, quad.packed = channels == 1;
  quad.count = elements - 4 * i < 4 ? static_cast<int>(elements - 4 * i) : 4;
  if (channels == 1) {
#pragma unroll
    for (int w = 0; w < 4; ++w) quad.at[w] = 4 * i + w;
  } else if (channels % 4 == 0) {
    // Four channels of one position: neighbouring threads take neighbouring positions.
    const int64_t four = quotient(i, positions), position = i - four * positions;
    quad.index = position * (channels / 4) + four;
#pragma unroll
    for (int w = 0; w < 4; ++w) quad.at[w] = (4 * four + w) * plane + position;
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int64_t position = quotient(4 * i + w, channels);
      quad.at[w] = (4 * i + w - position * channels) * plane + position;
    }
  }
  return true;
}

template <class T>
__device__ __forceinline__ bool vectorised(const T* p, const Quad& quad) {
  return quad.packed && quad.count == 4 && (reinterpret_cast<uintptr_t>(p + quad.at[0]) % (4 * sizeof(T))) == 0;
}

template <class T>
struct alignas(4 * sizeof(T)) Vector4 {
  T v[4];
};

template <class T>
__device__ __forceinline__ void read(const T* p, const Quad& quad, float (&x)[4]) {
  if (vectorised(p, quad)) {
    const auto vector = *reinterpret_cast<const Vector4<T>*>(p + quad.at[0]);
#pragma unroll
    for (int w = 0; w < 4; ++w) x[w] = to_float(vector.v[w]);
    return;
  }
#pragma unroll
  for (int w = 0; w < 4; ++w) x[w] = w < quad.count ? to_float(p[quad.at[w]]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void write(T* p, const Quad& quad, const float (&x)[4]) {
  if (vectorised(p, quad)) {
    Vector4<T> vector;
#pragma unroll
    for (int w = 0; w < 4; ++w) vector.v[w] = from_float<T>(x[w]);
    store_whole(p + quad.at[0], vector);
    return;
  }
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (w < quad.count) p[quad.at[w]] = from_float<T>(x[w]);
  }
}

// T is the type of a given noise that is not float32; `base` is the offset of the sample.
template <class T>
__device__ __forceinline__ void read_noise(const DeviceNoise& noise, int64_t sample, int64_t base, const Quad& quad,
                                           float (&n)[4]) {
  if (noise.seed != nullptr) {
    philox::normals(philox::make_stream(noise.seed, noise.sample_offset, noise.stream, sample), quad.index, n);
  } else if (noise.given == nullptr) {
#pragma unroll
    for (int w = 0; w < 4; ++w) n[w] = 0.0f;
  } else if (noise.given_is_float) {
    read(static_cast<const float*>(noise.given) + base, quad, n);
  } else {
    read(static_cast<const T*>(noise.given) + base, quad, n);
  }
}

// The normals of the elements first to first + 3; `first` need not be the first element of a counter.
__device__ __forceinline__ void normals_from(const philox::Stream& stream, int64_t first, float (&n)[4]) {
  if (first % 4 == 0) return philox::normals(stream, first / 4, n);
  float low[4], high[4];
  philox::normals(stream, first / 4, low);
  philox::normals(stream, first / 4 + 1, high);
  // Selects registers: indexing an array at run time would put the eight numbers into local memory.
  const bool one = first % 4 == 1, two = first % 4 == 2;
  n[0] = one ? low[1] : two ? low[2] : low[3];
  n[1] = one ? low[2] : two ? low[3] : high[0];
  n[2] = one ? low[3] : two ? high[0] : high[1];
  n[3] = one ? high[0] : two ? high[1] : high[2];
}

// body(quad, n) for the i-th four elements of every frame, in the order of the frames; the noise that frames share
// stays in registers.
template <class Body>
__device__ __forceinline__ void for_each_frame(const DeviceNoise& noise, const SampleLayout& layout, int64_t sample,
                                               int64_t i, const Body& body) {
  const FrameCorrelation& c = noise.correlation;
  const int64_t positions = quotient(layout.positions, c.frames), elements = layout.channels * positions;
  Quad quad;
  if (!find_quad(layout.channels, positions, layout.positions, i, quad)) return;
  const auto stream = philox::make_stream(noise.seed, noise.sample_offset, noise.stream, sample);
  auto common = stream;
  common.stream ^= kSharedStream;
  float carried[4] = {}, n[4];
  if (!c.progressive) philox::normals(common, quad.index, carried);
  for (int64_t frame = 0; frame < c.frames; ++frame) {
    normals_from(stream, frame * elements + 4 * static_cast<int64_t>(quad.index), n);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float z = __fadd_rn(__fmul_rn(c.shared, carried[w]), __fmul_rn(c.own, n[w]));
      n[w] = c.progressive && frame == 0 ? n[w] : z;
      if (c.progressive) carried[w] = n[w];
    }
    body(quad, n);
#pragma unroll
    for (int w = 0; w < 4; ++w) quad.at[w] += positions;
  }
}

// body(quad, n) for the four elements of a thread, with kFrames in every frame. T is the type of a given noise that is
// not float32.
template <class T, bool kFrames, class Body>
__device__ __forceinline__ void for_each_quad(const DeviceNoise& noise, const SampleLayout& layout, int64_t sample,
                                              int64_t i, const Body& body) {
  if constexpr (kFrames) {
    for_each_frame(noise, layout, sample, i, body);
  } else {
    Quad quad;
    if (!find_quad(layout.channels, layout.positions, layout.positions, i, quad)) return;
    float n[4];
    read_noise<T>(noise, sample, sample * layout.channels * layout.positions, quad, n);
    body(quad, n);
  }
}

}  // namespace vdiff
