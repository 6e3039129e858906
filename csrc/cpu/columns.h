// Rows as vectors with a tail, and sums over rows per column: what the kernels of rows and norms share.
#pragma once

#include "cpu/lanes.h"
#include "cpu/spans.h"

namespace vdiff::VDIFF_ISA {

template <class T>
struct Columns {
  using V = typename Lanes<T>::Vector;
  using Real = typename Lanes<T>::Real;
  static constexpr int kCount = Lanes<T>::count;

  template <class U>
  static inline V get(const U* p, int lanes) {
    return lanes == kCount ? load(p) : load_first(p, lanes);
  }
  template <class U>
  static inline void put(U* p, V v, int lanes) {
    lanes == kCount ? store(p, v) : store_first(p, v, lanes);
  }
  // v with zero after the first lanes.
  static inline V first(V v, int lanes) {
    if (lanes == kCount) return v;
    Real held[kCount];
    store_first(held, v, lanes);
    return load_first(held, lanes);
  }

  template <class Body>
  static inline void each_vector(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kCount <= n; i += kCount) body(i, kCount);
    if (i < n) body(i, static_cast<int>(n - i));
  }
  // As each_vector, and body's third argument counts 0..3: for sums that would wait for their own additions.
  template <class Body>
  static inline void each_vector_of_four(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + 4 * kCount <= n; i += 4 * kCount) {
      body(i, kCount, 0), body(i + kCount, kCount, 1), body(i + 2 * kCount, kCount, 2), body(i + 3 * kCount, kCount, 3);
    }
    for (; i + kCount <= n; i += kCount) body(i, kCount, 0);
    if (i < n) body(i, static_cast<int>(n - i), 1);
  }
  static inline Real total(const V (&v)[4]) { return sum_lanes((v[0] + v[1]) + (v[2] + v[3])); }

  // Reals of one column sum in scratch: whole vectors.
  static int64_t padded(int64_t width) { return (width + kCount - 1) / kCount * kCount; }
  static void clear(Real* sums, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sums[i] = 0;
  }
  static void add(double* total, const Real* part, int64_t n) {
    for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(part[i]);
  }
};

// y[i] = body(i, lanes) for whole vectors, then for the tail; in pairs where one store of two is cheaper.
template <bool kPastCache, class T, class Body>
inline void transform(T* y, int64_t n, Body body) {
  constexpr int count = Lanes<T>::count;
  int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    for (; i + 2 * count <= n; i += 2 * count) store_two<kPastCache>(y + i, body(i, count), body(i + count, count));
  }
  Columns<T>::each_vector(
      n - i, [&](int64_t at, int lanes) { store_output<kPastCache>(y + i + at, body(i + at, lanes), lanes); });
}

inline void narrow(double* p, double x) { *p = x; }
template <class T>
inline void narrow(T* p, double x) {
  from_float(p, static_cast<float>(x));
}

}  // namespace vdiff::VDIFF_ISA
