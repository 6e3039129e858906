// Sums over lanes and the exponentials, each with its error.
#pragma once

#include "cpu/vec/types.h"

namespace vdiff::VDIFF_ISA {

// Sum of the lanes in pairs, a fixed order.
template <class V>
inline auto reduce_sum(V v) {
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
inline float reduce_sum(vfloat v) {
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

// e^x to 1 ulp or so on [-87.3, 88.7], 0 below, inf above: 2^k * p(r), |r| <= ln2/2 (degree-6 Taylor-minimax).
inline vfloat exp_1ulp(vfloat x) {
  const vfloat clamped = min(max(x, splat(-87.33654f)), splat(88.72283f));
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
  const vfloat scale1 = as_float((half + 127) << 23), scale2 = as_float((whole - half + 127) << 23);
  vfloat y = p * scale1 * scale2;
  y = select(x < splat(-87.33654f), splat(0.0f), y);
  y = select(x > splat(88.72283f), splat(__builtin_inff()), y);
  return select(x != x, x, y);
}

#if defined(__AVX512F__)
// Bits of 2^(i / 32) as float, less i << 18.
constexpr vint kExp2Table[2] = {
    {0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0, 0x3f7837f0,
     0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6},
    {0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e, 0x3f7744fd,
     0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3}};
#elif defined(__AVX2__)
// Bits of 2^(i / 8) as float, less i << 20.
constexpr vint kExp2Table = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                             0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#endif

// e^x for x <= 0 to an ulp or so, 0 where it would not be a normal number; a NaN stays one.
inline double exp_nonpositive(double x) { return __builtin_exp(x); }
inline vfloat exp_nonpositive(vfloat x) {
#if defined(__AVX512F__)
  // As exp_neg(), whose clamp would lose a NaN.
  const vfloat low = splat(-87.3f), magic = splat(393216.0f), clamped = max(low, x);
  const vfloat shifted = fma(clamped, splat(1.44269504f), magic);
  const vfloat r = fma(shifted - magic, splat(-0.693147182f), clamped);
  const __m512i index = (__m512i)shifted;
  const __m512i mantissa = _mm512_permutex2var_epi32((__m512i)kExp2Table[0], index, (__m512i)kExp2Table[1]);
  const vfloat power = (vfloat)_mm512_add_epi32(mantissa, _mm512_slli_epi32(index, 18));
  const vfloat slope = fma(fma(splat(0.166666667f), r, splat(0.5f)), r, splat(1.0f));
  return select(x < low, splat(0.0f), fma(slope * r, power, power));
#elif defined(__AVX2__)
  const vfloat low = splat(-87.0f), magic = splat(1572864.0f), clamped = max(low, x);
  const vfloat shifted = fma(clamped, splat(1.44269504f), magic);
  const vfloat r = fma(shifted - magic, splat(-0.693147182f), clamped);
  const __m256i index = (__m256i)shifted, mantissa = _mm256_permutevar8x32_epi32((__m256i)kExp2Table, index);
  const vfloat power = (vfloat)_mm256_add_epi32(mantissa, _mm256_slli_epi32(index, 20));
  const vfloat slope = fma(fma(splat(0.16666857f), r, splat(0.50006446f)), r * r, r);
  return select(x < low, splat(0.0f), fma(power, slope, power));
#else
  return exp_1ulp(x);
#endif
}

// e^-x for 1 / (1 + e^-x), x clamped to where that is a normal number; a NaN is clamped too, and comes back as callers
// multiply by x. kDigits are the result's: up to 11, 16 bits in all, 6e-5 relative will do instead of an ulp.
//
// With a table -x = k ln 2 + r, k a multiple of 1/32 or 1/8, whose fraction picks 2^k's mantissa from registers. ln 2
// is in one piece: its 2e-9 times k shows only where e^-x is so large that 1 / (1 + e^-x) vanishes.
template <int kDigits>
inline vfloat exp_neg(vfloat x) {
#if defined(__AVX512F__)
  const __m512 clamped = _mm512_range_ps((__m512)x, _mm512_set1_ps(87.0f), 2);
  const __m512 magic = _mm512_set1_ps(393216.0f);
  const __m512 shifted = _mm512_fnmadd_ps(clamped, _mm512_set1_ps(1.44269504f), magic);
  const __m512 k = _mm512_sub_ps(shifted, magic);
  const vfloat r = (vfloat)_mm512_fnmsub_ps(k, _mm512_set1_ps(0.693147182f), clamped);
  const __m512i mantissa =
      _mm512_permutex2var_epi32((__m512i)kExp2Table[0], _mm512_castps_si512(shifted), (__m512i)kExp2Table[1]);
  const vfloat power = (vfloat)_mm512_add_epi32(mantissa, _mm512_slli_epi32(_mm512_castps_si512(shifted), 18));
  // e^r - 1 on |r| <= ln2 / 64: 6e-5 off by a line, 6e-10 by a cubic (a parabola's 5e-8 shows in the gradients).
  if constexpr (kDigits <= 11) return fma(power, r, power);
  const vfloat square = fma(splat(0.166666667f), r, splat(0.5f));
  return fma(power, fma(square, r, splat(1.0f)) * r, power);
#elif defined(__AVX2__)
  const __m256 clamped = (__m256)min(max(x, splat(-87.0f)), splat(87.0f));
  const __m256 magic = _mm256_set1_ps(1572864.0f);
  const __m256 shifted = _mm256_fnmadd_ps(clamped, _mm256_set1_ps(1.44269504f), magic);
  const __m256 k = _mm256_sub_ps(shifted, magic);
  const vfloat r = (vfloat)_mm256_fnmsub_ps(k, _mm256_set1_ps(0.693147182f), clamped);
  const __m256i mantissa = _mm256_permutevar8x32_epi32((__m256i)kExp2Table, _mm256_castps_si256(shifted));
  const vfloat power = (vfloat)_mm256_add_epi32(mantissa, _mm256_slli_epi32(_mm256_castps_si256(shifted), 20));
  // e^r - 1 on |r| <= ln2 / 16: 1.4e-5 off by a parabola, 2.6e-8 by a cubic.
  if constexpr (kDigits <= 11) return fma(power, fma(splat(0.49976555f), r * r, r), power);
  return fma(power, fma(fma(splat(0.16666857f), r, splat(0.50006446f)), r * r, r), power);
#else
  const vfloat clamped = min(max(-x, splat(-87.0f)), splat(87.0f));
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
  return as_float(as_int(p) + (as_int(shifted) << 23));
#endif
}
template <int kDigits>
inline vdouble exp_neg(vdouble x) {
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

}  // namespace vdiff::VDIFF_ISA
