#include "cuda/rows.cuh"

namespace {

using vdiff::kChunk;
using vdiff::Tensor;
constexpr int kThreads = 256;

// s = 1 / (1 + e^-v), v = sqrt(8/pi) (z + 0.044715 z^3), and ds/dz with 1 - s = e^-v s, which does not cancel. z is
// clamped where s is 0 or 1 to float32.
struct Gate {
  float s, slope;
};
__device__ __forceinline__ Gate gate(float z) {
  const float c = fminf(fmaxf(z, -9.5f), 9.5f), square = c * c;
  const float e = __expf(-c * fmaf(0.0713548163f, square, 1.59576912f)), s = 1.0f / (1.0f + e);
  return {s, s * (e * s) * fmaf(0.214064449f, square, 1.59576912f)};
}

template <class T>
__device__ __forceinline__ void load_biased(const T* row, const float* bias, int64_t column, int64_t width,
                                            float (&z)[kChunk]) {
  vdiff::load_chunk(row, column, width, z);
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
  float z[kChunk];
  load_biased(x + row * width, bias, column, width, z);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) z[j] *= gate(z[j]).s;
  vdiff::store_chunk(y + row * width, column, width, z);
}

// dx, and where partial is given its sums over `walk` rows.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(const T* dy, const T* x, const float* bias, T* dx,
                                                            float* partial, int64_t rows, int64_t width, int64_t walk) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunks = (width + kChunk - 1) / kChunk;
  const int64_t part = i / chunks, column = (i - part * chunks) * kChunk;
  const int64_t end = (part + 1) * walk < rows ? (part + 1) * walk : rows;
  if (part * walk >= rows) return;
  float sum[kChunk] = {};
  for (int64_t row = part * walk; row < end; ++row) {
    float z[kChunk], g[kChunk];
    load_biased(x + row * width, bias, column, width, z);
    vdiff::load_chunk(dy + row * width, column, width, g);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const Gate k = gate(z[j]);
      g[j] *= fmaf(z[j], k.slope, k.s), sum[j] += g[j];
    }
    vdiff::store_chunk(dx + row * width, column, width, g);
  }
  if (partial) vdiff::store_chunk(partial + part * width, column, width, sum);
}

Tensor forward(const Tensor& x, const std::optional<Tensor>& bias) {
  Tensor y = torch::stable::empty_like(x);
  if (y.numel() == 0) return y;
  const int64_t width = x.size(x.dim() - 1), rows = x.numel() / width, threads = rows * vdiff::ceil_div(width, kChunk);
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
  const int64_t width = x.size(x.dim() - 1), rows = x.numel() / width, chunks = vdiff::ceil_div(width, kChunk);
  const int64_t walk = vdiff::walk_rows(rows, rows, 1), parts = vdiff::ceil_div(rows, walk);
  const Tensor partial =
      torch::stable::new_empty(x, std::vector<int64_t>{bias.has_value() ? parts : 0, width}, vdiff::ScalarType::Float);
  float* sums = bias.has_value() ? vdiff::mutable_data<float>(partial) : nullptr;
  const cudaStream_t stream = vdiff::current_stream(x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    backward_kernel<T><<<vdiff::ceil_div(parts * chunks, kThreads), kThreads, 0, stream>>>(
        vdiff::data<T>(dy), vdiff::data<T>(x), vdiff::data<float>(bias), vdiff::mutable_data<T>(dx), sums, rows, width,
        walk);
  });
  vdiff::check_launch();
  if (sums) vdiff::sum_parts(sums, vdiff::mutable_data<float>(dbias), 1, parts, width, width, stream);
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("gelu_tanh_forward", TORCH_BOX(&forward));
  m.impl("gelu_tanh_backward", TORCH_BOX(&backward));
}
