#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "noise(Tensor seed, Tensor? sample_offset, Tensor? stream, SymInt batch, SymInt per_sample, ScalarType dtype) "
      "-> Tensor");
}
