// Copies rows of d elements between tensors and scratch; RMS norm and rotation of a row. Included by cpu_kernel.cpp
// only.
#pragma once

#include "common/tokens.h"
#include "cpu/attention/matrix.h"

namespace vdiff::VDIFF_ISA {

// d is a multiple of 8, so with 16 lanes a row may end in half a vector.
#if defined(__AVX512F__)
inline vfloat load_8(const float* p) { return (vfloat)_mm512_maskz_loadu_ps(0xff, p); }
inline void store_8(float* p, vfloat v) { _mm512_mask_storeu_ps(p, 0xff, (__m512)v); }
inline vfloat load_8(const bf16* p) {
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(0xff, p)), 16);
}
inline vfloat load_8(const fp16* p) { return (vfloat)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(0xff, p)); }
template <class T>
inline void store_8(T* p, vfloat v) {
  T lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, 8 * sizeof(T));
}
constexpr bool kTailOf8 = true;
#else
constexpr bool kTailOf8 = false;
#endif

// Calls body(n) for 0 <= n <= N with n as a constant of the compiler, which then unrolls the loops over n and leaves no
// branch to mispredict. Narrow vectors would need too many instances; they get n as a number.
template <int N>
struct Constant {
  constexpr operator int() const { return N; }
};
template <int N = kMaxHeadDim / kLanes, class Body>
inline void with_constant(int n, Body body) {
  if constexpr (kVectorBytes < 32) {
    body(n);
  } else if constexpr (N == 0) {
    body(Constant<0>());
  } else {
    n == N ? body(Constant<N>()) : with_constant<N - 1>(n, body);
  }
}

// Converts and copies rows of n vectors, and of half a vector more where d needs it.
template <class Vectors, class T>
inline void load_row_vectors(Vectors n, const T* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
                             int64_t d) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    for (int i = 0; i < n; ++i) store(to + i * kLanes, load(from + i * kLanes));
    if constexpr (kTailOf8) {
      if (d > n * kLanes) store(to + n * kLanes, load_8(from + n * kLanes));
    }
  }
}
template <bool kStream, class Vectors, class T>
inline void store_row_vectors(Vectors n, const float* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                              int64_t d) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    for (int i = 0; i < n; ++i) store_or_stream<kStream>(to + i * kLanes, load(from + i * kLanes), kLanes);
    if constexpr (kTailOf8) {
      if (d > n * kLanes) store_8(to + n * kLanes, load(from + n * kLanes));
    }
  }
}

// Copies `rows` rows of d elements; the strides are in elements.
template <class T>
inline void load_rows(const T* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t d) {
  with_constant(d / kLanes, [=](auto n) { load_row_vectors(n, from, from_stride, to, to_stride, rows, d); });
}
inline void load_rows(const double* from, int64_t from_stride, double* to, int64_t to_stride, int64_t rows, int64_t d) {
  for (; rows > 0; --rows, from += from_stride, to += to_stride) __builtin_memcpy(to, from, d * sizeof(double));
}

template <class T>
inline void store_rows(const float* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t d,
                       bool streamed) {
  with_constant(d / kLanes, [=](auto n) {
    streamed ? store_row_vectors<true>(n, from, from_stride, to, to_stride, rows, d)
             : store_row_vectors<false>(n, from, from_stride, to, to_stride, rows, d);
  });
}
inline void store_rows(const double* from, int64_t from_stride, double* to, int64_t to_stride, int64_t rows, int64_t d,
                       bool) {
  load_rows(from, from_stride, to, to_stride, rows, d);
}

// The sum of a[i] * b[i], d a multiple of 8, as eight partial sums that the compiler may put into lanes.
template <class A>
inline A dot(const A* a, const A* b, int64_t d) {
  A sums[8] = {};
  for (int64_t i = 0; i < d; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// Turns each pair (x[2i], x[2i + 1]) by the angle i; sign -1 turns back.
template <class A>
inline void rotate(A* x, const A* cos, const A* sin, int64_t pairs, A sign) {
  for (int64_t i = 0; i < pairs; ++i) {
    const A even = x[2 * i], odd = x[2 * i + 1], s = sign * sin[i];
    x[2 * i] = even * cos[i] - odd * s;
    x[2 * i + 1] = even * s + odd * cos[i];
  }
}

// x = unit * weight with unit = x / rms(x), which the backward needs: it is written where `unit` is not null. Returns
// 1 / rms(x).
template <class A>
inline A normalise(A* x, const A* weight, A* unit, int64_t d, A eps) {
  const A scale = A(1) / (A)__builtin_sqrt(dot(x, x, d) / (A)d + eps);
  for (int64_t i = 0; i < d; ++i) {
    const A value = x[i] * scale;
    if (unit) unit[i] = value;
    x[i] = value * weight[i];
  }
  return scale;
}

// The gradient of normalise() by x replaces dy; dy * unit is added to dweight.
template <class A>
inline void normalise_backward(A* dy, const A* weight, const A* unit, A* dweight, int64_t d, A scale) {
  for (int64_t i = 0; i < d; ++i) {
    dweight[i] += dy[i] * unit[i];
    dy[i] *= weight[i];
  }
  const A mean = dot(dy, unit, d) / (A)d;
  for (int64_t i = 0; i < d; ++i) dy[i] = scale * (dy[i] - unit[i] * mean);
}

}  // namespace vdiff::VDIFF_ISA
