#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// The maps of math.h for many channels: one array per coefficient, one element per channel. Real is float, double for
// float64.
template <class Real>
struct AffineArrays {
  const Real *center, *slope, *offset;
};
template <class Real>
struct GradientArrays {
  const Real *gain, *tilt, *level;
};

// Single-threaded inner loops. *_contiguous take `rows` channels of n neighbouring positions each, a channel every
// `stride` elements; *_channels_last take `rows` positions of n neighbouring channels each, a position every `stride`
// elements.
template <class Real>
struct GroupNormKernels {
  // moments[0], [1]: mean and sum of squared deviations of n neighbouring elements.
  void (*moments_contiguous)(const void* x, int64_t n, double* moments);
  void (*moments_channels_last)(const void* x, int64_t stride, int64_t rows, int64_t n, double* mean, double* squares,
                                Real* scratch);
  // y = act(z). `streamed`: y will leave the cache before it is read, so stores may bypass it. `ahead` bytes after x
  // lies what is read next; it is prefetched meanwhile.
  void (*apply_contiguous)(const void* x, void* y, int64_t stride, int64_t rows, int64_t n, AffineArrays<Real> affine,
                           bool silu, int64_t ahead, bool streamed);
  void (*apply_channels_last)(const void* x, int64_t stride, void* y, int64_t y_stride, int64_t rows, int64_t n,
                              AffineArrays<Real> affine, bool silu, bool streamed);
  // Adds sum g, sum g * (x - center) and sum (x - center): three numbers per channel, or three arrays of channels.
  // With `keep` (SiLU only, and only if dx can store a Real) g is written to dx, so that the gradient pass need not
  // compute it again.
  void (*sums_contiguous)(const void* dy, const void* x, void* dx, int64_t stride, int64_t rows, int64_t n,
                          AffineArrays<Real> affine, bool silu, bool keep, double* sums);
  void (*sums_channels_last)(const void* dy, int64_t dy_stride, const void* x, void* dx, int64_t stride, int64_t rows,
                             int64_t n, AffineArrays<Real> affine, bool silu, bool keep, double* g, double* gx,
                             double* xs, Real* scratch);
  // dx = g * gain + (x - center) * tilt + level.
  void (*gradient_contiguous)(const void* dy, const void* x, void* dx, int64_t stride, int64_t rows, int64_t n,
                              AffineArrays<Real> affine, GradientArrays<Real> gradient, bool silu, bool keep,
                              int64_t ahead);
  void (*gradient_channels_last)(const void* dy, int64_t dy_stride, const void* x, void* dx, int64_t stride,
                                 int64_t rows, int64_t n, AffineArrays<Real> affine, GradientArrays<Real> gradient,
                                 bool silu, bool keep);
};

// Reals of scratch that the channels-last kernels need for n channels.
inline int64_t group_norm_scratch(int64_t n) { return 3 * (n + 16); }

}  // namespace vdiff

VDIFF_DECLARE_KERNEL(group_norm_kernels, (DType dtype, GroupNormKernels<float>* table))
VDIFF_DECLARE_KERNEL(group_norm_kernels_f64, (GroupNormKernels<double> * table))
