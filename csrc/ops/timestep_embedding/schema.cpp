#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "timestep_embedding(Tensor t, SymInt dim, float max_period, float shift, bool flip_sin_to_cos, float scale, "
      "ScalarType dtype) -> Tensor");
}
