#include <limits>

#include "cuda/draw.cuh"
#include "ops/diffusion_loss/arguments.h"

namespace {

using std::string;
using vdiff::MaybeTensor;
using vdiff::ScalarType;
using vdiff::Tensor;
constexpr int kThreads = vdiff::kDrawThreads;

struct Arguments {
  const void *prediction, *x0;
  vdiff::DeviceNoise noise;
  vdiff::ScheduleTables schedule;
  vdiff::LossOptions options;
  vdiff::SampleLayout layout;
  const float* upstream;
  int64_t upstream_stride, blocks;
  double share;
};

__device__ float element_loss(float d, const vdiff::LossOptions& o, float& slope) {
  slope = d;
  if (!o.huber) return __fmul_rn(d, d);
  const float delta = static_cast<float>(o.delta), size = fabsf(d), inner = size > delta ? delta : size;
  slope = d > delta ? delta : d < -delta ? -delta : d;
  return inner * (size - 0.5f * inner);
}

// Sums over lanes, then over warps: the same order in every launch.
__device__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kThreads / 32; ++i) total += warps[i];
  }
  return total;
}

// T is the type of the prediction, X that of x0 and of a given noise. Writes the sum of weight * loss per block, or the
// gradient; the other pointer is null.
template <class T, class X, bool kFrames>
__global__ void __launch_bounds__(kThreads) loss_kernel(Arguments args, double* sums, T* gradient) {
  const int64_t sample = blockIdx.x / args.blocks, block = blockIdx.x - sample * args.blocks;
  const int64_t base = sample * args.layout.channels * args.layout.positions;
  const auto terms = vdiff::loss_terms<float>(args.schedule, sample, args.options);
  double total = 0;
  const auto element = [&](const vdiff::Quad& quad, const float (&n)[4]) {
    float y[4], x[4] = {}, slope[4], loss = 0;
    vdiff::read(static_cast<const T*>(args.prediction) + base, quad, y);
    if (args.x0 != nullptr) vdiff::read(static_cast<const X*>(args.x0) + base, quad, x);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float d = y[w] - __fadd_rn(__fmul_rn(terms.mix.q, n[w]), __fmul_rn(terms.mix.p, x[w]));
      const float one = element_loss(d, args.options, slope[w]);
      loss += w < quad.count ? one : 0.0f;
    }
    total += terms.weight * loss;
    if (gradient == nullptr) return;
    const float scale =
        vdiff::gradient_scale(terms, args.options, args.upstream[sample * args.upstream_stride], args.share);
#pragma unroll
    for (int w = 0; w < 4; ++w) slope[w] *= scale;
    vdiff::write(gradient + base, quad, slope);
  };
  vdiff::for_each_quad<X, kFrames>(args.noise, args.layout, sample, block * kThreads + threadIdx.x, element);
  if (sums == nullptr) return;
  total = block_sum(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const double* sums, float* loss, int64_t count, double share) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += sums[blockIdx.x * count + i];
  total = block_sum(total);
  if (threadIdx.x == 0) loss[blockIdx.x] = static_cast<float>(total * share);
}

Arguments make_arguments(const Tensor& prediction, const MaybeTensor& x0, const MaybeTensor& noise, const Tensor& t,
                         const Tensor& signal, const Tensor& noise_scale, const MaybeTensor& seed,
                         const MaybeTensor& sample_offset, const MaybeTensor& stream, const vdiff::LossOptions& options,
                         const vdiff::FrameCorrelation& correlation) {
  Arguments args{};
  args.prediction = prediction.data_ptr(), args.x0 = x0.has_value() ? x0->data_ptr() : nullptr;
  if (vdiff::needs_noise(options.target)) {
    args.noise = vdiff::device_noise(noise, seed, sample_offset, stream, correlation);
  }
  args.schedule = vdiff::schedule_tables(t, signal, noise_scale), args.options = options;
  args.layout = vdiff::sample_layout(prediction);
  if (args.noise.seed == nullptr) args.layout = {args.layout.batch, 1, args.layout.channels * args.layout.positions};
  args.blocks = vdiff::draw_blocks(args.layout, args.noise);
  return args;
}

template <class T, class X>
auto choose(bool frames) {
  return frames ? &loss_kernel<T, X, true> : &loss_kernel<T, X, false>;
}

void launch(const Arguments& args, const Tensor& prediction, bool other_is_float, double* sums, void* gradient) {
  const bool frames = args.noise.correlation.frames > 0;
  VDIFF_CUDA_DISPATCH(prediction.scalar_type(), T, {
    const auto kernel = other_is_float ? choose<T, float>(frames) : choose<T, T>(frames);
    kernel<<<args.layout.batch * args.blocks, kThreads, 0, vdiff::current_stream(prediction)>>>(
        args, sums, static_cast<T*>(gradient));
  });
  vdiff::check_launch();
}

bool is_float(const MaybeTensor& t) { return t.has_value() && t->scalar_type() == ScalarType::Float; }

Tensor forward(const Tensor& prediction, MaybeTensor x0, MaybeTensor noise, const Tensor& t, const Tensor& signal,
               const Tensor& noise_scale, MaybeTensor seed, MaybeTensor sample_offset, MaybeTensor stream,
               string target, string weighting, double gamma, string kind, double delta, int64_t frames, double shared,
               double own, bool progressive, bool mean) {
  std::vector<int64_t> shape;
  if (!mean) shape.push_back(prediction.size(0));
  Tensor loss = torch::stable::new_empty(prediction, shape, ScalarType::Float);
  if (prediction.numel() == 0) {
    torch::stable::fill_(loss, std::numeric_limits<double>::quiet_NaN());
    return loss;
  }
  const auto args = make_arguments(prediction, x0, noise, t, signal, noise_scale, seed, sample_offset, stream,
                                   vdiff::loss_options(target, weighting, gamma, kind, delta),
                                   vdiff::frame_correlation(frames, shared, own, progressive));
  Tensor sums = torch::stable::new_empty(prediction, {args.layout.batch * args.blocks}, ScalarType::Double);
  launch(args, prediction, is_float(x0) || is_float(noise), vdiff::mutable_data<double>(sums), nullptr);
  const int64_t outputs = mean ? 1 : args.layout.batch;
  sum_kernel<<<outputs, kThreads, 0, vdiff::current_stream(prediction)>>>(
      vdiff::data<double>(sums), vdiff::mutable_data<float>(loss), args.layout.batch * args.blocks / outputs,
      vdiff::loss_share(args.layout.batch, args.layout.channels * args.layout.positions, mean));
  vdiff::check_launch();
  return loss;
}

Tensor backward(const Tensor& upstream, const Tensor& prediction, MaybeTensor x0, MaybeTensor noise, const Tensor& t,
                const Tensor& signal, const Tensor& noise_scale, MaybeTensor seed, MaybeTensor sample_offset,
                MaybeTensor stream, string target, string weighting, double gamma, string kind, double delta,
                int64_t frames, double shared, double own, bool progressive, string of) {
  Tensor gradient = torch::stable::empty_like(prediction);
  if (gradient.numel() == 0) return gradient;
  auto options = vdiff::loss_options(target, weighting, gamma, kind, delta);
  options.of = vdiff::loss_input(of);
  auto args = make_arguments(prediction, x0, noise, t, signal, noise_scale, seed, sample_offset, stream, options,
                             vdiff::frame_correlation(frames, shared, own, progressive));
  args.upstream = vdiff::data<float>(upstream), args.upstream_stride = upstream.dim();
  args.share = vdiff::loss_share(args.layout.batch, args.layout.channels * args.layout.positions, upstream.dim() == 0);
  launch(args, prediction, is_float(x0) || is_float(noise), nullptr, gradient.data_ptr());
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("diffusion_loss", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("diffusion_loss_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
