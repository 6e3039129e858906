#pragma once

#include <stdint.h>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// y (batch, rows) = x (batch, columns) w^T + bias, w (rows, columns). x is float (double for double w), with rows
// padded to `stride` by zeros; a null bias is 0. Outputs may be null: y in the dtype of w; wide = y in the type of x,
// and with it activated = SiLU(y), rows of `activated_stride`.
struct Linear {
  DType dtype;
  const void *x, *w, *bias;
  void *y, *wide, *activated;
  int64_t batch, rows, columns, stride, activated_stride;
};

// dw = dy^T x, dbias = sum of dy over the batch, both in the dtype of w, and dx = dy w in the type of x and dy, whose
// rows are `stride` and `dy_stride` apart. What is null is not asked for.
struct LinearGradient {
  DType dtype;
  const void *dy, *x, *w;
  void *dw, *dbias;
  int64_t batch, rows, columns, stride, dy_stride;
};

// A hidden layer's gradient: dpre = (sum of the parts of dx) SiLU'(pre). dx has rows of `stride`, parts side by side.
struct HiddenGradient {
  DType dtype;
  const void *pre, *dx;
  void* dpre;
  int64_t batch, columns, stride, parts;
};

}  // namespace vdiff

// Rows [begin, end) of w, the whole batch.
VDIFF_DECLARE_KERNEL(timestep_linear, (const Linear& args, int64_t begin, int64_t end))
// The share of rows [begin, end) of w; dx is written, not added to.
VDIFF_DECLARE_KERNEL(timestep_linear_gradient, (const LinearGradient& args, void* dx, int64_t begin, int64_t end))
VDIFF_DECLARE_KERNEL(timestep_hidden_gradient, (const HiddenGradient& args))
// out = SiLU(pre), pre (batch, columns) and out with rows of `stride`.
VDIFF_DECLARE_KERNEL(timestep_activate,
                     (DType dtype, const void* pre, void* out, int64_t batch, int64_t columns, int64_t stride))
// Values in the dtype of the weights, (batch, columns), as float (double for double) with rows of `stride`.
VDIFF_DECLARE_KERNEL(timestep_widen,
                     (DType dtype, const void* in, void* out, int64_t batch, int64_t columns, int64_t stride))
// The sinusoids of every time, rows of `stride` (2 * half are written).
VDIFF_DECLARE_KERNEL(timestep_sinusoids, (DType dtype, const double* times, int64_t batch, const double* frequencies,
                                          int64_t half, bool flip, void* out, int64_t stride))
