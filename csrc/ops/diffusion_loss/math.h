// The target's coefficients, the weight of a sample and the loss of an element, for host and device.
#pragma once

#include "common/schedule.h"

namespace vdiff {

enum class LossTarget : int { noise = 0, v = 1, x0 = 2, flow = 3 };

// Which input a gradient is taken by.
enum class LossInput : int { prediction = 0, x0 = 1, noise = 2 };

struct LossOptions {
  LossTarget target;
  LossInput of;
  bool min_snr, huber;
  double gamma, delta;
};

VDIFF_HOST_DEVICE bool needs_noise(LossTarget target) { return target != LossTarget::x0; }
VDIFF_HOST_DEVICE bool needs_x0(LossTarget target) { return target != LossTarget::noise; }

// target = noise * p + x0 * q; the sample's loss is weight * mean of its elements' losses. What is common to all
// elements of a sample (weight, scale) is formed in double and rounded once.
template <class A>
struct LossTerms {
  A p, q;
  double weight;
};

VDIFF_HOST_DEVICE double loss_weight(const Coefficients<double>& c, const LossOptions& o) {
  const double a = c.signal, b = c.noise_scale;
  if (!o.min_snr) return a == a ? 1.0 : a;
  const double ratio = a / b, snr = ratio * ratio;
  // Written so that a NaN stays one, and each limit at snr 0 and inf comes out: gamma / 0 = inf, 1 / inf = 0.
  const double clipped = snr > o.gamma ? o.gamma : snr, bounded = o.gamma / snr, share = b / (a + b);
  switch (o.target) {
    case LossTarget::noise: return bounded > 1.0 ? 1.0 : bounded;
    case LossTarget::v: return clipped / (snr + 1.0);
    case LossTarget::x0: return clipped;
    default: return clipped * (share * share);
  }
}

template <class A>
VDIFF_HOST_DEVICE LossTerms<A> loss_terms(const ScheduleTables& schedule, int64_t sample, const LossOptions& o) {
  const auto c = coefficients<A>(schedule, sample);
  const double weight = loss_weight(coefficients<double>(schedule, sample), o);
  switch (o.target) {
    case LossTarget::noise: return {A(1), A(0), weight};
    case LossTarget::v: return {c.signal, -c.noise_scale, weight};
    case LossTarget::x0: return {A(0), A(1), weight};
    default: return {A(1), A(-1), weight};
  }
}

// The factor of an element's slope: d (sample's loss) / d (its error), by the input that is asked for.
template <class A>
VDIFF_HOST_DEVICE A gradient_scale(const LossTerms<A>& terms, const LossOptions& o, A upstream, double share) {
  const double scale = (o.huber ? 1.0 : 2.0) * terms.weight * upstream * share;
  return static_cast<A>(o.of == LossInput::prediction ? scale : -scale * (o.of == LossInput::x0 ? terms.q : terms.p));
}

}  // namespace vdiff
