// Small dense matrix products and transposes of operands that lie in cache. Included by cpu_kernel.cpp only.
#pragma once

#include "cpu/attention/prefetch.h"
#include "cpu/shuffle.h"
#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {

// Accumulators of a tile, as many as the register file holds beside the operands.
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

// Keeps v in a register. On AVX2 GCC would load v again for every product, twice as many loads as the load ports can
// do.
inline double in_register(double v) { return v; }
inline vfloat in_register(vfloat v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// The left operand of a product: element (m, k) is data[m * m_stride + k * k_stride].
template <class A>
struct Left {
  const A* data;
  int64_t m_stride, k_stride;
};

// c = a b for a tile of Rows rows and Vectors vectors of columns. A small tile sums even and odd steps apart, which
// hides the latency of an FMA and halves the rounding error. always_inline: called out of line, the function would wait
// for its arguments, which pass through memory.
template <class A, int kStep, int Rows, int Vectors>
__attribute__((always_inline)) inline void tile(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t inner,
                                                Prefetcher& prefetch) {
  Prefetcher local = prefetch;
  using S = VecOrScalar<A>;
  using V = typename S::V;
  constexpr int kSums = 2 * Rows * Vectors <= kAccumulators ? 2 : 1;
  V sum[kSums][Rows][Vectors] = {};
  const auto step = [&](int64_t k, V(&into)[Rows][Vectors]) __attribute__((always_inline)) {
    if (Vectors == 1 || k % kStep == 0) local.issue();
    // The operand with fewer vectors stays in registers and the other one is loaded vector by vector: together with the
    // sums this just fills the register file.
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
      for (int n = 0; n < Vectors; ++n) row[n] = in_register(S::load(b + k * ldb + n * S::lanes));
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
    step(k + 1, sum[kSums - 1]);
  }
  if (k < inner) step(k, sum[0]);
  prefetch = local;
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < Vectors; ++n) {
      V total = sum[0][m][n];
      if constexpr (kSums == 2) total = total + sum[1][m][n];
      S::store(c + m * ldc + n * S::lanes, total);
    }
  }
}

template <class A, int kStep, int Rows, int Vectors>
void row_tiles(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t rows, int64_t inner,
               Prefetcher& prefetch) {
  for (; rows >= Rows; rows -= Rows, a.data += Rows * a.m_stride, c += Rows * ldc) {
    tile<A, kStep, Rows, Vectors>(a, b, ldb, c, ldc, inner, prefetch);
  }
  if constexpr (Rows > 1) {
    if (rows > 0) row_tiles<A, kStep, Rows / 2, Vectors>(a, b, ldb, c, ldc, rows, inner, prefetch);
  }
}

// c (rows, columns) = a (rows, inner) b (inner, columns); rows of b and c are whole vectors long. Every kStep-th step
// issues one prefetch.
template <class A, int kStep>
void multiply(Left<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t rows, int64_t columns, int64_t inner,
              Prefetcher& prefetch) {
  constexpr int lanes = VecOrScalar<A>::lanes;
  int64_t vectors = (columns + lanes - 1) / lanes;
  for (; vectors >= 4; vectors -= 4, b += 4 * lanes, c += 4 * lanes) {
    row_tiles<A, kStep, tile_rows(4), 4>(a, b, ldb, c, ldc, rows, inner, prefetch);
  }
  if (vectors == 3) row_tiles<A, kStep, tile_rows(3), 3>(a, b, ldb, c, ldc, rows, inner, prefetch);
  if (vectors == 2) row_tiles<A, kStep, tile_rows(2), 2>(a, b, ldb, c, ldc, rows, inner, prefetch);
  if (vectors == 1) row_tiles<A, kStep, tile_rows(1), 1>(a, b, ldb, c, ldc, rows, inner, prefetch);
}

// One step of the recursive transpose: swaps the off-diagonal blocks of width Step of two rows.
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

// to[j][i] = from[i][j] for i < rows, j < columns. The rows of `to` are written up to whole vectors; what lies past
// element rows - 1 is undefined.
inline void transpose(const float* from, int64_t ldf, float* to, int64_t ldt, int64_t rows, int64_t columns,
                      Prefetcher& prefetch) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const int64_t height = rows - i < kLanes ? rows - i : kLanes;
    for (int64_t j = 0; j < columns; j += kLanes) {
      vfloat block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = load(from + (i + (r < height ? r : 0)) * ldf + j);
      transpose_lanes<kLanes / 2>(block);
      for (int r = 0; r < 4; ++r) prefetch.issue_if_wide();
      const int64_t width = columns - j < kLanes ? columns - j : kLanes;
      for (int64_t r = 0; r < width; ++r) store(to + (j + r) * ldt + i, block[r]);
    }
  }
}
inline void transpose(const double* from, int64_t ldf, double* to, int64_t ldt, int64_t rows, int64_t columns,
                      Prefetcher&) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * ldt + i] = from[i * ldf + j];
  }
}

}  // namespace vdiff::VDIFF_ISA
