// One vector type for every instruction set, on GCC's and clang's vector extensions. Included by cpu_kernel.cpp files
// only, which are compiled once per set with VDIFF_ISA naming the namespace: no torch and no C++ library header here.
#pragma once

#include <stdint.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vdiff::VDIFF_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float vfloat __attribute__((vector_size(kVectorBytes)));
typedef int32_t vint __attribute__((vector_size(kVectorBytes)));
typedef uint32_t vuint __attribute__((vector_size(kVectorBytes)));
typedef double vdouble __attribute__((vector_size(kVectorBytes)));
typedef uint16_t vhalf __attribute__((vector_size(kVectorBytes / 2)));
constexpr int kDoubleLanes = kVectorBytes / 8;

// x - 0 is x for every x, so no subtraction is left; 0 + x is not (x = -0).
inline vfloat splat(float x) { return x - vfloat{}; }
inline vint bits(vfloat x) { return (vint)x; }
inline vfloat from_bits(vint x) { return (vfloat)x; }
// Lane-wise mask ? a : b; comparisons of vectors give all-ones or zero.
inline vfloat select(vint mask, vfloat a, vfloat b) { return (vfloat)((mask & (vint)a) | (~mask & (vint)b)); }
// b where a comparison fails, so for a NaN too.
#if defined(__AVX512F__)
inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline vfloat vmax(vfloat a, vfloat b) { return select(a > b, a, b); }
inline vfloat vmin(vfloat a, vfloat b) { return select(a < b, a, b); }
#endif

// a * b + c in one rounding (two, the first in double, where the set lacks it); -ffp-contract=off keeps every other
// expression apart.
inline vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  // The product of two floats is exact in double: without this the error bounds would depend on the set.
  typedef double wide __attribute__((vector_size(2 * kVectorBytes)));
  return __builtin_convertvector(
      __builtin_convertvector(a, wide) * __builtin_convertvector(b, wide) + __builtin_convertvector(c, wide), vfloat);
#endif
}

inline vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof v); }

struct bf16 {
  uint16_t raw;
};
struct fp16 {
  uint16_t raw;
};

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

// The first n < kLanes lanes; the rest are zero, and are not written.
template <class T>
inline vfloat load_partial(const T* p, int n) {
  float lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}
template <class T>
inline void store_partial(T* p, vfloat v, int n) {
  for (int i = 0; i < n; ++i) from_float(p + i, v[i]);
}

inline float sum(vfloat v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// e^x to 1 ulp or so on [-87.3, 88.7], 0 below, inf above: 2^k * p(r), |r| <= ln2/2 (degree-6 Taylor-minimax).
inline vfloat vexp(vfloat x) {
  const vfloat clamped = vmin(vmax(x, splat(-87.33654f)), splat(88.72283f));
  // Adding 1.5 * 2^23 rounds to the nearest integer without a rounding instruction.
  const vfloat magic = splat(12582912.0f);
  const vfloat k = fma(clamped, splat(1.44269504f), magic) - magic;
  vfloat r = fma(k, splat(-0.693359375f), clamped);
  r = fma(k, splat(2.12194440e-4f), r);
  vfloat p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // 2^k in two factors: k reaches 128, one exponent field does not.
  const vint whole = __builtin_convertvector(k, vint), half = whole >> 1;
  const vfloat scale1 = from_bits((half + 127) << 23), scale2 = from_bits((whole - half + 127) << 23);
  vfloat y = p * scale1 * scale2;
  y = select(x < splat(-87.33654f), splat(0.0f), y);
  y = select(x > splat(88.72283f), splat(__builtin_inff()), y);
  return select(x != x, x, y);
}

inline vfloat vsigmoid(vfloat x) { return splat(1.0f) / (splat(1.0f) + vexp(-x)); }

}  // namespace vdiff::VDIFF_ISA
