// Numbers of one channel or group in float64, rounded once: the affine map that group_norm_silu is between statistics
// and activation, and what its gradient is made of. For host and device.
#pragma once

#include "ops/group_norm_silu/cuda_plan.h"

namespace vdiff::group_norm {

// z = (x - center) * slope + offset. `center` is the mean (less `add`) rounded, what rounding left is in `offset`.
struct Affine {
  float center, slope, offset;
};
VDIFF_HOST_DEVICE Affine affine_of(const Shape& s, const Vectors& v, int64_t segment, int64_t c, double mean,
                                   double rstd) {
  const double factor = factor_of(s, v, segment, c), slope = rstd * weight_of(v, c) * factor;
  const double exact = mean - add_of(s, v, segment, c);
  // A mean below the deviation cancels no digit, and a centre of zero rounds once less.
  const float center = fabs(exact) * rstd < 0.5 ? 0.0f : static_cast<float>(exact);
  const double level = bias_of(v, c) * factor + framed(s, v.shift, v.shift_frames, segment, c);
  return {center, static_cast<float>(slope), static_cast<float>(level - (exact - center) * slope)};
}

// Count, mean and sum of squared deviations of a set; `take` is Chan's combination of two sets.
template <class Real>
struct Moments {
  Real count, mean, squares;

  // part = other.count / (count + other.count)
  VDIFF_HOST_DEVICE void take(const Moments& other, Real part) {
    const Real delta = other.mean - mean;
    mean += delta * part;
    squares += other.squares + delta * delta * part * count;
    count += other.count;
  }
};

// Sums of g, g * (x - center), x - center over part of a channel, g = dy * act'(z).
struct Sums {
  float v[3];
};
// Of w * g and w * g * n over part of a group, n = (x - mean) * rstd, w = weight * (1 + scale).
struct Pair {
  double g, gn;
};

// dx = g * gain + (x - center) * tilt + level, which is rstd * (w g - mean(w g) - n mean(w g n)), means over the group.
struct Gradient {
  float gain, tilt, level;
};

// One channel of one segment in the backward.
struct Channel {
  double rstd, left, w;  // left: what `center` misses of the mean

  VDIFF_HOST_DEVICE Channel(const Shape& s, const Vectors& v, int64_t segment, int64_t c, double mean, double rstd,
                            float center)
      : rstd(rstd), left(mean - add_of(s, v, segment, c) - center), w(weight_of(v, c) * factor_of(s, v, segment, c)) {}
  VDIFF_HOST_DEVICE double sum_gn(const float* sums) const { return rstd * (sums[1] - left * sums[0]); }
  VDIFF_HOST_DEVICE double sum_n(const float* sums, double count) const { return rstd * (sums[2] - count * left); }
  VDIFF_HOST_DEVICE Gradient gradient(const Pair& mean) const {
    return {static_cast<float>(rstd * w), static_cast<float>(-rstd * rstd * mean.gn),
            static_cast<float>(rstd * rstd * mean.gn * left - rstd * mean.g)};
  }
  // Sum of dx over `count` positions: the gradient of `add`.
  VDIFF_HOST_DEVICE double sum_dx(const float* sums, double count, const Pair& mean) const {
    return rstd * (w * sums[0] - count * mean.g - sum_n(sums, count) * mean.gn);
  }
};

}  // namespace vdiff::group_norm
