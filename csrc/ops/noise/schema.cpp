#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  // frames = 0: independent normals n. Else frame f is shared * s + own * n[f], one s for all frames; or, progressive,
  // shared times frame f - 1, plus own * n[f].
  m.def(
      "noise(Tensor seed, Tensor? sample_offset, Tensor? stream, SymInt batch, SymInt per_sample, ScalarType dtype, "
      "SymInt frames, float shared, float own, bool progressive) -> Tensor");
}
