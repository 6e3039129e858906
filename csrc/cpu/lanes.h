// What a kernel templated on the element type needs beside simd.h: double vectors, the first n lanes, SiLU.
#pragma once

#include "cpu/simd.h"

namespace vdiff::VDIFF_ISA {

// The vector that elements of type T are computed in: float for the narrow types, double for double.
template <class T>
struct Lanes {
  using Vector = vfloat;
  using Real = float;
  static constexpr int count = kLanes;
};
template <>
struct Lanes<double> {
  using Vector = vdouble;
  using Real = double;
  static constexpr int count = kDoubleLanes;
};

inline vdouble load(const double* p) {
  vdouble v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(double* p, vdouble v) { __builtin_memcpy(p, &v, sizeof v); }
inline vdouble fma(vdouble a, vdouble b, vdouble c) { return a * b + c; }
inline double to_float(double x) { return x; }
inline void from_float(double* p, double x) { *p = x; }

// The first n < count lanes; the rest are zero on a load and not written on a store.
template <class T>
inline typename Lanes<T>::Vector load_first(const T* p, int n) {
  T lanes[Lanes<T>::count] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}
template <class T>
inline void store_first(T* p, typename Lanes<T>::Vector v, int n) {
  T lanes[Lanes<T>::count];
  store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}

#if defined(__AVX512F__)
inline __mmask16 first_lanes(int n) { return (__mmask16)((1u << n) - 1u); }
template <>
inline vfloat load_first(const float* p, int n) {
  return (vfloat)_mm512_maskz_loadu_ps(first_lanes(n), p);
}
template <>
inline void store_first(float* p, vfloat v, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
}
template <>
inline vfloat load_first(const bf16* p, int n) {
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)), 16);
}
template <>
inline vfloat load_first(const fp16* p, int n) {
  return (vfloat)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
template <class T>
inline void store_first_half(T* p, vfloat v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm256_loadu_si256((const __m256i*)lanes));
}
template <>
inline void store_first(bf16* p, vfloat v, int n) {
  store_first_half(p, v, n);
}
template <>
inline void store_first(fp16* p, vfloat v, int n) {
  store_first_half(p, v, n);
}
#endif

// Sum of the lanes in pairs, a fixed order.
template <class V>
inline auto sum_lanes(V v) {
  auto lanes = [&] {
    struct {
      decltype(v[0] + v[0]) at[sizeof(V) / sizeof(v[0])];
    } a;
    __builtin_memcpy(&a, &v, sizeof v);
    return a;
  }();
  for (int half = sizeof(V) / sizeof(v[0]) / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes.at[i] += lanes.at[i + half];
  }
  return lanes.at[0];
}

// e^-x for 1 / (1 + e^-x): the argument is clamped to where 2^k needs one exponent field, so that the sigmoid of less
// than -87 is 1.6e-38. A NaN is clamped too: callers multiply by x, which brings it back.
inline vfloat exp_minus(vfloat x) {
  const vfloat clamped = vmin(vmax(-x, splat(-87.0f)), splat(87.0f));
  const vfloat magic = splat(12582912.0f);
  const vfloat shifted = fma(clamped, splat(1.44269504f), magic), k = shifted - magic;
  const vfloat r = fma(k, splat(2.12194440e-4f), fma(k, splat(-0.693359375f), clamped));
  vfloat p = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // The low bits of `shifted` are k: shifted left they add k to the exponent.
  return from_bits(bits(p) + (bits(shifted) << 23));
}
inline vdouble exp_minus(vdouble x) {
  vdouble y;
  for (int i = 0; i < kDoubleLanes; ++i) y[i] = __builtin_exp(-x[i]);
  return y;
}

template <bool kSilu, class V>
inline V activate(V z) {
  if constexpr (kSilu) return z / (1 + exp_minus(z));
  return z;
}
// The derivative of activate, s + z s (1 - s) with 1 - s = e^-z s, which does not cancel.
template <bool kSilu, class V>
inline V activation_slope(V z) {
  if constexpr (!kSilu) return V{} + 1;
  const V e = exp_minus(z), s = 1 / (1 + e);
  if constexpr (sizeof(z[0]) == 8) return z < V{} - 700 ? V{} : s * fma(z, e * s, V{} + 1);
  return s * fma(z, e * s, V{} + 1);
}

}  // namespace vdiff::VDIFF_ISA
