#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def("geglu_forward(Tensor x) -> Tensor");
  m.def("geglu_backward(Tensor dy, Tensor x) -> Tensor");
}
