// Softmax over keys and its backward, on [key][query] with queries as lanes, so that no sum crosses lanes. Included by
// cpu_kernel.cpp files only.
#pragma once

#include "cpu/attention/matrix.h"

namespace vdiff::VDIFF_ISA {

// The sum of term(u) over the keys as four partial sums: each has fewer terms to round and they do not wait for each
// other.
template <class A, class Term>
inline auto sum_over_keys(int64_t keys, Term term) {
  typename VecOrScalar<A>::V partial[4] = {};
  int64_t u = 0;
  for (; u + 4 <= keys; u += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) partial[i] = partial[i] + term(u + i);
  }
  for (; u < keys; ++u) partial[0] = partial[0] + term(u);
  return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

// 1 / x, and 0 for x = 0, the total of a query whose keys are all masked.
inline vfloat reciprocal(vfloat x) { return select(x == splat(0.0f), splat(0.0f), splat(1.0f) / x); }
inline double reciprocal(double x) { return x == 0 ? 0 : 1 / x; }

// Replaces the products k[u] . q[t] in `weights` by the softmax over u of scale * product + table. Rows of weights and
// of the table are `ld` elements apart. table and key_mask may be null; key_mask[u] = 0 masks key u.
template <class A>
void softmax(A* weights, int64_t ld, int64_t keys, int64_t queries, A scale, const A* table, const uint8_t* key_mask,
             Prefetcher& prefetch) {
  using S = VecOrScalar<A>;
  const A masked = -(A)__builtin_inf();
  for (int64_t t = 0; t < queries; t += S::lanes) {
    typename S::V row_max = S::splat(masked);
    for (int64_t u = 0; u < keys; ++u) {
      typename S::V x = S::load(weights + u * ld + t) * S::splat(scale);
      if (table) x = x + S::load(table + u * ld + t);
      if (key_mask && !key_mask[u]) x = S::splat(masked);
      prefetch.issue_if_wide();
      S::store(weights + u * ld + t, x);
      row_max = max(row_max, x);
    }
    // Where all keys are masked, -inf - -inf would be NaN.
    row_max = max(row_max, S::splat(-(A)1e30));
    const typename S::V total = sum_over_keys<A>(keys, [&](int64_t u) {
      prefetch.issue_if_wide();
      const typename S::V x = exp_nonpositive(S::load(weights + u * ld + t) - row_max);
      S::store(weights + u * ld + t, x);
      return x;
    });
    const typename S::V inverse = reciprocal(total);
    for (int64_t u = 0; u < keys; ++u) {
      prefetch.issue_if_wide();
      // x * inverse, corrected by its remainder: as accurate as a division, for the cost of three products.
      const typename S::V x = S::load(weights + u * ld + t), y = x * inverse;
      S::store(weights + u * ld + t, fma(fma(-y, total, x), inverse, y));
    }
  }
}

// g = weights * (dweights - sum_u weights * dweights) is added to dtable, unless that is null; scale * g replaces
// dweights.
template <class A>
void softmax_backward(const A* weights, A* dweights, A* dtable, int64_t ld, int64_t keys, int64_t queries, A scale) {
  using S = VecOrScalar<A>;
  for (int64_t t = 0; t < queries; t += S::lanes) {
    const typename S::V row_dot = sum_over_keys<A>(
        keys, [&](int64_t u) { return S::load(weights + u * ld + t) * S::load(dweights + u * ld + t); });
    for (int64_t u = 0; u < keys; ++u) {
      const int64_t at = u * ld + t;
      const typename S::V g = S::load(weights + at) * (S::load(dweights + at) - row_dot);
      if (dtable) S::store(dtable + at, S::load(dtable + at) + g);
      S::store(dweights + at, g * S::splat(scale));
    }
  }
}

}  // namespace vdiff::VDIFF_ISA
