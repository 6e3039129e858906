#include "common/stable.h"

// x and dy are contiguous (..., D), bias (D,) float32 (float64 for float64). dbias has no elements where bias is
// absent.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def("gelu_tanh_forward(Tensor x, Tensor? bias) -> Tensor");
  m.def("gelu_tanh_backward(Tensor dy, Tensor x, Tensor? bias) -> (Tensor dx, Tensor dbias)");
}
