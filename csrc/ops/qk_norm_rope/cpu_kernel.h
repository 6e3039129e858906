#pragma once

#include <stdint.h>

#include "common/tokens.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// Queries or keys of one call. "A" is the type of the arithmetic: double for float64 tensors, else float.
struct QkNormRope {
  Tokens x, y;            // forward x -> y; backward x, dy -> y = dx, where x is read for the norm alone
  Tokens dy;              // backward
  const void* weight;     // A: [d] of the RMS norm, or nullptr
  const void *cos, *sin;  // A: [S][d/2], or nullptr
  double eps;
  int64_t frames, positions, heads, head_dim;
};

constexpr int64_t kMaxRotatedDim = 128;

}  // namespace vdiff

// Positions [begin, end) of the B * T * S there are; the backward adds the gradient of the weight to dweight [d].
VDIFF_DECLARE_KERNEL(qk_norm_rope_forward, (DType dtype, const QkNormRope& args, int64_t begin, int64_t end))
VDIFF_DECLARE_KERNEL(qk_norm_rope_backward,
                     (DType dtype, const QkNormRope& args, double* dweight, int64_t begin, int64_t end))
