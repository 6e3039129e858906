#include "common/stable.h"

// q and dout are (B, N, heads, d), k and v (B, L, heads, d), any strides but unit stride in d; mask is (B, L) bool.
// q_weight (d,) and its gradient are float32 (float64 for float64), without elements where there is no norm.
STABLE_TORCH_LIBRARY_FRAGMENT(vdiff_fast, m) {
  m.def(
      "temporal_attention_context_forward(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? q_weight, float scale, "
      "float eps) -> Tensor");
  m.def(
      "temporal_attention_context_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? q_weight, "
      "float scale, float eps) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dq_weight)");
}
