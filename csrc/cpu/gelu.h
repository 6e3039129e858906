// GELU on vectors: by the normal distribution function, and by tanh.
#pragma once

#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {

template <class V>
struct Normal {
  V cdf, pdf;
};

// Phi(-t) e^(t^2/2) is a polynomial in 1 / (1 + 0.35 t) to 4e-8 on [0, 13.3]: accurate in both tails, where 1 + erf(x)
// cancels.
template <int kDigits>
inline Normal<vfloat> normal(vfloat x) {
  const vfloat t = min(max(x, -x), splat(14.0f));
  const vfloat e = exp_neg<kDigits>(t * t * 0.5f);
  const vfloat u = divide<kDigits>(splat(1.0f), fma(t, splat(0.35f), splat(1.0f)));
  vfloat p = splat(-0.02911511943f);
  p = fma(p, u, splat(0.1438189085f));
  p = fma(p, u, splat(-0.2553919952f));
  p = fma(p, u, splat(0.1587976417f));
  p = fma(p, u, splat(-0.02284413235f));
  p = fma(p, u, splat(0.1053924281f));
  p = fma(p, u, splat(0.1198630226f));
  p = fma(p, u, splat(0.1398575704f));
  p = fma(p, u, splat(0.1396216599f));
  const vfloat tail = p * u * e;
  return {select(x > splat(0.0f), 1.0f - tail, tail), e * 0.39894228f};
}
template <int kDigits>
inline Normal<vdouble> normal(vdouble x) {
  Normal<vdouble> result;
  for (int i = 0; i < kDoubleLanes; ++i) {
    result.cdf[i] = 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440);
    result.pdf[i] = 0.39894228040143267794 * __builtin_exp(-0.5 * x[i] * x[i]);
  }
  return result;
}

// GELU(z) = z / (1 + e^-v), v = sqrt(8/pi) (z + 0.044715 z^3): z/2 (1 + tanh(v/2)) without its cancellation. z is
// clamped where e^-v is nothing beside 1, or 1 beside e^-v, and z^3 does not overflow.
template <class V>
struct TanhGelu {
  V z, clamped, square;
  explicit inline TanhGelu(V z) : z(z) {
    const V limit = V{} + (sizeof(z[0]) == 8 ? 20 : 12);
    clamped = z < limit ? (z > -limit ? z : -limit) : limit;
    square = clamped * clamped;
  }
  inline V exponent() const { return clamped * fma(square, V{} + kCubic, V{} + kLinear); }
  template <int kDigits>
  inline V value() const {
    return divide<kDigits>(z, 1 + exp_neg<kDigits>(exponent()));
  }
  // s + z s (1 - s) v', s = 1 / (1 + e^-v), with 1 - s = e^-v s; a NaN stays one.
  template <int kDigits>
  inline V slope() const {
    const V e = exp_neg<kDigits>(exponent()), s = divide<kDigits>(V{} + 1, 1 + e);
    const V dv = fma(square, V{} + 3 * kCubic, V{} + kLinear);
    const V slope = s * fma(clamped * dv, e * s, V{} + 1);
    return z == z ? slope : z;
  }
  using Real = decltype(z[0] + z[0]);
  static constexpr Real kLinear = Real(1.59576912160573071175978), kCubic = Real(0.0713548162726009287);
};

}  // namespace vdiff::VDIFF_ISA
