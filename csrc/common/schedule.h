// The two coefficients of x_t = signal x0 + noise_scale noise, for host and device.
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace vdiff {

// Either steps into two float32 tables, or (flow) the sigmas themselves.
struct ScheduleTables {
  const int64_t* step;
  const float* sigma;
  const float* signal;
  const float* noise_scale;
  int64_t steps;
};

template <class A>
struct Coefficients {
  A signal, noise_scale;
};

// NaN where t is out of range.
template <class A>
VDIFF_HOST_DEVICE Coefficients<A> coefficients(const ScheduleTables& s, int64_t b) {
  const A nan = static_cast<A>(__builtin_nanf(""));
  if (s.sigma != nullptr) {
    const A sigma = static_cast<A>(s.sigma[b]);
    return sigma >= A(0) && sigma <= A(1) ? Coefficients<A>{A(1) - sigma, sigma} : Coefficients<A>{nan, nan};
  }
  const int64_t step = s.step[b];
  if (step < 0 || step >= s.steps) return {nan, nan};
  return {static_cast<A>(s.signal[step]), static_cast<A>(s.noise_scale[step])};
}

}  // namespace vdiff
