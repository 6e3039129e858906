// Small dense products and transposes in cache, on vectors of any instruction set. Included by cpu_kernel.cpp only.
#pragma once

#include "cpu/shuffle.h"
#include "cpu/simd.h"

namespace vdiff::VDIFF_ISA {

// float64 exists for gradient checks: one lane, the same code.
inline double fma(double a, double b, double c) { return a * b + c; }
inline double vmax(double a, double b) { return a > b ? a : b; }
inline double vexp(double x) { return __builtin_exp(x); }

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
                        : kAccumulators / vectors;
}

// Left operand: element (m, k) at data[m * m_stride + k * k_stride].
template <class A>
struct Left {
  const A* data;
  int64_t m_stride, k_stride;
};

// c (Rows, Vectors) = a b; small tiles run two chains, for the latency of an FMA and for half the rounding.
template <class A, int Rows, int Vectors>
inline void tile(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t inner) {
  using S = Simd<A>;
  using V = typename S::V;
  constexpr int kChains = 2 * Rows * Vectors <= kAccumulators ? 2 : 1;
  V sum[kChains][Rows][Vectors] = {};
  const auto step = [&](int64_t k, V(&into)[Rows][Vectors]) {
    V row[Vectors];
#pragma GCC unroll 8
    for (int n = 0; n < Vectors; ++n) row[n] = S::load(b + k * ldb + n * S::lanes);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const V left = S::splat(a.data[m * a.m_stride + k * a.k_stride]);
#pragma GCC unroll 8
      for (int n = 0; n < Vectors; ++n) into[m][n] = fma(left, row[n], into[m][n]);
    }
  };
  int64_t k = 0;
  for (; k + kChains <= inner; k += kChains) {
#pragma GCC unroll 2
    for (int chain = 0; chain < kChains; ++chain) step(k + chain, sum[chain]);
  }
  if (k < inner) step(k, sum[0]);
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

template <class A, int Rows, int Vectors>
void row_tiles(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t rows, int64_t inner) {
  for (; rows >= Rows; rows -= Rows, a.data += Rows * a.m_stride, c += Rows * ldc) {
    tile<A, Rows, Vectors>(a, b, ldb, c, ldc, inner);
  }
  if constexpr (Rows > 1) {
    if (rows > 0) row_tiles<A, Rows / 2, Vectors>(a, b, ldb, c, ldc, rows, inner);
  }
}

// c (rows, columns) = a (rows, inner) b (inner, columns); columns are rounded up to whole vectors in b and c.
template <class A>
void multiply(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t rows, int64_t columns, int64_t inner) {
  constexpr int lanes = Simd<A>::lanes;
  int64_t vectors = (columns + lanes - 1) / lanes;
  for (; vectors >= 4; vectors -= 4, b += 4 * lanes, c += 4 * lanes) {
    row_tiles<A, tile_rows(4), 4>(a, b, ldb, c, ldc, rows, inner);
  }
  if (vectors == 3) row_tiles<A, tile_rows(3), 3>(a, b, ldb, c, ldc, rows, inner);
  if (vectors == 2) row_tiles<A, tile_rows(2), 2>(a, b, ldb, c, ldc, rows, inner);
  if (vectors == 1) row_tiles<A, tile_rows(1), 1>(a, b, ldb, c, ldc, rows, inner);
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
inline void transpose(const float* from, int64_t ldf, float* to, int64_t ldt, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const int64_t height = rows - i < kLanes ? rows - i : kLanes;
    for (int64_t j = 0; j < columns; j += kLanes) {
      vfloat block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = load(from + (i + (r < height ? r : 0)) * ldf + j);
      transpose_lanes<kLanes / 2>(block);
      const int64_t width = columns - j < kLanes ? columns - j : kLanes;
      for (int64_t r = 0; r < width; ++r) store(to + (j + r) * ldt + i, block[r]);
    }
  }
}
inline void transpose(const double* from, int64_t ldf, double* to, int64_t ldt, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * ldt + i] = from[i * ldf + j];
  }
}

}  // namespace vdiff::VDIFF_ISA
