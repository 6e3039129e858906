#include "cuda/sinusoid.cuh"

namespace {

using vdiff::Tensor;

constexpr int kThreads = 128;

// One thread per frequency of a time; the one past them writes the zero of an odd dim.
template <class T>
__global__ void __launch_bounds__(kThreads) embedding_kernel(vdiff::Sinusoids s, T* y, int64_t dim, int64_t blocks) {
  const int64_t b = blockIdx.x / blocks, i = (blockIdx.x - b * blocks) * kThreads + threadIdx.x;
  y += b * dim;
  if (i < s.half) {
    float sine, cosine;
    vdiff::sincos_at(s, b, i, sine, cosine);
    y[s.flip ? s.half + i : i] = vdiff::from_float<T>(sine);
    y[s.flip ? i : s.half + i] = vdiff::from_float<T>(cosine);
  } else if (i == s.half && dim % 2 == 1) {
    y[dim - 1] = vdiff::from_float<T>(0.0f);
  }
}

Tensor timestep_embedding(const Tensor& t, int64_t dim, double max_period, double shift, bool flip_sin_to_cos,
                          double scale, vdiff::ScalarType dtype) {
  Tensor y = torch::stable::new_empty(t, {t.numel(), dim}, dtype);
  if (y.numel() == 0) return y;
  const auto s = vdiff::sinusoids(t, dim, max_period, shift, flip_sin_to_cos, scale);
  const int64_t blocks = vdiff::ceil_div(s.half + dim % 2, kThreads);
  VDIFF_CUDA_DISPATCH(dtype, T, {
    embedding_kernel<T>
        <<<t.numel() * blocks, kThreads, 0, vdiff::current_stream(t)>>>(s, vdiff::mutable_data<T>(y), dim, blocks);
  });
  vdiff::check_launch();
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("timestep_embedding", TORCH_BOX(&vdiff::OnDevice<&timestep_embedding>::call));
}
