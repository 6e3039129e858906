#include "cuda/biased_rows.cuh"

namespace {

// y = value * gate * Phi(gate).
struct Geglu {
  static constexpr int kParts = 2;

  static __device__ __forceinline__ float cdf(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
  static __device__ __forceinline__ float pdf(float x) { return 0.39894228f * __expf(-0.5f * x * x); }
  static __device__ __forceinline__ float value(const float (&z)[2]) { return z[0] * (z[1] * cdf(z[1])); }
  static __device__ __forceinline__ void gradient(float g, float (&z)[2]) {
    const float a = z[0], gate = z[1], c = cdf(gate);
    z[0] = g * (gate * c), z[1] = a * (g * fmaf(gate, pdf(gate), c));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("geglu_forward", TORCH_BOX(&vdiff::OnDevice<&vdiff::biased_rows::forward<Geglu>>::call));
  m.impl("geglu_backward", TORCH_BOX(&vdiff::OnDevice<&vdiff::biased_rows::backward<Geglu>>::call));
}
