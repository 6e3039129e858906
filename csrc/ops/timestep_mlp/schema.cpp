#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "timestep_mlp(Tensor t, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, float max_period, float shift, "
      "bool flip_sin_to_cos, float scale) -> (Tensor, Tensor)");
}
