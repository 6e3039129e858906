// The target of the prediction, the weight of a sample and the scale of its gradient, for host and device.
#pragma once

#include "common/schedule.h"

namespace vdiff {

// In the order of vdiff_fast/ops/_common/targets.py.
enum class LossTarget : int { noise = 0, v = 1, x0 = 2, flow = 3 };

// The input by which the loss is differentiated.
enum class LossInput : int { prediction = 0, x0 = 1, noise = 2 };

struct LossOptions {
  LossTarget target;
  LossInput of;
  bool min_snr, huber;
  double gamma, delta;
};

VDIFF_HOST_DEVICE bool needs_noise(LossTarget target) { return target != LossTarget::x0; }
VDIFF_HOST_DEVICE bool needs_x0(LossTarget target) { return target != LossTarget::noise; }

// The target is y = p * x0 + q * noise.
template <class A>
struct TargetMix {
  A p, q;
};

// c.signal and c.noise_scale are those of the sample's step.
template <class A>
VDIFF_HOST_DEVICE TargetMix<A> target_mix(LossTarget target, const Coefficients<A>& c) {
  switch (target) {
    case LossTarget::noise: return {A(0), A(1)};
    case LossTarget::v: return {-c.noise_scale, c.signal};
    case LossTarget::x0: return {A(1), A(0)};
    case LossTarget::flow: return {A(-1), A(1)};
  }
  return {};
}

// The loss of a sample is weight * the mean of its elements' losses. The weight and the scale of the gradient, one
// number per sample, are computed in double and rounded once.
template <class A>
struct LossTerms {
  TargetMix<A> mix;
  double weight;
};

// Min-SNR: min(snr, gamma) * (dx0 / dprediction)^2, with dx0 the error of x0 that an error of the prediction makes. A
// NaN stays a NaN. Where the target does not determine x0 this is the limit: 1 without a signal, gamma without noise.
VDIFF_HOST_DEVICE double loss_weight(const Coefficients<double>& c, const LossOptions& o) {
  const double a = c.signal, b = c.noise_scale;
  if (!o.min_snr) return a == a ? 1.0 : a;
  const double ratio = a / b, snr = ratio * ratio, clipped = snr > o.gamma ? o.gamma : snr;
  const auto mix = target_mix(o.target, c);
  const double determinant = a * mix.q - b * mix.p, slope = b / determinant;
  if (determinant == 0.0) return b == 0.0 ? clipped : 1.0;
  return clipped * (slope * slope);
}

template <class A>
VDIFF_HOST_DEVICE LossTerms<A> loss_terms(const ScheduleTables& schedule, int64_t sample, const LossOptions& o) {
  return {target_mix(o.target, coefficients<A>(schedule, sample)),
          loss_weight(coefficients<double>(schedule, sample), o)};
}

// What the derivative of an element's loss by its error is multiplied by, for the gradient by the input `o.of`.
template <class A>
VDIFF_HOST_DEVICE A gradient_scale(const LossTerms<A>& terms, const LossOptions& o, A upstream, double share) {
  const double scale = (o.huber ? 1.0 : 2.0) * terms.weight * upstream * share;
  return static_cast<A>(o.of == LossInput::prediction ? scale
                                                      : -scale * (o.of == LossInput::x0 ? terms.mix.p : terms.mix.q));
}

}  // namespace vdiff
