#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/noise_tensor.h"
#include "ops/sampler_step/cpu_kernel.h"

namespace {

using namespace vdiff::sampler;
using vdiff::MaybeTensor;
using vdiff::SamplerStep;
using vdiff::Tensor;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Row `step` of the table as double; NaN if the table has no such row.
void read_row(const Tensor& table, int64_t step, double* row) {
  const bool inside = step >= 0 && step < table.size(0);
  const bool narrow = table.scalar_type() == vdiff::ScalarType::Float;
  for (int i = 0; i < kColumns; ++i) {
    const int64_t at = step * kColumns + i;
    row[i] = !inside ? kNaN : narrow ? vdiff::data<float>(table)[at] : vdiff::data<double>(table)[at];
  }
}

// The factor of y per sample: rescale std(prediction) / std(y) + 1 - rescale, and 1 if all elements of y are equal.
std::vector<double> rescale_factors(const SamplerStep& args, int64_t batch, double rescale) {
  const vdiff::NoiseTasks pass({batch, 1, args.channels * args.positions}, {});
  const int64_t tasks = pass.per_sample();
  std::vector<vdiff::SpreadPart> parts(batch * tasks);
  const auto kernel = VDIFF_KERNEL(sampler_spread);
  pass.run([&](int64_t sample, int64_t task, int64_t begin, int64_t end) {
    kernel(args, sample, &parts[sample * tasks + task], begin, end);
  });
  std::vector<double> factors(batch);
  for (int64_t b = 0; b < batch; ++b) {
    double squares[2] = {0, 0}, mean[2] = {0, 0}, count = 0;
    for (int64_t task = 0; task < tasks; ++task) {
      const auto& part = parts[b * tasks + task];
      const double merged = count + part.count;
      for (int i = 0; i < 2; ++i) {
        const double delta = part.mean[i] - mean[i];
        squares[i] += part.squares[i] + delta * delta * count * part.count / merged;
        mean[i] += delta * part.count / merged;
      }
      count = merged;
    }
    // Rounding can bring a sum of squares below 0; a NaN stays a NaN.
    const double ratio = squares[1] <= 0 ? 1 : std::sqrt(std::max(squares[0], 0.0) / squares[1]);
    factors[b] = rescale * ratio + 1 - rescale;
  }
  return factors;
}

// The quantile with linear interpolation; reorders the values.
template <class T>
double quantile(T* values, int64_t count, double ratio) {
  const double position = ratio * static_cast<double>(count - 1);
  const int64_t below = static_cast<int64_t>(position);
  std::nth_element(values, values + below, values + count);
  const double low = values[below];
  if (below + 1 >= count) return low;
  return low + (position - below) * (*std::min_element(values + below + 1, values + count) - low);
}

// The threshold of dynamic thresholding per sample: the quantile of |x0|, limited to [1, maximum]; NaN if an x0 is NaN.
template <class T>
std::vector<double> dynamic_limits(const SamplerStep& args, int64_t batch, double ratio, double maximum) {
  const int64_t elements = args.channels * args.positions;
  std::vector<double> limits(batch);
  const auto kernel = VDIFF_KERNEL(sampler_magnitude);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t first, int64_t last) {
    std::vector<T> values(elements);
    for (int64_t b = first; b < last; ++b) {
      kernel(args, b, values.data(), 0, elements);
      const bool finite = std::none_of(values.begin(), values.end(), [](T v) { return std::isnan(v); });
      limits[b] = finite ? std::min(std::max(quantile(values.data(), elements, ratio), 1.0), maximum) : kNaN;
    }
  });
  return limits;
}

std::tuple<Tensor, Tensor> sampler_step(const Tensor& x, const Tensor& prediction, const Tensor& table,
                                        const Tensor& step, MaybeTensor uncond, MaybeTensor previous,
                                        MaybeTensor previous2, MaybeTensor noise, MaybeTensor seed,
                                        MaybeTensor sample_offset, MaybeTensor stream, double guidance_rescale,
                                        int64_t clip_mode, double clip, double clip_max, int64_t frames, double shared,
                                        double own, bool progressive) {
  Tensor x_prev = torch::stable::empty_like(x), x0 = torch::stable::empty_like(x);
  if (x.numel() == 0) return {x_prev, x0};
  SamplerStep args{};
  args.dtype = vdiff::dtype_of(x), args.prediction_dtype = vdiff::dtype_of(prediction);
  args.x = x.data_ptr(), args.prediction = prediction.data_ptr();
  args.uncond = uncond.has_value() ? uncond->data_ptr() : nullptr;
  args.previous = previous.has_value() ? previous->data_ptr() : nullptr;
  args.previous2 = previous2.has_value() ? previous2->data_ptr() : nullptr;
  args.x_prev = x_prev.data_ptr(), args.x0 = x0.data_ptr();
  args.clip = clip_mode == kFixed ? clip : 0;
  const int64_t index = *vdiff::data<int64_t>(step);
  read_row(table, index, args.row);
  args.noise = vdiff::noise_source(noise, seed, sample_offset, stream,
                                   vdiff::frame_correlation(frames, shared, own, progressive));
  if (!stream.has_value()) args.noise.stream = 1 + index;
  // A missing tensor whose coefficient is not 0 makes the result NaN; noise with coefficient 0 is not drawn.
  if (!previous.has_value() && args.row[kPrevious] != 0) args.row[kX] = kNaN;
  if (!previous2.has_value() && args.row[kPrevious2] != 0) args.row[kX] = kNaN;
  if (!noise.has_value() && !seed.has_value() && args.row[kNoise] != 0) args.row[kX] = kNaN;
  if (args.row[kNoise] == 0) args.noise = {};

  auto layout = vdiff::sample_layout(x);
  const int64_t elements = layout.channels * layout.positions;
  args.channels = 1, args.positions = elements;
  std::vector<double> factors, limits;
  if (uncond.has_value() && guidance_rescale != 0) {
    factors = rescale_factors(args, layout.batch, guidance_rescale);
    args.scale = factors.data();
  }
  if (clip_mode == kDynamic) {
    limits = args.dtype == vdiff::DType::f64 ? dynamic_limits<double>(args, layout.batch, clip, clip_max)
                                             : dynamic_limits<float>(args, layout.batch, clip, clip_max);
    args.limit = limits.data();
  }
  if (args.noise.drawn) args.channels = layout.channels, args.positions = layout.positions;
  const auto kernel = VDIFF_KERNEL(sampler_update);
  const vdiff::NoiseTasks pass({layout.batch, args.channels, args.positions}, args.noise);
  pass.run([&](int64_t sample, int64_t, int64_t begin, int64_t end) { kernel(args, sample, begin, end); });
  return {x_prev, x0};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) { m.impl("sampler_step", TORCH_BOX(&sampler_step)); }
