#include "common/stable.h"

// residual, branch and dy are contiguous (B, N, D); gate is (B, F, D) with F a divisor of N, any strides but unit
// stride in D. The residual's gradient is dy itself.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def("gated_residual_forward(Tensor residual, Tensor branch, Tensor gate) -> Tensor");
  m.def("gated_residual_backward(Tensor dy, Tensor branch, Tensor gate) -> (Tensor dbranch, Tensor dgate)");
}
