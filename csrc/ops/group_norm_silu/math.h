// The mathematics of group_norm_silu between statistics and activation, and of its gradient, for host and device.
// Numbers of a channel or group are formed in float64 and rounded once.
//
//   n = (x + add - mean) * rstd, over a group;  z = n * weight * (1 + scale) + bias * (1 + scale) + shift;  y = act(z)
//   g = dy * act'(z);  w = weight * (1 + scale);  dx = rstd * (w g - mean(w g) - n mean(w g n)), means over the group
#pragma once

#include <math.h>

#include "common/norm_geometry.h"

namespace vdiff::group_norm {

// A unit is what shares statistics: one sample, or one frame of it.
struct Geometry : NormGeometry {
  int64_t source_channels[2];  // of x and x2
  int64_t groups, per_group, segments_per_unit, units;

  // Elements that share statistics.
  VDIFF_HOST_DEVICE int64_t count() const { return segments_per_unit * length * per_group; }
};

// The inputs of one channel of one segment; factor = 1 + scale.
struct ChannelParameters {
  double weight, bias, factor, shift, add;
};

// z = (x - center) * slope + offset. The rounding error of `center`, the mean less `add`, is added to `offset`, so a
// mean of 10000 loses no precision.
template <class Real>
struct Affine {
  Real center, slope, offset;
};

template <class Real>
VDIFF_HOST_DEVICE Affine<Real> affine_of(const ChannelParameters& p, double mean, double rstd) {
  const double slope = rstd * p.weight * p.factor, exact = mean - p.add;
  // Without a centre z is rounded once less, and a mean below half the deviation does not cancel digits.
  const Real center = fabs(exact) * rstd < 0.5 ? Real(0) : static_cast<Real>(exact);
  const double level = p.bias * p.factor + p.shift;
  return {center, static_cast<Real>(slope), static_cast<Real>(level - (exact - center) * slope)};
}

// Count, mean and sum of squared deviations of a set of numbers.
template <class Real>
struct Moments {
  Real count, mean, squares;

  // Chan's combination with another set; fraction = other.count / (count + other.count).
  VDIFF_HOST_DEVICE void take(const Moments& other, Real fraction) {
    const Real delta = other.mean - mean;
    mean += delta * fraction;
    squares += other.squares + delta * delta * fraction * count;
    count += other.count;
  }
};

// w * g and w * g * n, summed over a group or over some of it; or their means over the group.
struct GroupGradient {
  double g, gn;
};

// dx = g * gain + (x - center) * tilt + level.
template <class Real>
struct Gradient {
  Real gain, tilt, level;
};

// The backward of one channel of one segment. `sums` are those of g, g * (x - center) and x - center over positions of
// it.
struct ChannelBackward {
  double rstd, remainder, w;  // remainder: of the mean, what `center` does not hold

  VDIFF_HOST_DEVICE ChannelBackward(const ChannelParameters& p, double mean, double rstd, double center)
      : rstd(rstd), remainder(mean - p.add - center), w(p.weight * p.factor) {}

  // Sums of g * n and of n.
  template <class Sum>
  VDIFF_HOST_DEVICE double sum_gn(const Sum* sums) const {
    return rstd * (sums[1] - remainder * sums[0]);
  }
  template <class Sum>
  VDIFF_HOST_DEVICE double sum_n(const Sum* sums, double positions) const {
    return rstd * (sums[2] - positions * remainder);
  }
  template <class Real>
  VDIFF_HOST_DEVICE Gradient<Real> gradient(const GroupGradient& mean) const {
    return {static_cast<Real>(rstd * w), static_cast<Real>(-rstd * rstd * mean.gn),
            static_cast<Real>(rstd * rstd * mean.gn * remainder - rstd * mean.g)};
  }
  // Sum of dx, which is the gradient of `add`.
  VDIFF_HOST_DEVICE double sum_dx(double sum_g, double sum_n, double positions, const GroupGradient& mean) const {
    return rstd * (w * sum_g - positions * mean.g - sum_n * mean.gn);
  }
};

}  // namespace vdiff::group_norm
