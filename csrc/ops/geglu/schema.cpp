#include "common/stable.h"

// x is contiguous (..., 2H), dy (..., H), bias (2H,) float32 (float64 for float64). dbias has no elements where bias is
// absent.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def("geglu_forward(Tensor x, Tensor? bias) -> Tensor");
  m.def("geglu_backward(Tensor dy, Tensor x, Tensor? bias) -> (Tensor dx, Tensor dbias)");
}
