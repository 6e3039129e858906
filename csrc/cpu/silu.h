// SiLU (or the identity) on vectors, and its derivative.
#pragma once

#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {

// z or, with kSilu, z / (1 + e^-z), to kDigits binary digits.
template <bool kSilu, int kDigits, class V>
inline V activate(V z) {
  if constexpr (kSilu) return divide<kDigits>(z, 1 + exp_neg<kDigits>(z));
  return z;
}
// The derivative of activate, s + z s (1 - s) with 1 - s = e^-z s, which does not cancel.
template <bool kSilu, int kDigits, class V>
inline V activation_slope(V z) {
  const V one = V{} + 1;
  if constexpr (!kSilu) return one;
  const V e = exp_neg<kDigits>(z), s = divide<kDigits>(one, 1 + e);
  // Only double is not clamped: e^-z overflows below -700, where the slope is zero.
  if constexpr (sizeof(z[0]) == 8) return z < V{} - 700 ? V{} : s * fma(z, e * s, one);
  return s * fma(z, e * s, one);
}

}  // namespace vdiff::VDIFF_ISA
