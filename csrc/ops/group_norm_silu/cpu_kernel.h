#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// z = (x - center) * slope + offset, one entry per channel. `center` is the mean (less `add`) rounded to Real, what
// rounding left is in `offset`: a mean of 10000 costs no digits.
template <class Real>
struct Affine {
  const Real *center, *slope, *offset;
};
// dx = g * gain + (x - center) * tilt + level, g = dy * act'(z).
template <class Real>
struct Gradient {
  const Real *gain, *tilt, *level;
};

// Single-threaded inner loops. Runs are n contiguous elements in each of `rows` channels, a row every `stride` elements
// and one coefficient for each; columns are n channels of `rows` positions. Real is float, double for float64.
template <class Real>
struct GroupNormKernels {
  // moments[0], [1]: mean and sum of squared deviations.
  void (*moments_run)(const void* x, int64_t n, double* moments);
  void (*moments_columns)(const void* x, int64_t stride, int64_t rows, int64_t n, double* mean, double* squares,
                          Real* scratch);
  // `past_cache`: nobody finds y in the cache anyway.
  // `ahead` bytes further lies what is read next: it is fetched into cache meanwhile.
  void (*apply_runs)(const void* x, void* y, int64_t stride, int64_t rows, int64_t n, Affine<Real> affine, bool silu,
                     int64_t ahead, bool past_cache);
  void (*apply_columns)(const void* x, int64_t stride, void* y, int64_t y_stride, int64_t rows, int64_t n,
                        Affine<Real> affine, bool silu, bool past_cache);
  // Adds sum g, sum g * (x - center), sum (x - center): three sums a row of runs, three arrays for columns. `keep`
  // (of a SiLU's g, where dx holds a Real) leaves g in dx, and the gradient kernels take it from there.
  void (*sums_runs)(const void* dy, const void* x, void* dx, int64_t stride, int64_t rows, int64_t n,
                    Affine<Real> affine, bool silu, bool keep, double* sums);
  void (*sums_columns)(const void* dy, int64_t dy_stride, const void* x, void* dx, int64_t stride, int64_t rows,
                       int64_t n, Affine<Real> affine, bool silu, bool keep, double* g, double* gx, double* xs,
                       Real* scratch);
  void (*gradient_runs)(const void* dy, const void* x, void* dx, int64_t stride, int64_t rows, int64_t n,
                        Affine<Real> affine, Gradient<Real> gradient, bool silu, bool keep, int64_t ahead);
  void (*gradient_columns)(const void* dy, int64_t dy_stride, const void* x, void* dx, int64_t stride, int64_t rows,
                           int64_t n, Affine<Real> affine, Gradient<Real> gradient, bool silu, bool keep);
};

// Reals of scratch that the column kernels need for n channels.
inline int64_t group_norm_scratch(int64_t n) { return 3 * (n + 16); }

}  // namespace vdiff

VDIFF_DECLARE_KERNEL(group_norm_kernels, (DType dtype, GroupNormKernels<float>* table))
VDIFF_DECLARE_KERNEL(group_norm_kernels_f64, (GroupNormKernels<double> * table))
