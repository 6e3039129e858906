#include <cmath>
#include <tuple>

#include "cuda/draw.cuh"
#include "ops/sampler_step/columns.h"

namespace {

using namespace vdiff::sampler;
using vdiff::MaybeTensor;
using vdiff::Tensor;

constexpr int kThreads = vdiff::kDrawThreads;
constexpr int kReduceThreads = 1024;

// uncond, previous, previous2, scale and limits may be null.
template <class T, class P>
struct Step {
  const T *x, *previous, *previous2;
  const P *prediction, *uncond;
  T *x_prev, *x0;
  vdiff::DeviceNoise noise;
  const float* table;
  const int64_t* step;
  int64_t steps;
  const float *scale, *limits;  // per sample, of guidance_rescale and of dynamic thresholding
  float clip;                   // 0: no fixed clipping
};

// Row `step` of the table; NaN if the table has no such row.
__device__ __forceinline__ void read_row(const float* table, int64_t step, int64_t steps, float (&row)[kColumns]) {
  const bool inside = step >= 0 && step < steps;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) row[i] = inside ? table[step * kColumns + i] : nanf("");
}

template <class P>
__device__ __forceinline__ void read_guided(const P* prediction, const P* uncond, const vdiff::Quad& quad,
                                            float guidance, float (&y)[4]) {
  vdiff::read(prediction, quad, y);
  if (uncond == nullptr) return;
  float u[4];
  vdiff::read(uncond, quad, u);
#pragma unroll
  for (int w = 0; w < 4; ++w) y[w] = fmaf(guidance, y[w] - u[w], u[w]);
}

// A NaN stays a NaN.
__device__ __forceinline__ float clamp(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

// The elements of a tensor that may be missing: then 0, or NaN if its coefficient is not 0.
template <class T>
__device__ __forceinline__ void read_term(const T* term, int64_t base, const vdiff::Quad& quad, float coefficient,
                                          float (&value)[4]) {
  if (term != nullptr) {
    vdiff::read(term + base, quad, value);
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) value[w] = coefficient == 0.0f ? 0.0f : nanf("");
  }
}

template <class T, class P>
__device__ __forceinline__ void update(const Step<T, P>& s, const float (&row)[kColumns], int64_t sample, int64_t base,
                                       const vdiff::Quad& quad, const float (&n)[4]) {
  float x[4], y[4], x0[4], previous[4], previous2[4];
  vdiff::read(s.x + base, quad, x);
  read_guided(s.prediction + base, s.uncond == nullptr ? nullptr : s.uncond + base, quad, row[kGuidance], y);
  read_term(s.previous, base, quad, row[kPrevious], previous);
  read_term(s.previous2, base, quad, row[kPrevious2], previous2);
  const float scale = s.scale == nullptr ? 1.0f : s.scale[sample];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    y[w] *= scale;
    x0[w] = fmaf(row[kX0FromX], x[w], row[kX0FromY] * y[w]);
    if (s.limits != nullptr) {
      x0[w] = clamp(x0[w], s.limits[sample]) / s.limits[sample];
    } else if (s.clip > 0.0f) {
      x0[w] = clamp(x0[w], s.clip);
    }
    x[w] = fmaf(row[kX], x[w], fmaf(row[kX0], x0[w], row[kY] * y[w]));
    x[w] = fmaf(row[kPrevious2], previous2[w], fmaf(row[kPrevious], previous[w], x[w]));
    x[w] = fmaf(row[kNoise], n[w], x[w]);
  }
  vdiff::write(s.x_prev + base, quad, x);
  vdiff::write(s.x0 + base, quad, x0);
}

template <class T, class P, bool kFrames>
__global__ void __launch_bounds__(kThreads) update_kernel(Step<T, P> s, vdiff::SampleLayout layout, int64_t blocks) {
  const int64_t sample = blockIdx.x / blocks, thread = (blockIdx.x - sample * blocks) * kThreads + threadIdx.x;
  const int64_t base = sample * layout.channels * layout.positions, step = *s.step;
  float row[kColumns];
  read_row(s.table, step, s.steps, row);
  // The result is NaN if the noise is missing and its coefficient is not 0; noise with coefficient 0 is not drawn or
  // read.
  if (row[kNoise] != 0.0f && s.noise.seed == nullptr && s.noise.given == nullptr) row[kX] = nanf("");
  if (!kFrames && row[kNoise] == 0.0f) s.noise.seed = nullptr, s.noise.given = nullptr;
  const int64_t stream = s.noise.stream != nullptr ? *s.noise.stream : step + 1;
  s.noise.stream = &stream;
  vdiff::for_each_quad<T, kFrames>(s.noise, layout, sample, thread, [&](const vdiff::Quad& quad, const float (&n)[4]) {
    update(s, row, sample, base, quad, n);
  });
}

template <class P>
__device__ __forceinline__ float guided_at(const P* prediction, const P* uncond, int64_t at, float guidance) {
  const float y = vdiff::to_float(prediction[at]);
  if (uncond == nullptr) return y;
  const float u = vdiff::to_float(uncond[at]);
  return fmaf(guidance, y - u, u);
}

// Sum over the block, the same on every thread and in the same order every time.
__device__ double block_sum(double value) {
  __shared__ double warps[32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = warps[threadIdx.x % 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// One block per sample: rescale std(prediction) / std(y) + 1 - rescale, in two passes.
template <class T, class P>
__global__ void __launch_bounds__(kReduceThreads)
    rescale_kernel(Step<T, P> s, int64_t elements, float rescale, float* scale) {
  float row[kColumns];
  read_row(s.table, *s.step, s.steps, row);
  const P* prediction = s.prediction + blockIdx.x * elements;
  const P* uncond = s.uncond + blockIdx.x * elements;
  double sums[2] = {0, 0}, squares[2] = {0, 0};
  for (int64_t i = threadIdx.x; i < elements; i += kReduceThreads) {
    sums[0] += vdiff::to_float(prediction[i]);
    sums[1] += guided_at(prediction, uncond, i, row[kGuidance]);
  }
  const double mean[2] = {block_sum(sums[0]) / elements, block_sum(sums[1]) / elements};
  for (int64_t i = threadIdx.x; i < elements; i += kReduceThreads) {
    const double a = vdiff::to_float(prediction[i]) - mean[0];
    const double b = guided_at(prediction, uncond, i, row[kGuidance]) - mean[1];
    squares[0] += a * a, squares[1] += b * b;
  }
  const double before = block_sum(squares[0]), after = block_sum(squares[1]);
  if (threadIdx.x != 0) return;
  // The ratio is 1 if all elements of y are equal.
  const float ratio = after == 0 ? 1.0f : static_cast<float>(sqrt(before / after));
  scale[blockIdx.x] = rescale * ratio + (1.0f - rescale);
}

template <class T, class P>
__global__ void __launch_bounds__(kThreads)
    magnitude_kernel(Step<T, P> s, int64_t elements, int64_t blocks, float* magnitude) {
  const int64_t sample = blockIdx.x / blocks, i = (blockIdx.x - sample * blocks) * kThreads + threadIdx.x;
  if (i >= elements) return;
  float row[kColumns];
  read_row(s.table, *s.step, s.steps, row);
  const int64_t at = sample * elements + i;
  const float y = guided_at(s.prediction, s.uncond, at, row[kGuidance]) * (s.scale == nullptr ? 1.0f : s.scale[sample]);
  magnitude[at] = fabsf(fmaf(row[kX0FromX], vdiff::to_float(s.x[at]), row[kX0FromY] * y));
}

// One block per sample. Finds the values of rank `below` and below + 1 by radix selection, from the highest byte down
// (the bits of floats >= 0 sort like the floats), interpolates between them and limits the result to [1, maximum].
__global__ void __launch_bounds__(kReduceThreads)
    limit_kernel(const float* magnitude, int64_t elements, int64_t below, float share, float maximum, float* limits) {
  __shared__ unsigned counts[256], prefix, next;
  __shared__ int64_t rank, same;
  __shared__ int has_nan;
  const float* values = magnitude + blockIdx.x * elements;
  if (threadIdx.x == 0) prefix = 0, next = 0xffffffffu, rank = below, has_nan = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) counts[threadIdx.x] = 0;
    __syncthreads();
    const unsigned above = shift == 24 ? 0u : ~0u << (shift + 8);
    for (int64_t i = threadIdx.x; i < elements; i += kReduceThreads) {
      const unsigned bits = __float_as_uint(values[i]);
      if (bits > 0x7f800000u) has_nan = 1;
      if ((bits & above) == prefix) atomicAdd(&counts[(bits >> shift) & 255u], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned bucket = 0;
      while (bucket < 255 && rank >= counts[bucket]) rank -= counts[bucket++];
      prefix |= bucket << shift;
      same = counts[bucket];
    }
    __syncthreads();
  }
  unsigned least = 0xffffffffu;
  for (int64_t i = threadIdx.x; i < elements; i += kReduceThreads) {
    const unsigned bits = __float_as_uint(values[i]);
    if (bits > prefix && bits < least) least = bits;
  }
  atomicMin(&next, least);
  __syncthreads();
  if (threadIdx.x != 0) return;
  const float low = __uint_as_float(prefix);
  const float high = rank + 1 < same || next == 0xffffffffu ? low : __uint_as_float(next);
  const float limit = fminf(fmaxf(fmaf(share, high - low, low), 1.0f), maximum);
  limits[blockIdx.x] = has_nan ? nanf("") : limit;
}

struct Options {
  double rescale;
  int64_t clip_mode;
  double clip, clip_max;
};

template <class T, class P>
void launch(Step<T, P> step, vdiff::SampleLayout layout, const Options& options, const Tensor& x) {
  const cudaStream_t stream = vdiff::current_stream(x);
  const int64_t elements = layout.channels * layout.positions;
  const auto scratch = [&](int64_t count) { return torch::stable::new_empty(x, {count}, vdiff::ScalarType::Float); };
  Tensor scale = scratch(layout.batch), limits = scratch(layout.batch);
  if (step.uncond != nullptr && options.rescale != 0) {
    rescale_kernel<<<layout.batch, kReduceThreads, 0, stream>>>(step, elements, static_cast<float>(options.rescale),
                                                                vdiff::mutable_data<float>(scale));
    step.scale = vdiff::data<float>(scale);
  }
  if (options.clip_mode == kDynamic) {
    Tensor magnitude = scratch(layout.batch * elements);
    const int64_t blocks = vdiff::ceil_div(elements, kThreads);
    magnitude_kernel<<<layout.batch * blocks, kThreads, 0, stream>>>(step, elements, blocks,
                                                                     vdiff::mutable_data<float>(magnitude));
    const double position = options.clip * static_cast<double>(elements - 1);
    const int64_t below = static_cast<int64_t>(position);
    limit_kernel<<<layout.batch, kReduceThreads, 0, stream>>>(
        vdiff::data<float>(magnitude), elements, below, static_cast<float>(position - below),
        static_cast<float>(options.clip_max), vdiff::mutable_data<float>(limits));
    step.limits = vdiff::data<float>(limits);
  }
  // Only drawn noise depends on the channels; without it a sample is one row of elements.
  if (step.noise.seed == nullptr) layout = {layout.batch, 1, elements};
  const int64_t blocks = vdiff::draw_blocks(layout, step.noise);
  const auto kernel = step.noise.correlation.frames > 0 ? &update_kernel<T, P, true> : &update_kernel<T, P, false>;
  kernel<<<layout.batch * blocks, kThreads, 0, stream>>>(step, layout, blocks);
  vdiff::check_launch();
}

std::tuple<Tensor, Tensor> sampler_step(const Tensor& x, const Tensor& prediction, const Tensor& table,
                                        const Tensor& step, MaybeTensor uncond, MaybeTensor previous,
                                        MaybeTensor previous2, MaybeTensor noise, MaybeTensor seed,
                                        MaybeTensor sample_offset, MaybeTensor stream, double guidance_rescale,
                                        int64_t clip_mode, double clip, double clip_max, int64_t frames, double shared,
                                        double own, bool progressive) {
  Tensor x_prev = torch::stable::empty_like(x), x0 = torch::stable::empty_like(x);
  if (x.numel() == 0) return {x_prev, x0};
  const auto fill = [&]<class T, class P>() {
    Step<T, P> s{};
    s.x = vdiff::data<T>(x), s.prediction = vdiff::data<P>(prediction);
    s.previous = vdiff::data<T>(previous), s.previous2 = vdiff::data<T>(previous2);
    s.uncond = vdiff::data<P>(uncond);
    s.x_prev = vdiff::mutable_data<T>(x_prev), s.x0 = vdiff::mutable_data<T>(x0);
    s.noise = vdiff::device_noise(noise, seed, sample_offset, stream,
                                  vdiff::frame_correlation(frames, shared, own, progressive));
    s.table = vdiff::data<float>(table), s.step = vdiff::data<int64_t>(step), s.steps = table.size(0);
    s.clip = clip_mode == kFixed ? static_cast<float>(clip) : 0.0f;
    launch(s, vdiff::sample_layout(x), {guidance_rescale, clip_mode, clip, clip_max}, x);
  };
  if (x.scalar_type() == prediction.scalar_type()) {
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T, { fill.template operator()<T, T>(); });
  } else {
    // A float32 x under autocast.
    VDIFF_CUDA_DISPATCH(prediction.scalar_type(), P, { fill.template operator()<float, P>(); });
  }
  return {x_prev, x0};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("sampler_step", TORCH_BOX(&vdiff::OnDevice<&sampler_step>::call));
}
