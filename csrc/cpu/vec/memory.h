// Loads and stores of every element type: whole vectors, the first n lanes, and stores past the caches.
#pragma once

#include "cpu/vec/types.h"

namespace vdiff::VDIFF_ISA {

inline vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof v); }
inline vdouble load(const double* p) {
  vdouble v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(double* p, vdouble v) { __builtin_memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
inline vfloat load(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (vfloat)_mm512_slli_epi32(wide, 16);
}
// Round to nearest even; a NaN stays a NaN.
#if defined(__AVX512BF16__)
inline void store(bf16* p, vfloat v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }
#else
inline void store(bf16* p, vfloat v) {
  const __m512i u = (__m512i)v, high = _mm512_srli_epi32(u, 16);
  const __m512i carry = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(_mm512_add_epi32(u, carry), nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#endif
#else
#if defined(__AVX2__)
// Both halves of the register get the eight numbers, and one shuffle spreads each half's four: the compiler's
// conversion takes six instructions.
inline vfloat load(const bf16* p) {
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
  const __m256i upper = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                         -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return (vfloat)_mm256_shuffle_epi8(twice, upper);
}
#else
inline vfloat load(const bf16* p) {
  vhalf h;
  __builtin_memcpy(&h, p, sizeof h);
  return (vfloat)(__builtin_convertvector(h, vuint) << 16);
}
#endif
// Round to nearest even, to the lower half of every lane; a NaN stays a NaN.
inline vuint rounded_to_bf16(vfloat v) {
  const vuint u = (vuint)v, nan = (vuint)(v != v);  // all ones where it holds, which is a NaN in 16 bits too
  return ((u + 0x7fffu + ((u >> 16) & 1u)) | nan) >> 16;
}
inline void store(bf16* p, vfloat v) {
  const vuint rounded = rounded_to_bf16(v);
#if defined(__AVX2__)
  // Two instructions where the compiler's conversion takes four.
  const __m128i low = _mm256_castsi256_si128((__m256i)rounded), high = _mm256_extracti128_si256((__m256i)rounded, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(low, high));
#else
  const vhalf h = __builtin_convertvector(rounded, vhalf);
  __builtin_memcpy(p, &h, sizeof h);
#endif
}
#endif

#if defined(__AVX512F__)
inline vfloat load(const fp16* p) { return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(fp16* p, vfloat v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline vfloat load(const fp16* p) { return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void store(fp16* p, vfloat v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// Scalar conversions, for tails and for sets without half-precision instructions.
inline double to_float(double x) { return x; }
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t u = (uint32_t)x.raw << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
inline float to_float(fp16 x) {
  const uint32_t sign = (uint32_t)(x.raw & 0x8000u) << 16, exponent = (x.raw >> 10) & 31u, mantissa = x.raw & 0x3ffu;
  if (exponent == 0) {
    const float f = (float)mantissa * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t u = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
inline void from_float(double* p, double x) { *p = x; }
inline void from_float(float* p, float x) { *p = x; }
inline void from_float(bf16* p, float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  p->raw = x != x ? (uint16_t)((u >> 16) | 0x40u) : (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline void from_float(fp16* p, float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000u;
  float magnitude = x < 0 ? -x : x;
  if (x != x) {
    p->raw = (uint16_t)(sign | 0x7e00u);
  } else if (magnitude >= 65520.0f) {
    p->raw = (uint16_t)(sign | 0x7c00u);
  } else if (magnitude < 0x1p-14f) {
    // Adding 2^-1 * ulp-aligned constant rounds to the subnormal grid of 2^-24, to nearest even.
    const float shifted = magnitude + 0.5f;
    uint32_t s;
    __builtin_memcpy(&s, &shifted, 4);
    p->raw = (uint16_t)(sign | (s - 0x3f000000u));
  } else {
    uint32_t m;
    __builtin_memcpy(&m, &magnitude, 4);
    m += 0xfffu + ((m >> 13) & 1u);
    p->raw = (uint16_t)(sign | ((m - 0x38000000u) >> 13));
  }
}
#if !defined(__AVX512F__) && !defined(__F16C__)
inline vfloat load(const fp16* p) {
  vfloat v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
}
inline void store(fp16* p, vfloat v) {
  for (int i = 0; i < kLanes; ++i) from_float(p + i, v[i]);
}
#endif

// The first n < lanes lanes by a mask: a load makes the rest zero, a store does not write it.
template <class T>
inline typename Vec<T>::V load_tail(const T* p, int n) {
  T lanes[Vec<T>::lanes] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}
template <class T>
inline void store_tail(T* p, typename Vec<T>::V v, int n) {
  T lanes[Vec<T>::lanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}

#if defined(__AVX512F__)
inline __mmask16 mask_n(int n) { return (__mmask16)((1u << n) - 1u); }
template <>
inline vfloat load_tail(const float* p, int n) {
  return (vfloat)_mm512_maskz_loadu_ps(mask_n(n), p);
}
template <>
inline void store_tail(float* p, vfloat v, int n) {
  _mm512_mask_storeu_ps(p, mask_n(n), (__m512)v);
}
template <>
inline vfloat load_tail(const bf16* p, int n) {
  return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask_n(n), p)), 16);
}
template <>
inline vfloat load_tail(const fp16* p, int n) {
  return (vfloat)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_n(n), p));
}
template <class T>
inline void store_tail_16bit(T* p, vfloat v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  _mm256_mask_storeu_epi16(p, mask_n(n), _mm256_loadu_si256((const __m256i*)lanes));
}
template <>
inline void store_tail(bf16* p, vfloat v, int n) {
  store_tail_16bit(p, v, n);
}
template <>
inline void store_tail(fp16* p, vfloat v, int n) {
  store_tail_16bit(p, v, n);
}
#endif
// The first n <= lanes lanes: whole vectors take the plain load and store, by a branch that is predicted.
template <class T>
inline typename Vec<T>::V load_n(const T* p, int n) {
  return n == Vec<T>::lanes ? load(p) : load_tail(p, n);
}
template <class T>
inline void store_n(T* p, typename Vec<T>::V v, int n) {
  n == Vec<T>::lanes ? store(p, v) : store_tail(p, v, n);
}

// The same, with a tail of n < lanes elements that are converted one by one.
template <class T>
inline vfloat load_tail_elements(const T* p, int n) {
  float lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}
template <class T>
inline void store_tail_elements(T* p, vfloat v, int n) {
  for (int i = 0; i < n; ++i) from_float(p + i, v[i]);
}
template <class T>
inline vfloat load_elements(const T* p, int n) {
  return n == kLanes ? load(p) : load_tail_elements(p, n);
}
template <class T>
inline void store_elements(T* p, vfloat v, int n) {
  if (n == kLanes) {
    store(p, v);
  } else {
    store_tail_elements(p, v, n);
  }
}

inline double load_elements(const double* p, int) { return *p; }
inline void store_elements(double* p, double v, int) { *p = v; }

// float lanes, or one double: for kernels whose float64 version, there for gradient checks, is not vectorised.
template <class T>
struct VecOrScalar {
  using V = vfloat;
  static constexpr int lanes = kLanes;
  static V load(const T* p) { return VDIFF_ISA::load(p); }
  static void store(T* p, V v) { VDIFF_ISA::store(p, v); }
  static V splat(float x) { return VDIFF_ISA::splat(x); }
};
template <>
struct VecOrScalar<double> {
  using V = double;
  static constexpr int lanes = 1;
  static V load(const double* p) { return *p; }
  static void store(double* p, V v) { *p = v; }
  static V splat(double x) { return x; }
};

// v with zero after the first n lanes.
template <class T>
inline typename Vec<T>::V keep_n(typename Vec<T>::V v, int n) {
  if (n == Vec<T>::lanes) return v;
  typename Vec<T>::Real kept[Vec<T>::lanes];
  store_tail(kept, v, n);
  return load_tail(kept, n);
}

// A non-temporal store: it bypasses the caches and spares the read of the cache line that a store makes. p is aligned
// to the bytes of its lanes. Call stream_fence() before another thread may read p.
template <class T>
inline void stream(T* p, typename Vec<T>::V v) {
#if defined(__AVX512F__) || defined(__AVX2__)
  T lanes[Vec<T>::lanes];
  store(lanes, v);
  if constexpr (sizeof lanes == 16) _mm_stream_si128((__m128i*)p, _mm_loadu_si128((const __m128i*)lanes));
  if constexpr (sizeof lanes == 32) _mm256_stream_si256((__m256i*)p, _mm256_loadu_si256((const __m256i*)lanes));
#if defined(__AVX512F__)
  if constexpr (sizeof lanes == 64) _mm512_stream_si512((__m512i*)p, _mm512_loadu_si512(lanes));
#endif
#else
  store(p, v);
#endif
}
inline void stream_fence() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}
template <bool kStream, class T>
inline void store_or_stream(T* p, typename Vec<T>::V v, int lanes) {
  if constexpr (kStream) return stream(p, v);
  lanes == Vec<T>::lanes ? store(p, v) : store_tail(p, v, lanes);
}
// Two whole vectors behind each other.
template <bool kStream, class T>
inline void store_pair(T* p, typename Vec<T>::V a, typename Vec<T>::V b) {
  store_or_stream<kStream>(p, a, Vec<T>::lanes), store_or_stream<kStream>(p + Vec<T>::lanes, b, Vec<T>::lanes);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
// One shuffle packs both.
template <bool kStream>
inline void store_pair(bf16* p, vfloat a, vfloat b) {
  const __m256i packed = _mm256_packus_epi32((__m256i)rounded_to_bf16(a), (__m256i)rounded_to_bf16(b));
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);
  if constexpr (kStream) {
    _mm_stream_si128((__m128i*)p, _mm256_castsi256_si128(ordered));
    _mm_stream_si128((__m128i*)p + 1, _mm256_extracti128_si256(ordered, 1));
  } else {
    _mm256_storeu_si256((__m256i*)p, ordered);
  }
}
#endif
// Whether every row of n elements, from p on without gaps, is whole vectors that are aligned for stream().
template <class T>
inline bool aligned_vectors(const T* p, int64_t n) {
  constexpr int64_t bytes = Vec<T>::lanes * sizeof(T);
  return (uintptr_t)p % bytes == 0 && n * (int64_t)sizeof(T) % bytes == 0;
}

}  // namespace vdiff::VDIFF_ISA
