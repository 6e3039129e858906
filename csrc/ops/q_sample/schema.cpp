#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "q_sample(Tensor x0, Tensor t, Tensor signal, Tensor noise_scale, Tensor? noise, Tensor? seed, "
      "Tensor? sample_offset, Tensor? stream, SymInt frames, float shared, float own, bool progressive) -> Tensor");
}
