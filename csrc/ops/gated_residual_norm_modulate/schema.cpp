#include "common/stable.h"

// residual, branch, h, dh and dy are contiguous (B, N, D); gate, shift and scale (B, F, D) with one F, a divisor of N,
// any strides but unit stride in D. statistics is (3, B * N), float32 (float64 for float64): the mean's high and low
// part, and rstd. dh, the gradient of h from elsewhere, is absent where h is not used but here.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "gated_residual_norm_modulate_forward(Tensor residual, Tensor branch, Tensor gate, Tensor shift, Tensor scale, "
      "float eps) -> (Tensor h, Tensor y, Tensor statistics)");
  m.def(
      "gated_residual_norm_modulate_backward(Tensor dy, Tensor? dh, Tensor h, Tensor branch, Tensor gate, "
      "Tensor scale, Tensor statistics) -> "
      "(Tensor dresidual, Tensor dbranch, Tensor dgate, Tensor dshift, Tensor dscale)");
}
