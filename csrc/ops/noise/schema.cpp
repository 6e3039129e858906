#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  // frames 0: independent normals n; else frames z[f] = shared * s + own * n[f], s common to all, or progressive:
  // shared * z[f - 1] + own * n[f].
  m.def(
      "noise(Tensor seed, Tensor? sample_offset, Tensor? stream, SymInt batch, SymInt per_sample, ScalarType dtype, "
      "SymInt frames, float shared, float own, bool progressive) -> Tensor");
}
