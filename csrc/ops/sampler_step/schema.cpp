#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "sampler_step(Tensor x, Tensor prediction, Tensor table, Tensor step, Tensor? uncond, Tensor? previous, "
      "Tensor? previous2, Tensor? noise, Tensor? seed, Tensor? sample_offset, Tensor? stream, float guidance_rescale, "
      "int clip_mode, float clip, float clip_max, SymInt frames, float shared, float own, bool progressive) "
      "-> (Tensor, Tensor)");
}
