// Rows of d elements between the tensors and the scratch, and the per-row options. Included by cpu_kernel.cpp only.
#pragma once

#include "common/tokens.h"
#include "cpu/attention/matrix.h"

namespace vdiff::VDIFF_ISA {

// d is a multiple of 8, so a 16-lane set has one half vector at the end.
#if defined(__AVX512F__)
inline vfloat load_half(const float* p) { return (vfloat)_mm512_maskz_loadu_ps(0xff, p); }
inline void store_half(float* p, vfloat v) { _mm512_mask_storeu_ps(p, 0xff, (__m512)v); }
inline vfloat load_half(const bf16* p) {
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(0xff, p)), 16);
}
inline vfloat load_half(const fp16* p) { return (vfloat)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(0xff, p)); }
template <class T>
inline void store_half(T* p, vfloat v) {
  T lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, 8 * sizeof(T));
}
constexpr bool kHalfTail = true;
#else
constexpr bool kHalfTail = false;
#endif

// Calls body(n), n up to N, with n known to the compiler: a loop of fixed length is unrolled, and no branch of it is
// guessed wrong. Narrow sets would have too many lengths.
template <int N>
struct Count {
  constexpr operator int() const { return N; }
};
template <int N = kMaxHeadDim / kLanes, class Body>
inline void with_count(int n, Body body) {
  if constexpr (kVectorBytes < 32) {
    body(n);
  } else if constexpr (N == 0) {
    body(Count<0>());
  } else {
    n == N ? body(Count<N>()) : with_count<N - 1>(n, body);
  }
}

// Rows of n vectors, and of half a vector where d says so.
template <class Vectors, class T>
inline void read_vectors(Vectors n, const T* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
                         int64_t d) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    for (int i = 0; i < n; ++i) store(to + i * kLanes, load(from + i * kLanes));
    if constexpr (kHalfTail) {
      if (d > n * kLanes) store(to + n * kLanes, load_half(from + n * kLanes));
    }
  }
}
template <bool kPastCache, class Vectors, class T>
inline void write_vectors(Vectors n, const float* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows,
                          int64_t d) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    for (int i = 0; i < n; ++i) store_output<kPastCache>(to + i * kLanes, load(from + i * kLanes), kLanes);
    if constexpr (kHalfTail) {
      if (d > n * kLanes) store_half(to + n * kLanes, load(from + n * kLanes));
    }
  }
}

// `rows` rows of d elements, `from_stride` apart, to where they are `to_stride` apart.
template <class T>
inline void read_rows(const T* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t d) {
  with_count(d / kLanes, [=](auto n) { read_vectors(n, from, from_stride, to, to_stride, rows, d); });
}
inline void read_rows(const double* from, int64_t from_stride, double* to, int64_t to_stride, int64_t rows, int64_t d) {
  for (; rows > 0; --rows, from += from_stride, to += to_stride) __builtin_memcpy(to, from, d * sizeof(double));
}

template <class T>
inline void write_rows(const float* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t d,
                       bool past_cache) {
  with_count(d / kLanes, [=](auto n) {
    past_cache ? write_vectors<true>(n, from, from_stride, to, to_stride, rows, d)
               : write_vectors<false>(n, from, from_stride, to, to_stride, rows, d);
  });
}
inline void write_rows(const double* from, int64_t from_stride, double* to, int64_t to_stride, int64_t rows, int64_t d,
                       bool) {
  read_rows(from, from_stride, to, to_stride, rows, d);
}

// sum of a[i] * b[i] in four partial sums, which the compiler may hold in lanes.
template <class A>
inline A dot(const A* a, const A* b, int64_t d) {
  A sums[8] = {};
  for (int64_t i = 0; i < d; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <class A>
inline void rotate(A* x, const A* cos, const A* sin, int64_t pairs, A sign) {
  for (int64_t i = 0; i < pairs; ++i) {
    const A even = x[2 * i], odd = x[2 * i + 1], s = sign * sin[i];
    x[2 * i] = even * cos[i] - odd * s;
    x[2 * i + 1] = even * s + odd * cos[i];
  }
}

// x -> unit = x / rms(x), kept for the backward where `unit` is given; x = unit * weight.
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

// dx of normalise(), in place of dy; dweight += dy * unit.
template <class A>
inline void normalise_backward(A* dy, const A* weight, const A* unit, A* dweight, int64_t d, A scale) {
  for (int64_t i = 0; i < d; ++i) {
    dweight[i] += dy[i] * unit[i];
    dy[i] *= weight[i];
  }
  const A along = dot(dy, unit, d) / (A)d;
  for (int64_t i = 0; i < d; ++i) dy[i] = scale * (dy[i] - unit[i] * along);
}

}  // namespace vdiff::VDIFF_ISA
