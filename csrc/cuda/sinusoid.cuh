// The sinusoids of a time on the device: the phase in double, so that no step loses it, then the fp32 polynomials of
// the noise, without the local memory of the library's slow path.
#pragma once

#include <cmath>

#include "common/philox.h"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"

namespace vdiff {

// Times as they come: exactly one pointer is not null.
struct DeviceTimes {
  const float* single;
  const double* wide;
  const int64_t* steps;
};

inline DeviceTimes device_times(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return {data<float>(t), nullptr, nullptr};
    case ScalarType::Double: return {nullptr, data<double>(t), nullptr};
    case ScalarType::Long: return {nullptr, nullptr, data<int64_t>(t)};
    default: STD_TORCH_CHECK(false, "t must be float32, float64 or int64");
  }
}

struct Sinusoids {
  DeviceTimes times;
  double rate, scale;
  int64_t half;
  bool flip;
};

inline Sinusoids sinusoids(const Tensor& t, int64_t dim, double max_period, double shift, bool flip, double scale) {
  const int64_t half = dim / 2;
  return {device_times(t), -std::log(max_period) / (static_cast<double>(half) - shift), scale, half, flip};
}

__device__ __forceinline__ double time_at(const DeviceTimes& t, int64_t b) {
  if (t.steps != nullptr) return static_cast<double>(t.steps[b]);
  return t.single != nullptr ? static_cast<double>(t.single[b]) : t.wide[b];
}

__device__ __forceinline__ void sincos_of(double angle, float& sine, float& cosine) {
  using namespace philox;
  const double turns = rint(angle * 0.63661977236758134308);
  const float x = static_cast<float>((angle - turns * 1.5707963267948966) - turns * 6.123233995736766e-17), z = x * x;
  const int64_t quadrant = static_cast<int64_t>(turns) & 3;
  const float s = x + (x * z) * ((z * kSinTerm<2> + kSinTerm<1>)*z + kSinTerm<0>);
  const float c = (1.0f - z * 0.5f) + (z * z) * ((z * kCosTerm<2> + kCosTerm<1>)*z + kCosTerm<0>);
  const float first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
  sine = quadrant & 2 ? -first : first;
  cosine = (quadrant + 1) & 2 ? -second : second;
}

__device__ __forceinline__ void sincos_at(const Sinusoids& s, int64_t b, int64_t i, float& sine, float& cosine) {
  sincos_of(time_at(s.times, b) * s.scale * exp(static_cast<double>(i) * s.rate), sine, cosine);
}

// Column `column` of the embedding of time b; an odd dim ends in a zero.
__device__ __forceinline__ float sinusoid(const Sinusoids& s, int64_t b, int64_t column) {
  if (column >= 2 * s.half) return 0.0f;
  float sine, cosine;
  sincos_at(s, b, column < s.half ? column : column - s.half, sine, cosine);
  return (column < s.half) == s.flip ? cosine : sine;
}

}  // namespace vdiff
