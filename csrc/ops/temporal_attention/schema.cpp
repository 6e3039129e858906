#include "common/stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "temporal_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? q_weight, "
      "Tensor? k_weight, Tensor? cos, Tensor? sin, bool causal, float scale, float eps) -> Tensor");
  m.def(
      "temporal_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, "
      "Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, bool causal, float scale, float eps) -> "
      "(Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dq_weight, Tensor dk_weight)");
  m.def(
      "temporal_attention_backward_packed(Tensor dout, Tensor qkv, Tensor? bias, Tensor? mask, Tensor? q_weight, "
      "Tensor? k_weight, Tensor? cos, Tensor? sin, bool causal, float scale, float eps) -> "
      "(Tensor dqkv, Tensor dbias, Tensor dq_weight, Tensor dk_weight)");
}
