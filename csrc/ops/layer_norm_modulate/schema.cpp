#include "common/stable.h"

// x and dy are contiguous (B, N, D); shift and scale (B, F, D) with F a divisor of N, any strides but unit stride in D;
// weight and bias float32 (float64 for float64). statistics is (3, B * N) of that dtype: the mean's high and low part,
// and rstd. Gradients of absent inputs have no elements.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "layer_norm_modulate_forward(Tensor x, Tensor shift, Tensor scale, Tensor? weight, Tensor? bias, float eps) -> "
      "(Tensor y, Tensor statistics)");
  m.def(
      "layer_norm_modulate_backward(Tensor dy, Tensor x, Tensor scale, Tensor? weight, Tensor? bias, "
      "Tensor statistics) -> (Tensor dx, Tensor dshift, Tensor dscale, Tensor dweight, Tensor dbias)");
}
