#include "cuda/biased_rows.cuh"

namespace {

// y = z s, s = 1 / (1 + e^-v), v = sqrt(8/pi) (z + 0.044715 z^3), and ds/dz with 1 - s = e^-v s, which does not cancel.
// z is clamped where s is 0 or 1 to float32.
struct GeluTanh {
  static constexpr int kParts = 1;

  struct Gate {
    float s, slope;
  };
  static __device__ __forceinline__ Gate gate(float z) {
    const float c = fminf(fmaxf(z, -9.5f), 9.5f), square = c * c;
    const float e = __expf(-c * fmaf(0.0713548163f, square, 1.59576912f)), s = 1.0f / (1.0f + e);
    return {s, s * (e * s) * fmaf(0.214064449f, square, 1.59576912f)};
  }
  static __device__ __forceinline__ float value(const float (&z)[1]) { return z[0] * gate(z[0]).s; }
  static __device__ __forceinline__ void gradient(float g, float (&z)[1]) {
    const Gate k = gate(z[0]);
    z[0] = g * fmaf(z[0], k.slope, k.s);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("gelu_tanh_forward", TORCH_BOX(&vdiff::OnDevice<&vdiff::biased_rows::forward<GeluTanh>>::call));
  m.impl("gelu_tanh_backward", TORCH_BOX(&vdiff::OnDevice<&vdiff::biased_rows::backward<GeluTanh>>::call));
}
