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

}  // namespace vdiff

// Rows [begin, end) of w, the whole batch.
VDIFF_DECLARE_KERNEL(timestep_linear, (const Linear& args, int64_t begin, int64_t end))
// The sinusoids of every time, rows of `stride` (2 * half are written).
VDIFF_DECLARE_KERNEL(timestep_sinusoids, (DType dtype, const double* times, int64_t batch, const double* frequencies,
                                          int64_t half, bool flip, void* out, int64_t stride))
