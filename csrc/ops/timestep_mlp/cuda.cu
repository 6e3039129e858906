#include <cooperative_groups.h>

#include <algorithm>
#include <tuple>

#include "cuda/sinusoid.cuh"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;

// A warp takes a row of weights, reads it once and keeps the sums of kSamples samples in registers.
constexpr int kWarps = 8, kThreads = 32 * kWarps, kSamples = 8, kChunk = 512;

template <class T>
struct Layer {
  const T *w, *bias;
  int64_t rows, columns;
};

template <class T>
struct Arguments {
  vdiff::Sinusoids sinusoids;
  Layer<T> first, second;
  float* pre;
  T* y;
  int64_t batch;
  bool runs_first, runs_second;
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// out(sample, row, dot + bias) with dots of input(sample, column) and the rows of w, spread over the whole grid.
template <class T, class Input, class Output>
__device__ void linear(const Layer<T>& layer, int64_t batch, const Input& input, const Output& out) {
  __shared__ float x[kSamples][kChunk];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t tile = blockIdx.x * kWarps; tile < layer.rows; tile += gridDim.x * kWarps) {
    const int64_t row = tile + warp;
    for (int64_t sample = 0; sample < batch; sample += kSamples) {
      float sums[kSamples] = {};
      for (int64_t begin = 0; begin < layer.columns; begin += kChunk) {
        __syncthreads();
        for (int i = threadIdx.x; i < kSamples * kChunk; i += kThreads) {
          const int64_t b = sample + i / kChunk, c = begin + i % kChunk;
          x[i / kChunk][i % kChunk] = b < batch && c < layer.columns ? input(b, c) : 0.0f;
        }
        __syncthreads();
        if (row >= layer.rows) continue;
        for (int c = lane; c < kChunk && begin + c < layer.columns; c += 32) {
          const float w = vdiff::to_float(layer.w[row * layer.columns + begin + c]);
#pragma unroll
          for (int s = 0; s < kSamples; ++s) sums[s] = fmaf(w, x[s][c], sums[s]);
        }
      }
#pragma unroll
      for (int s = 0; s < kSamples; ++s) {
        const float dot = warp_sum(sums[s]);
        if (lane == s && row < layer.rows && sample + s < batch) {
          out(sample + s, row, dot + (layer.bias == nullptr ? 0.0f : vdiff::to_float(layer.bias[row])));
        }
      }
    }
  }
}

// Both layers in one launch, whose grid is as large as fits the device at once and waits between them; or one of them.
template <class T>
__global__ void __launch_bounds__(kThreads) mlp_kernel(Arguments<T> args) {
  const auto rounded = [](float v) { return vdiff::to_float(vdiff::from_float<T>(v)); };
  if (args.runs_first) {
    linear(
        args.first, args.batch, [&](int64_t b, int64_t c) { return rounded(vdiff::sinusoid(args.sinusoids, b, c)); },
        [&](int64_t b, int64_t row, float y) { args.pre[b * args.first.rows + row] = y; });
  }
  if (args.runs_first && args.runs_second) cooperative_groups::this_grid().sync();
  if (!args.runs_second) return;
  linear(
      args.second, args.batch,
      [&](int64_t b, int64_t c) {
        const float h = args.pre[b * args.first.rows + c];
        return h / (1.0f + expf(-h));
      },
      [&](int64_t b, int64_t row, float y) { args.y[b * args.second.rows + row] = vdiff::from_float<T>(y); });
}

template <class T>
void launch(Arguments<T> args, const Tensor& t) {
  int device = 0, multiprocessors = 0, blocks = 0, cooperative = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, mlp_kernel<T>, kThreads, 0);
  const int64_t wanted = vdiff::ceil_div(std::max(args.first.rows, args.second.rows), kWarps);
  const int64_t grid = std::max<int64_t>(1, std::min<int64_t>(wanted, static_cast<int64_t>(blocks) * multiprocessors));
  const cudaStream_t stream = vdiff::current_stream(t);
  if (cooperative) {
    args.runs_first = args.runs_second = true;
    void* parameters[] = {&args};
    cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&mlp_kernel<T>), dim3(grid), dim3(kThreads), parameters,
                                0, stream);
  } else {  // some virtual GPUs have none
    for (const bool second : {false, true}) {
      args.runs_first = !second, args.runs_second = second;
      mlp_kernel<T><<<grid, kThreads, 0, stream>>>(args);
    }
  }
  vdiff::check_launch();
}

// y, and the hidden layer before its activation in float32: what the backward needs.
std::tuple<Tensor, Tensor> timestep_mlp(const Tensor& t, const Tensor& w1, MaybeTensor b1, const Tensor& w2,
                                        MaybeTensor b2, double max_period, double shift, bool flip_sin_to_cos,
                                        double scale) {
  const int64_t batch = t.numel(), dim = w1.size(1), hidden = w1.size(0), out = w2.size(0);
  Tensor y = torch::stable::new_empty(w1, {batch, out});
  Tensor pre = torch::stable::new_empty(w1, {batch, hidden}, vdiff::ScalarType::Float);
  if (y.numel() == 0 && pre.numel() == 0) return {y, pre};
  VDIFF_CUDA_DISPATCH(w1.scalar_type(), T, {
    Arguments<T> args{};
    args.sinusoids = vdiff::sinusoids(t, dim, max_period, shift, flip_sin_to_cos, scale);
    args.first = {vdiff::data<T>(w1), vdiff::data<T>(b1), hidden, dim};
    args.second = {vdiff::data<T>(w2), vdiff::data<T>(b2), out, hidden};
    args.pre = vdiff::mutable_data<float>(pre), args.y = vdiff::mutable_data<T>(y), args.batch = batch;
    launch(args, t);
  });
  return {y, pre};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("timestep_mlp", TORCH_BOX(&vdiff::OnDevice<&timestep_mlp>::call));
}
