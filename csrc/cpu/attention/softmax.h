// Softmax over keys and its backward, on [key][query] with queries as lanes: no sum across lanes. Included by the CPU
// kernels only.
#pragma once

#include "cpu/attention/matrix.h"

namespace vdiff::VDIFF_ISA {

// Sum of term(u) over the keys, in four chains: shorter chains round less, and do not wait for each other.
template <class A, class Term>
inline auto sum_keys(int64_t keys, Term term) {
  typename Simd<A>::V chain[4] = {};
  int64_t u = 0;
  for (; u + 4 <= keys; u += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) chain[i] = chain[i] + term(u + i);
  }
  for (; u < keys; ++u) chain[0] = chain[0] + term(u);
  return (chain[0] + chain[1]) + (chain[2] + chain[3]);
}

// 1 / x, and 0 for 0: a query without keys.
inline vfloat reciprocal(vfloat x) { return select(x == splat(0.0f), splat(0.0f), splat(1.0f) / x); }
inline double reciprocal(double x) { return x == 0 ? 0 : 1 / x; }

// Products k[u] . q[t] become weights, the softmax over u of scale * product + table; rows `ld` apart, also of the
// table.
template <class A>
void softmax(A* weights, int64_t ld, int64_t keys, int64_t queries, A scale, const A* table, const uint8_t* seen,
             Ahead& ahead) {
  using S = Simd<A>;
  const A hidden = -(A)__builtin_inf();
  for (int64_t t = 0; t < queries; t += S::lanes) {
    typename S::V top = S::splat(hidden);
    for (int64_t u = 0; u < keys; ++u) {
      typename S::V x = S::load(weights + u * ld + t) * S::splat(scale);
      if (table) x = x + S::load(table + u * ld + t);
      if (seen && !seen[u]) x = S::splat(hidden);
      ahead.ask_aside();
      S::store(weights + u * ld + t, x);
      top = vmax(top, x);
    }
    // A query that sees no key: subtracting -inf from -inf would be NaN.
    top = vmax(top, S::splat(-(A)1e30));
    const typename S::V total = sum_keys<A>(keys, [&](int64_t u) {
      ahead.ask_aside();
      const typename S::V x = exp_negative(S::load(weights + u * ld + t) - top);
      S::store(weights + u * ld + t, x);
      return x;
    });
    const typename S::V inverse = reciprocal(total);
    for (int64_t u = 0; u < keys; ++u) {
      ahead.ask_aside();
      // x * inverse, then the remainder once: the rounding of a division at the cost of two multiplications.
      const typename S::V x = S::load(weights + u * ld + t), y = x * inverse;
      S::store(weights + u * ld + t, fma(fma(-y, total, x), inverse, y));
    }
  }
}

// g = weights * (dweights - sum_u weights * dweights) is added to dtable; scale * g takes the place of dweights.
template <class A>
void softmax_backward(const A* weights, A* dweights, A* dtable, int64_t ld, int64_t keys, int64_t queries, A scale) {
  using S = Simd<A>;
  for (int64_t t = 0; t < queries; t += S::lanes) {
    const typename S::V along =
        sum_keys<A>(keys, [&](int64_t u) { return S::load(weights + u * ld + t) * S::load(dweights + u * ld + t); });
    for (int64_t u = 0; u < keys; ++u) {
      const int64_t at = u * ld + t;
      const typename S::V g = S::load(weights + at) * (S::load(dweights + at) - along);
      if (dtable) S::store(dtable + at, S::load(dtable + at) + g);
      S::store(dweights + at, g * S::splat(scale));
    }
  }
}

}  // namespace vdiff::VDIFF_ISA
