// Small dense products and transposes in cache, on vectors of any instruction set. Included by cpu_kernel.cpp only.
#pragma once

#include "cpu/attention/prefetch.h"
#include "cpu/lanes.h"
#include "cpu/shuffle.h"
#include "cpu/simd.h"

namespace vdiff::VDIFF_ISA {

// float64 exists for gradient checks: one lane, the same code.
inline double fma(double a, double b, double c) { return a * b + c; }
inline double vmax(double a, double b) { return a > b ? a : b; }

// e^x for x <= 0 to an ulp or so, 0 where it would not be a normal number; a NaN stays one.
inline double exp_negative(double x) { return __builtin_exp(x); }
inline vfloat exp_negative(vfloat x) {
#if defined(__AVX512F__)
  // As exp_minus() of lanes.h, whose clamp would lose a NaN.
  const vfloat low = splat(-87.3f), magic = splat(393216.0f), clamped = vmax(low, x);
  const vfloat shifted = fma(clamped, splat(1.44269504f), magic);
  const vfloat r = fma(shifted - magic, splat(-0.693147182f), clamped);
  const __m512i index = (__m512i)shifted;
  const __m512i mantissa = _mm512_permutex2var_epi32((__m512i)kPowers[0], index, (__m512i)kPowers[1]);
  const vfloat power = (vfloat)_mm512_add_epi32(mantissa, _mm512_slli_epi32(index, 18));
  const vfloat slope = fma(fma(splat(0.166666667f), r, splat(0.5f)), r, splat(1.0f));
  return select(x < low, splat(0.0f), fma(slope * r, power, power));
#elif defined(__AVX2__)
  const vfloat low = splat(-87.0f), magic = splat(1572864.0f), clamped = vmax(low, x);
  const vfloat shifted = fma(clamped, splat(1.44269504f), magic);
  const vfloat r = fma(shifted - magic, splat(-0.693147182f), clamped);
  const __m256i index = (__m256i)shifted, mantissa = _mm256_permutevar8x32_epi32((__m256i)kPowers, index);
  const vfloat power = (vfloat)_mm256_add_epi32(mantissa, _mm256_slli_epi32(index, 20));
  const vfloat slope = fma(fma(splat(0.16666857f), r, splat(0.50006446f)), r * r, r);
  return select(x < low, splat(0.0f), fma(power, slope, power));
#else
  return vexp(x);
#endif
}

template <class A>
struct Simd;
template <>
struct Simd<float> {
  using V = vfloat;
  static constexpr int lanes = kLanes;
  static V load(const float* p) { return vdiff::VDIFF_ISA::load(p); }
  static void store(float* p, V v) { vdiff::VDIFF_ISA::store(p, v); }
  static V splat(float x) { return x - V{}; }
};
template <>
struct Simd<double> {
  using V = double;
  static constexpr int lanes = 1;
  static V load(const double* p) { return *p; }
  static void store(double* p, V v) { *p = v; }
  static V splat(double x) { return x; }
};

// What a register file holds: accumulators of a tile.
#if defined(__AVX512F__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif
constexpr int tile_rows(int vectors) {
  return vectors == 1   ? (kAccumulators >= 24 ? 16 : 8)
         : vectors == 2 ? (kAccumulators >= 24 ? 8 : 4)
         : vectors == 3 ? kAccumulators / 3
                        : (kAccumulators >= 24 ? 4 : 3);
}

// Keeps v in a register: GCC loads it again for every product that it goes into, twice what the load ports can do.
inline double held(double v) { return v; }
inline vfloat held(vfloat v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// Left operand: element (m, k) at data[m * m_stride + k * k_stride].
template <class A>
struct Left {
  const A* data;
  int64_t m_stride, k_stride;
};

// c (Rows, Vectors) = a b; small tiles run two chains, for the latency of an FMA and for half the rounding. As a call
// it waits for its own arguments, which go through memory.
template <class A, int Every, int Rows, int Vectors>
__attribute__((always_inline)) inline void tile(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t inner,
                                                Ahead& ahead) {
  Ahead local = ahead;
  using S = Simd<A>;
  using V = typename S::V;
  constexpr int kChains = 2 * Rows * Vectors <= kAccumulators ? 2 : 1;
  V sum[kChains][Rows][Vectors] = {};
  const auto step = [&](int64_t k, V(&into)[Rows][Vectors]) __attribute__((always_inline)) {
    if (Vectors == 1 || k % Every == 0) local.ask();
    // The shorter side is held and the longer one loaded piece by piece: with the sums it just fills the registers.
    if constexpr (Rows < Vectors) {
      V left[Rows];
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) left[m] = S::splat(a.data[m * a.m_stride + k * a.k_stride]);
#pragma GCC unroll 8
      for (int n = 0; n < Vectors; ++n) {
        const V row = S::load(b + k * ldb + n * S::lanes);
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m) into[m][n] = fma(left[m], row, into[m][n]);
      }
    } else {
      V row[Vectors];
#pragma GCC unroll 8
      for (int n = 0; n < Vectors; ++n) row[n] = held(S::load(b + k * ldb + n * S::lanes));
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const V left = S::splat(a.data[m * a.m_stride + k * a.k_stride]);
#pragma GCC unroll 8
        for (int n = 0; n < Vectors; ++n) into[m][n] = fma(left, row[n], into[m][n]);
      }
    }
  };
  int64_t k = 0;
  for (; k + 2 <= inner; k += 2) {
    step(k, sum[0]);
    step(k + 1, sum[kChains - 1]);
  }
  if (k < inner) step(k, sum[0]);
  ahead = local;
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < Vectors; ++n) {
      V total = sum[0][m][n];
      if constexpr (kChains == 2) total = total + sum[1][m][n];
      S::store(c + m * ldc + n * S::lanes, total);
    }
  }
}

template <class A, int Every, int Rows, int Vectors>
void row_tiles(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t rows, int64_t inner, Ahead& ahead) {
  for (; rows >= Rows; rows -= Rows, a.data += Rows * a.m_stride, c += Rows * ldc) {
    tile<A, Every, Rows, Vectors>(a, b, ldb, c, ldc, inner, ahead);
  }
  if constexpr (Rows > 1) {
    if (rows > 0) row_tiles<A, Every, Rows / 2, Vectors>(a, b, ldb, c, ldc, rows, inner, ahead);
  }
}

// c (rows, columns) = a (rows, inner) b (inner, columns); columns are rounded up to whole vectors in b and c. A cache
// line is asked for every so many steps.
template <class A, int Every>
void multiply(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t rows, int64_t columns, int64_t inner,
              Ahead& ahead) {
  constexpr int lanes = Simd<A>::lanes;
  int64_t vectors = (columns + lanes - 1) / lanes;
  for (; vectors >= 4; vectors -= 4, b += 4 * lanes, c += 4 * lanes) {
    row_tiles<A, Every, tile_rows(4), 4>(a, b, ldb, c, ldc, rows, inner, ahead);
  }
  if (vectors == 3) row_tiles<A, Every, tile_rows(3), 3>(a, b, ldb, c, ldc, rows, inner, ahead);
  if (vectors == 2) row_tiles<A, Every, tile_rows(2), 2>(a, b, ldb, c, ldc, rows, inner, ahead);
  if (vectors == 1) row_tiles<A, Every, tile_rows(1), 1>(a, b, ldb, c, ldc, rows, inner, ahead);
}

// One step of the recursive transpose: swaps the off-diagonal blocks of width `Step` of two rows.
template <int Step, int... I>
inline void swap_blocks(vfloat& a, vfloat& b, Indices<I...>) {
  const vfloat low = __builtin_shufflevector(a, b, (I & Step ? kLanes + I - Step : I)...);
  b = __builtin_shufflevector(a, b, (I & Step ? kLanes + I : I + Step)...);
  a = low;
}

template <int Step>
inline void transpose_lanes(vfloat (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & Step)) swap_blocks<Step>(rows[i], rows[i + Step], MakeIndices<kLanes>::type());
  }
  if constexpr (Step > 1) transpose_lanes<Step / 2>(rows);
}

// to[j][i] = from[i][j] for i < rows, j < columns; `to` also gets undefined lanes up to whole vectors of rows.
inline void transpose(const float* from, int64_t ldf, float* to, int64_t ldt, int64_t rows, int64_t columns,
                      Ahead& ahead) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const int64_t height = rows - i < kLanes ? rows - i : kLanes;
    for (int64_t j = 0; j < columns; j += kLanes) {
      vfloat block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = load(from + (i + (r < height ? r : 0)) * ldf + j);
      transpose_lanes<kLanes / 2>(block);
      for (int r = 0; r < 4; ++r) ahead.ask_aside();
      const int64_t width = columns - j < kLanes ? columns - j : kLanes;
      for (int64_t r = 0; r < width; ++r) store(to + (j + r) * ldt + i, block[r]);
    }
  }
}
inline void transpose(const double* from, int64_t ldf, double* to, int64_t ldt, int64_t rows, int64_t columns, Ahead&) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * ldt + i] = from[i * ldf + j];
  }
}

}  // namespace vdiff::VDIFF_ISA
