#include "common/stable.h"

// Weights and tables come in the dtype of the arithmetic; the gradients of the weights leave in it, without elements
// where there is no norm. Without a norm the backward reads nothing of q and k but their shapes.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "qk_norm_rope_forward(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, "
      "float eps) -> (Tensor, Tensor)");
  m.def(
      "qk_norm_rope_inplace(Tensor(a!) q, Tensor(b!) k, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, "
      "float eps) -> ()");
  m.def(
      "qk_norm_rope_backward(Tensor dq, Tensor dk, Tensor? q, Tensor? k, Tensor? q_weight, Tensor? k_weight, "
      "Tensor? cos, Tensor? sin, float eps) -> (Tensor, Tensor, Tensor dq_weight, Tensor dk_weight)");
}
