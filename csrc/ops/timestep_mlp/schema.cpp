#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "timestep_mlp(Tensor t, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, float max_period, float shift, "
      "bool flip_sin_to_cos, float scale) -> (Tensor, Tensor)");
  // dw1, db1, dw2, db2; one that is not asked for has no elements.
  m.def(
      "timestep_mlp_backward(Tensor dy, Tensor t, Tensor w1, Tensor w2, Tensor pre, float max_period, float shift, "
      "bool flip_sin_to_cos, float scale, bool need_w1, bool need_b1, bool need_w2, bool need_b2) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
