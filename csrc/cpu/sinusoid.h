// sin and cos of time * frequency for cpu_kernel.cpp files: the phase in double, the polynomials in float.
#pragma once

#include "common/philox.h"
#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {

typedef float vnarrow __attribute__((vector_size(kVectorBytes / 2)));
typedef int32_t vquadrant __attribute__((vector_size(kVectorBytes / 2)));
typedef int64_t vlong __attribute__((vector_size(kVectorBytes)));

// The Horner form of common/philox.h's polynomials, valid on [-pi/4, pi/4].
inline vnarrow sine_polynomial(vnarrow x, vnarrow z) {
  return x + x * z * (philox::kSin[0] + z * (philox::kSin[1] + z * philox::kSin[2]));
}
inline vnarrow cosine_polynomial(vnarrow z) {
  return (1.0f - 0.5f * z) + z * z * (philox::kCos[0] + z * (philox::kCos[1] + z * philox::kCos[2]));
}

inline void sincos(vdouble angle, vnarrow& sine, vnarrow& cosine) {
  // Adding 1.5 * 2^52 rounds to an integer, which then lies in the low bits.
  const vdouble magic = vdouble{} + 6755399441055744.0;
  const vdouble shifted = angle * 0.63661977236758134308 + magic, turns = shifted - magic;
  const vdouble rest = (angle - turns * 1.5707963267948966) - turns * 6.123233995736766e-17;
  const vquadrant quadrant = __builtin_convertvector((vlong)shifted & 3, vquadrant);
  const vnarrow x = __builtin_convertvector(rest, vnarrow), z = x * x;
  const vquadrant s = (vquadrant)sine_polynomial(x, z), c = (vquadrant)cosine_polynomial(z);
  const vquadrant odd = -(quadrant & 1), differ = s ^ c;
  sine = (vnarrow)((s ^ (differ & odd)) ^ ((quadrant & 2) << 30));
  cosine = (vnarrow)((c ^ (differ & odd)) ^ (((quadrant + 1) & 2) << 30));
}

// The sinusoids of kDoubleLanes frequencies, `count` of them read and written.
inline void sinusoids(double time, const double* frequency, float* sines, float* cosines, int count) {
  vdouble angle = {};
  __builtin_memcpy(&angle, frequency, count * sizeof(double));
  vnarrow sine, cosine;
  sincos(angle * time, sine, cosine);
  __builtin_memcpy(sines, &sine, count * sizeof(float));
  __builtin_memcpy(cosines, &cosine, count * sizeof(float));
}

// [first | second] of one time: sines then cosines, or the other way; `half` values each.
inline void sinusoids(double time, const double* frequency, int64_t half, bool flip, float* out) {
  float *sines = flip ? out + half : out, *cosines = flip ? out : out + half;
  int64_t i = 0;
  // A count known to the compiler: else each of the three copies is a call.
  for (; i + kDoubleLanes <= half; i += kDoubleLanes) {
    sinusoids(time, frequency + i, sines + i, cosines + i, kDoubleLanes);
  }
  if (i < half) sinusoids(time, frequency + i, sines + i, cosines + i, (int)(half - i));
}

inline void sinusoids(double time, const double* frequency, int64_t half, bool flip, double* out) {
  double *sines = flip ? out + half : out, *cosines = flip ? out : out + half;
  for (int64_t i = 0; i < half; ++i) {
    sines[i] = __builtin_sin(time * frequency[i]);
    cosines[i] = __builtin_cos(time * frequency[i]);
  }
}

}  // namespace vdiff::VDIFF_ISA
