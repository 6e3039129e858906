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

// Binary digits of the significand.
template <class T>
constexpr int digits = 24;
template <>
inline constexpr int digits<bf16> = 8;
template <>
inline constexpr int digits<fp16> = 11;
template <>
inline constexpr int digits<double> = 53;

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

// Past the caches: spares the read of the line that a store makes. p is aligned to the lanes' bytes, and whoever else
// reads it waits for stores_done.
template <class T>
inline void store_past_cache(T* p, typename Lanes<T>::Vector v) {
#if defined(__AVX512F__) || defined(__AVX2__)
  T lanes[Lanes<T>::count];
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
inline void stores_done() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}
template <bool kPastCache, class T>
inline void store_output(T* p, typename Lanes<T>::Vector v, int lanes) {
  if constexpr (kPastCache) return store_past_cache(p, v);
  lanes == Lanes<T>::count ? store(p, v) : store_first(p, v, lanes);
}
// Two whole vectors behind each other.
template <bool kPastCache, class T>
inline void store_two(T* p, typename Lanes<T>::Vector a, typename Lanes<T>::Vector b) {
  store_output<kPastCache>(p, a, Lanes<T>::count), store_output<kPastCache>(p + Lanes<T>::count, b, Lanes<T>::count);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
// One shuffle packs both.
template <bool kPastCache>
inline void store_two(bf16* p, vfloat a, vfloat b) {
  const __m256i packed = _mm256_packus_epi32((__m256i)rounded_to_bf16(a), (__m256i)rounded_to_bf16(b));
  const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);
  if constexpr (kPastCache) {
    _mm_stream_si128((__m128i*)p, _mm256_castsi256_si128(ordered));
    _mm_stream_si128((__m128i*)p + 1, _mm256_extracti128_si256(ordered, 1));
  } else {
    _mm256_storeu_si256((__m256i*)p, ordered);
  }
}
#endif
// Whether rows of n elements from p on are whole vectors, all aligned.
template <class T>
inline bool whole_vectors(const T* p, int64_t n) {
  constexpr int64_t bytes = Lanes<T>::count * sizeof(T);
  return (uintptr_t)p % bytes == 0 && n * (int64_t)sizeof(T) % bytes == 0;
}

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

#if defined(__AVX512F__) || defined(__AVX2__)
// The same order in registers: through memory it is a chain of stores and loads.
inline float sum_lanes(vfloat v) {
#if defined(__AVX512F__)
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), high);
#else
  const __m256 eight = (__m256)v;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#endif

#if defined(__AVX512F__)
// Bits of 2^(i / 32) as float, less i << 18.
constexpr vint kPowers[2] = {
    {0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0, 0x3f7837f0,
     0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6},
    {0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e, 0x3f7744fd,
     0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3}};
#elif defined(__AVX2__)
// Bits of 2^(i / 8) as float, less i << 20.
constexpr vint kPowers = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                          0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#endif

// e^-x for 1 / (1 + e^-x), x clamped to where that is a normal number; a NaN is clamped too, and comes back as callers
// multiply by x. kDigits are the result's: up to 11, 16 bits in all, 6e-5 relative will do instead of an ulp.
//
// With a table -x = k ln 2 + r, k a multiple of 1/32 or 1/8, whose fraction picks 2^k's mantissa from registers. ln 2
// is in one piece: its 2e-9 times k shows only where e^-x is so large that 1 / (1 + e^-x) vanishes.
template <int kDigits>
inline vfloat exp_minus(vfloat x) {
#if defined(__AVX512F__)
  const __m512 clamped = _mm512_range_ps((__m512)x, _mm512_set1_ps(87.0f), 2);
  const __m512 magic = _mm512_set1_ps(393216.0f);
  const __m512 shifted = _mm512_fnmadd_ps(clamped, _mm512_set1_ps(1.44269504f), magic);
  const __m512 k = _mm512_sub_ps(shifted, magic);
  const vfloat r = (vfloat)_mm512_fnmsub_ps(k, _mm512_set1_ps(0.693147182f), clamped);
  const __m512i mantissa =
      _mm512_permutex2var_epi32((__m512i)kPowers[0], _mm512_castps_si512(shifted), (__m512i)kPowers[1]);
  const vfloat power = (vfloat)_mm512_add_epi32(mantissa, _mm512_slli_epi32(_mm512_castps_si512(shifted), 18));
  // e^r - 1 on |r| <= ln2 / 64: 6e-5 off by a line, 6e-10 by a cubic (a parabola's 5e-8 shows in the gradients).
  if constexpr (kDigits <= 11) return fma(power, r, power);
  const vfloat square = fma(splat(0.166666667f), r, splat(0.5f));
  return fma(power, fma(square, r, splat(1.0f)) * r, power);
#elif defined(__AVX2__)
  const __m256 clamped = (__m256)vmin(vmax(x, splat(-87.0f)), splat(87.0f));
  const __m256 magic = _mm256_set1_ps(1572864.0f);
  const __m256 shifted = _mm256_fnmadd_ps(clamped, _mm256_set1_ps(1.44269504f), magic);
  const __m256 k = _mm256_sub_ps(shifted, magic);
  const vfloat r = (vfloat)_mm256_fnmsub_ps(k, _mm256_set1_ps(0.693147182f), clamped);
  const __m256i mantissa = _mm256_permutevar8x32_epi32((__m256i)kPowers, _mm256_castps_si256(shifted));
  const vfloat power = (vfloat)_mm256_add_epi32(mantissa, _mm256_slli_epi32(_mm256_castps_si256(shifted), 20));
  // e^r - 1 on |r| <= ln2 / 16: 1.4e-5 off by a parabola, 2.6e-8 by a cubic.
  if constexpr (kDigits <= 11) return fma(power, fma(splat(0.49976555f), r * r, r), power);
  return fma(power, fma(fma(splat(0.16666857f), r, splat(0.50006446f)), r * r, r), power);
#else
  const vfloat clamped = vmin(vmax(-x, splat(-87.0f)), splat(87.0f));
  const vfloat magic = splat(12582912.0f);
  const vfloat shifted = fma(clamped, splat(1.44269504f), magic), k = shifted - magic;
  const vfloat r = fma(k, splat(2.12194440e-4f), fma(k, splat(-0.693359375f), clamped));
  vfloat p = fma(splat(0.001381459824f), r, splat(0.008368716913f));
  p = fma(p, r, splat(0.04166838805f));
  p = fma(p, r, splat(0.1666652063f));
  p = fma(p, r, splat(0.4999999345f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  // The low bits of `shifted` are k: shifted left they add k to the exponent.
  return from_bits(bits(p) + (bits(shifted) << 23));
#endif
}
template <int kDigits>
inline vdouble exp_minus(vdouble x) {
  vdouble y;
  for (int i = 0; i < kDoubleLanes; ++i) y[i] = __builtin_exp(-x[i]);
  return y;
}

// a / b for b in [1, 1e38]: on AVX-512 by a reciprocal of 14 bits, and the remainder unless the result is narrow; a
// division costs more than all the rest of SiLU. On AVX2 by one of 12 bits for bf16: it shows in fp16's 11.
template <int kDigits, class V>
inline V divide(V a, V b) {
  static_assert(kDigits >= 8, "digits<T>, not a bool");
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4) {
    const vfloat guess = (vfloat)_mm512_rcp14_ps((__m512)b);
    const vfloat quotient = a * guess;
    if constexpr (kDigits <= 11) return quotient;
    return fma((vfloat)_mm512_fnmadd_ps((__m512)b, (__m512)quotient, (__m512)a), guess, quotient);
  }
#elif defined(__AVX2__)
  if constexpr (kDigits <= 8) return a * (vfloat)_mm256_rcp_ps((__m256)b);
#endif
  return a / b;
}

template <bool kSilu, int kDigits, class V>
inline V activate(V z) {
  if constexpr (kSilu) return divide<kDigits>(z, 1 + exp_minus<kDigits>(z));
  return z;
}
// The derivative of activate, s + z s (1 - s) with 1 - s = e^-z s, which does not cancel.
template <bool kSilu, int kDigits, class V>
inline V activation_slope(V z) {
  const V one = V{} + 1;
  if constexpr (!kSilu) return one;
  const V e = exp_minus<kDigits>(z), s = divide<kDigits>(one, 1 + e);
  // Only double is not clamped: e^-z overflows below -700, where the slope is zero.
  if constexpr (sizeof(z[0]) == 8) return z < V{} - 700 ? V{} : s * fma(z, e * s, one);
  return s * fma(z, e * s, one);
}

}  // namespace vdiff::VDIFF_ISA
