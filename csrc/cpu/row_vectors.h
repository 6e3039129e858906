// Loops over the vectors of a row, and sums over rows per column: what the kernels of rows and norms share.
#pragma once

#include "cpu/spans.h"
#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {

template <class T>
struct RowVectors {
  using V = typename Vec<T>::V;
  using Real = typename Vec<T>::Real;
  static constexpr int kCount = Vec<T>::lanes;

  // body(i, n) for the vectors of a row, n < kCount for the last one only.
  template <class Body>
  static inline void each_vector(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kCount <= n; i += kCount) body(i, kCount);
    if (i < n) body(i, static_cast<int>(n - i));
  }
  // The same with body(i, n, j), j = 0..3 in turn: four sums overlap, where one would wait for its own additions.
  template <class Body>
  static inline void each_vector_unrolled(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + 4 * kCount <= n; i += 4 * kCount) {
      body(i, kCount, 0), body(i + kCount, kCount, 1), body(i + 2 * kCount, kCount, 2), body(i + 3 * kCount, kCount, 3);
    }
    for (; i + kCount <= n; i += kCount) body(i, kCount, 0);
    if (i < n) body(i, static_cast<int>(n - i), 1);
  }
  static inline Real reduce_sum4(const V (&v)[4]) { return VDIFF_ISA::reduce_sum((v[0] + v[1]) + (v[2] + v[3])); }

  // The length of a row of sums in scratch: `width` rounded up to whole vectors.
  static int64_t padded(int64_t width) { return (width + kCount - 1) / kCount * kCount; }
  static void clear(Real* sums, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sums[i] = 0;
  }
  static void add(double* total, const Real* part, int64_t n) {
    for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(part[i]);
  }
};

// y[i] = body(i, n) for the vectors of a row, n < lanes for the last one only. Two-byte types are stored in pairs,
// which takes fewer instructions.
template <bool kStream, class T, class Body>
inline void transform(T* y, int64_t n, Body body) {
  constexpr int count = Vec<T>::lanes;
  int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    for (; i + 2 * count <= n; i += 2 * count) store_pair<kStream>(y + i, body(i, count), body(i + count, count));
  }
  RowVectors<T>::each_vector(
      n - i, [&](int64_t at, int lanes) { store_or_stream<kStream>(y + i + at, body(i + at, lanes), lanes); });
}

// *p = x, rounded to the type of *p.
inline void store_rounded(double* p, double x) { *p = x; }
template <class T>
inline void store_rounded(T* p, double x) {
  from_float(p, static_cast<float>(x));
}

}  // namespace vdiff::VDIFF_ISA
