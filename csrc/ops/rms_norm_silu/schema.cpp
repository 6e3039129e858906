#include "common/stable.h"

// x and dy share one layout, contiguous or channels-last. scale and shift are (B, F, C) with F = 1 or T. rstd is
// (B, S), the positions in memory order, float32 (float64 for float64). Gradients of absent inputs have no elements.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "rms_norm_silu_forward(Tensor x, Tensor? weight, float eps, Tensor? scale, Tensor? shift, bool silu) -> "
      "(Tensor y, Tensor rstd)");
  m.def(
      "rms_norm_silu_backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, Tensor? scale, Tensor? shift, "
      "bool silu) -> (Tensor dx, Tensor dweight, Tensor dscale, Tensor dshift)");
}
