#include "common/stable.h"

// x, x2 and dy share one layout: contiguous, or channels-last where one of them is not contiguous. scale and shift are
// (B, F, C) with F = 1 or T, add is (B, C), C counting the channels of x and x2. mean and rstd are (units, groups),
// units = B or B * T (per_frame), float32 (float64 for float64). Gradients of absent inputs have no elements.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "group_norm_silu_forward(Tensor x, Tensor? x2, int num_groups, Tensor? weight, Tensor? bias, float eps, "
      "Tensor? scale, Tensor? shift, Tensor? add, bool per_frame, bool silu) -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_silu_backward(Tensor dy, Tensor x, Tensor? x2, int num_groups, Tensor? weight, Tensor? bias, "
      "Tensor mean, Tensor rstd, Tensor? scale, Tensor? shift, Tensor? add, bool per_frame, bool silu) -> "
      "(Tensor dx, Tensor dx2, Tensor dweight, Tensor dbias, Tensor dscale, Tensor dshift, Tensor dadd)");
}
