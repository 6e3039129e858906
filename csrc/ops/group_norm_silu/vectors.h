// Numbers of one channel or group in float64, rounded once: the affine map that group_norm_silu is between statistics
// and activation, and what its gradient is made of. For host and device.
#pragma once

#include <math.h>

#include "ops/group_norm_silu/shape.h"

namespace vdiff::group_norm {

// Per-channel inputs as float32, nullptr where absent.
struct Vectors {
  const float *weight, *bias, *scale, *shift, *add;
  int64_t scale_frames, shift_frames;
};

VDIFF_HOST_DEVICE double framed(const Shape& s, const float* values, int64_t frames, int64_t segment, int64_t c) {
  if (values == nullptr) return 0.0;
  const int64_t sample = segment / s.segments, frame = frames > 1 ? segment - sample * s.segments : 0;
  return values[(sample * frames + frame) * s.channels + c];
}
VDIFF_HOST_DEVICE double weight_of(const Vectors& v, int64_t c) { return v.weight == nullptr ? 1.0 : v.weight[c]; }
VDIFF_HOST_DEVICE double bias_of(const Vectors& v, int64_t c) { return v.bias == nullptr ? 0.0 : v.bias[c]; }
VDIFF_HOST_DEVICE double factor_of(const Shape& s, const Vectors& v, int64_t segment, int64_t c) {
  return 1.0 + framed(s, v.scale, v.scale_frames, segment, c);
}
VDIFF_HOST_DEVICE float add_of(const Shape& s, const Vectors& v, int64_t segment, int64_t c) {
  return v.add == nullptr ? 0.0f : v.add[segment / s.segments * s.channels + c];
}

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

// Gradient of weight (kWeight) or bias in one channel, from the sums of g, g * n and dx of every (segment, channel).
template <bool kWeight>
VDIFF_HOST_DEVICE float channel_gradient(const Shape& s, const Vectors& v, const double* sums, int64_t c) {
  double total = 0;
  for (int64_t segment = 0; segment < s.batch * s.segments; ++segment) {
    total += factor_of(s, v, segment, c) * sums[3 * (segment * s.channels + c) + (kWeight ? 1 : 0)];
  }
  return static_cast<float>(total);
}

enum Framed { kScale, kShift, kAdd };
// Element i of the gradient of scale, shift or add, (batch, frames, channels).
VDIFF_HOST_DEVICE float frame_gradient(const Shape& s, const Vectors& v, const double* sums, Framed which,
                                       int64_t frames, int64_t i) {
  const int64_t row = i / s.channels, c = i - row * s.channels, folded = frames > 1 ? 1 : s.segments;
  double total = 0;
  for (int64_t segment = row * folded; segment < (row + 1) * folded; ++segment) {
    const double* from = sums + 3 * (segment * s.channels + c);
    total += which == kScale   ? weight_of(v, c) * from[1] + bias_of(v, c) * from[0]
             : which == kShift ? from[0]
                               : from[2];
  }
  return static_cast<float>(total);
}

}  // namespace vdiff::group_norm
