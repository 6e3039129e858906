#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// Positions [begin, end) of one segment (a frame, or a sample) of x. Neighbouring channels lie `channel_stride` apart,
// neighbouring positions `position_stride`: one of the two is 1.
struct RmsNormPart {
  int64_t channels, begin, end, channel_stride, position_stride;
  bool silu;
};

// z = x * rstd * slope + offset, per channel.
template <class Real>
struct RmsNormKernels {
  void (*forward)(RmsNormPart part, const void* x, void* y, Real* rstd, const Real* slope, const Real* offset,
                  double eps, Real* scratch);
  // Adds to g and gn, per channel: sum of g = dy * act'(z), and of g * x * rstd.
  void (*backward)(RmsNormPart part, const void* dy, const void* x, void* dx, const Real* rstd, const Real* slope,
                   const Real* offset, double* g, double* gn, Real* scratch);
};

// Reals of scratch for n channels.
inline int64_t rms_norm_scratch(int64_t n) { return 3 * (n + 16); }

}  // namespace vdiff

VDIFF_DECLARE_KERNEL(rms_norm_kernels, (DType dtype, RmsNormKernels<float>* table))
VDIFF_DECLARE_KERNEL(rms_norm_kernels_f64, (RmsNormKernels<double> * table))
