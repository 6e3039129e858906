#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "diffusion_loss(Tensor prediction, Tensor? x0, Tensor? noise, Tensor t, Tensor signal, Tensor noise_scale, "
      "Tensor? seed, Tensor? sample_offset, Tensor? stream, str target, str weighting, float gamma, str kind, "
      "float delta, SymInt frames, float shared, float own, bool progressive, bool mean) -> Tensor");
  // The loss and its gradient by the prediction in one pass.
  m.def(
      "diffusion_loss_and_gradient(Tensor prediction, Tensor? x0, Tensor? noise, Tensor t, Tensor signal, "
      "Tensor noise_scale, Tensor? seed, Tensor? sample_offset, Tensor? stream, str target, str weighting, "
      "float gamma, str kind, float delta, SymInt frames, float shared, float own, bool progressive, bool mean) "
      "-> (Tensor, Tensor)");
  // upstream is the gradient of the mean, (), or of each sample's loss, (B,); `of` names the input to differentiate.
  m.def(
      "diffusion_loss_backward(Tensor upstream, Tensor prediction, Tensor? x0, Tensor? noise, Tensor t, "
      "Tensor signal, Tensor noise_scale, Tensor? seed, Tensor? sample_offset, Tensor? stream, str target, "
      "str weighting, float gamma, str kind, float delta, SymInt frames, float shared, float own, bool progressive, "
      "str of) -> Tensor");
}
