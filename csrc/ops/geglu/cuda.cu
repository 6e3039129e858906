#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"

namespace {

using vdiff::Tensor;
constexpr int kThreads = 256;

__device__ float normal_cdf(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
__device__ float normal_pdf(float x) { return 0.39894228f * __expf(-0.5f * x * x); }

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* x, T* y, int64_t width, int64_t total) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t row = i / width, column = i - row * width;
  const T* value = x + row * 2 * width + column;
  const float g = vdiff::to_float(value[width]);
  y[i] = vdiff::from_float<T>(vdiff::to_float(value[0]) * g * normal_cdf(g));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const T* x, T* dx, int64_t width, int64_t total) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t row = i / width, at = row * 2 * width + (i - row * width);
  const float value = vdiff::to_float(x[at]), g = vdiff::to_float(x[at + width]), grad = vdiff::to_float(dy[i]);
  const float cdf = normal_cdf(g);
  dx[at] = vdiff::from_float<T>(grad * g * cdf);
  dx[at + width] = vdiff::from_float<T>(grad * value * (cdf + g * normal_pdf(g)));
}

Tensor forward(const Tensor& x) {
  const int64_t width = x.size(x.dim() - 1) / 2;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = width;
  Tensor y = torch::stable::new_empty(x, shape);
  const int64_t total = y.numel();
  if (total == 0) return y;
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    forward_kernel<T><<<vdiff::ceil_div(total, kThreads), kThreads, 0, vdiff::current_stream(x)>>>(
        vdiff::data<T>(x), vdiff::mutable_data<T>(y), width, total);
  });
  vdiff::check_launch();
  return y;
}

Tensor backward(const Tensor& dy, const Tensor& x) {
  Tensor dx = torch::stable::empty_like(x);
  const int64_t total = dy.numel();
  if (total == 0) return dx;
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    backward_kernel<T><<<vdiff::ceil_div(total, kThreads), kThreads, 0, vdiff::current_stream(x)>>>(
        vdiff::data<T>(dy), vdiff::data<T>(x), vdiff::mutable_data<T>(dx), x.size(x.dim() - 1) / 2, total);
  });
  vdiff::check_launch();
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("geglu_forward", TORCH_BOX(&forward));
  m.impl("geglu_backward", TORCH_BOX(&backward));
}
