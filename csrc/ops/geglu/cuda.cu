#include "cuda/rows.cuh"

namespace {

using vdiff::kChunk;
using vdiff::Tensor;
constexpr int kThreads = 256;

__device__ float normal_cdf(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
__device__ float normal_pdf(float x) { return 0.39894228f * __expf(-0.5f * x * x); }

template <class T>
__device__ __forceinline__ void load_biased(const T* half, const float* bias, int64_t column, int64_t width,
                                            float (&z)[kChunk]) {
  vdiff::load_chunk(half, column, width, z);
  if (bias) {
    float b[kChunk];
    vdiff::load_chunk(bias, column, width, b);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) z[j] += b[j];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* x, const float* bias, T* y, int64_t rows, int64_t width) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunks = (width + kChunk - 1) / kChunk;
  const int64_t row = i / chunks, column = (i - row * chunks) * kChunk;
  if (row >= rows) return;
  const T* value = x + row * 2 * width;
  float a[kChunk], z[kChunk];
  load_biased(value, bias, column, width, a);
  load_biased(value + width, bias ? bias + width : nullptr, column, width, z);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) a[j] *= z[j] * normal_cdf(z[j]);
  vdiff::store_chunk(y + row * width, column, width, a);
}

// dx of both halves, and where partial is given their sums over `walk` rows. `width` is that of a half.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(const T* dy, const T* x, const float* bias, T* dx,
                                                            float* partial, int64_t rows, int64_t width, int64_t walk) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunks = (width + kChunk - 1) / kChunk;
  const int64_t part = i / chunks, column = (i - part * chunks) * kChunk;
  const int64_t end = (part + 1) * walk < rows ? (part + 1) * walk : rows;
  if (part * walk >= rows) return;
  float sum_value[kChunk] = {}, sum_gate[kChunk] = {};
  for (int64_t row = part * walk; row < end; ++row) {
    const T* value = x + row * 2 * width;
    float a[kChunk], z[kChunk], g[kChunk];
    load_biased(value, bias, column, width, a);
    load_biased(value + width, bias ? bias + width : nullptr, column, width, z);
    vdiff::load_chunk(dy + row * width, column, width, g);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const float cdf = normal_cdf(z[j]);
      a[j] *= g[j] * fmaf(z[j], normal_pdf(z[j]), cdf), g[j] *= z[j] * cdf;
      sum_value[j] += g[j], sum_gate[j] += a[j];
    }
    vdiff::store_chunk(dx + row * 2 * width, column, width, g);
    vdiff::store_chunk(dx + row * 2 * width + width, column, width, a);
  }
  if (partial) {
    vdiff::store_chunk(partial + part * 2 * width, column, width, sum_value);
    vdiff::store_chunk(partial + part * 2 * width + width, column, width, sum_gate);
  }
}

Tensor forward(const Tensor& x, const std::optional<Tensor>& bias) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() /= 2;
  Tensor y = torch::stable::new_empty(x, shape);
  if (y.numel() == 0) return y;
  const int64_t width = shape.back(), rows = y.numel() / width, threads = rows * vdiff::ceil_div(width, kChunk);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    forward_kernel<T><<<vdiff::ceil_div(threads, kThreads), kThreads, 0, vdiff::current_stream(x)>>>(
        vdiff::data<T>(x), vdiff::data<float>(bias), vdiff::mutable_data<T>(y), rows, width);
  });
  vdiff::check_launch();
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& bias) {
  Tensor dx = torch::stable::empty_like(x);
  Tensor dbias =
      bias.has_value() ? torch::stable::empty_like(*bias) : torch::stable::new_empty(x, std::vector<int64_t>{0});
  if (x.numel() == 0) return {dx, torch::stable::zero_(dbias)};
  const int64_t width = x.size(x.dim() - 1) / 2, rows = dy.numel() / width, chunks = vdiff::ceil_div(width, kChunk);
  const int64_t walk = vdiff::walk_rows(rows, rows, 1), parts = vdiff::ceil_div(rows, walk);
  const Tensor partial = torch::stable::new_empty(x, std::vector<int64_t>{bias.has_value() ? parts : 0, 2 * width},
                                                  vdiff::ScalarType::Float);
  float* sums = bias.has_value() ? vdiff::mutable_data<float>(partial) : nullptr;
  const cudaStream_t stream = vdiff::current_stream(x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    backward_kernel<T><<<vdiff::ceil_div(parts * chunks, kThreads), kThreads, 0, stream>>>(
        vdiff::data<T>(dy), vdiff::data<T>(x), vdiff::data<float>(bias), vdiff::mutable_data<T>(dx), sums, rows, width,
        walk);
  });
  vdiff::check_launch();
  if (sums) vdiff::sum_parts(sums, vdiff::mutable_data<float>(dbias), 1, parts, 2 * width, 2 * width, stream);
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("geglu_forward", TORCH_BOX(&forward));
  m.impl("geglu_backward", TORCH_BOX(&backward));
}
