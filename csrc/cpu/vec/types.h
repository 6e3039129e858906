// Vector and element types, and the operations of one instruction. cpu/vec.h lists all of them.
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

struct bf16 {
  uint16_t raw;
};
struct fp16 {
  uint16_t raw;
};

// The vector that elements of type T are computed in: float for float, bf16 and fp16, double for double.
template <class T>
struct Vec {
  using V = vfloat;
  using Real = float;
  static constexpr int lanes = kLanes;
};
template <>
struct Vec<double> {
  using V = vdouble;
  using Real = double;
  static constexpr int lanes = kDoubleLanes;
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

// x - 0 is x for every x, so no subtraction is left; 0 + x is not (x = -0).
inline vfloat splat(float x) { return x - vfloat{}; }
inline vint as_int(vfloat x) { return (vint)x; }
inline vfloat as_float(vint x) { return (vfloat)x; }
// Lane-wise mask ? a : b; comparisons of vectors give all-ones or zero.
inline vfloat select(vint mask, vfloat a, vfloat b) { return (vfloat)((mask & (vint)a) | (~mask & (vint)b)); }
// b where a comparison fails, so for a NaN too.
#if defined(__AVX512F__)
inline vfloat max(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
inline vfloat min(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline vfloat max(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
inline vfloat min(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline vfloat max(vfloat a, vfloat b) { return select(a > b, a, b); }
inline vfloat min(vfloat a, vfloat b) { return select(a < b, a, b); }
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
inline vdouble fma(vdouble a, vdouble b, vdouble c) { return a * b + c; }
inline double fma(double a, double b, double c) { return a * b + c; }
inline double max(double a, double b) { return a > b ? a : b; }
// |x| and x clamped to [-limit, limit]; a NaN stays a NaN.
inline vfloat abs(vfloat x) { return as_float(as_int(x) & 0x7fffffff); }
inline double abs(double x) { return __builtin_fabs(x); }
inline vfloat clamp(vfloat x, vfloat limit) { return select(x > limit, limit, select(x < -limit, -limit, x)); }
inline double clamp(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }

}  // namespace vdiff::VDIFF_ISA
