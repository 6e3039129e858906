#include <limits>
#include <string>
#include <vector>

#include "cpu/noise_tensor.h"
#include "ops/diffusion_loss/arguments.h"
#include "ops/diffusion_loss/cpu_kernel.h"

namespace {

using std::string;
using vdiff::MaybeTensor;
using vdiff::ScalarType;
using vdiff::Tensor;

struct Call {
  vdiff::DiffusionLoss args;
  vdiff::NoiseTasks tasks;

  int64_t per_sample() const { return args.channels * args.positions; }
};

Call make_call(const Tensor& prediction, const MaybeTensor& x0, const MaybeTensor& noise, const Tensor& t,
               const Tensor& signal, const Tensor& noise_scale, const MaybeTensor& seed,
               const MaybeTensor& sample_offset, const MaybeTensor& stream, const vdiff::LossOptions& options,
               const vdiff::FrameCorrelation& correlation) {
  auto layout = vdiff::sample_layout(prediction);
  auto source = vdiff::noise_source(noise, seed, sample_offset, stream, correlation);
  if (!vdiff::needs_noise(options.target)) source.drawn = false, source.given = nullptr;
  if (!source.drawn) layout = {layout.batch, 1, layout.channels * layout.positions};
  const bool other_is_float = (x0.has_value() && x0->scalar_type() == ScalarType::Float) || source.given_is_float;
  const vdiff::DiffusionLoss args{vdiff::dtype_of(prediction),
                                  other_is_float,
                                  prediction.data_ptr(),
                                  x0.has_value() ? x0->data_ptr() : nullptr,
                                  source,
                                  vdiff::schedule_tables(t, signal, noise_scale),
                                  options,
                                  layout.channels,
                                  layout.positions};
  return {args, vdiff::NoiseTasks(layout, source)};
}

// Runs the kernel on every task; `sums` (batch * tasks) or `gradient` may be null.
void run(const Call& call, double* sums, void* gradient, const Tensor* upstream, double share) {
  const auto kernel = VDIFF_KERNEL(diffusion_loss);
  const void* scale = upstream ? upstream->data_ptr() : nullptr;
  const int64_t stride = upstream && upstream->dim() == 1 ? 1 : 0;
  const int64_t tasks = call.tasks.per_sample();
  call.tasks.run([&](int64_t sample, int64_t task, int64_t begin, int64_t end) {
    double* sum = sums ? sums + sample * tasks + task : nullptr;
    kernel(call.args, {sum, gradient, scale, stride, share}, sample, begin, end);
  });
}

template <class A>
void write_loss(const Call& call, const std::vector<double>& sums, bool mean, A* loss) {
  const int64_t batch = call.tasks.batch, tasks = call.tasks.per_sample();
  const double share = vdiff::loss_share(batch, call.per_sample(), mean);
  double total = 0;
  for (int64_t b = 0; b < batch; ++b) {
    double sample = 0;
    for (int64_t i = 0; i < tasks; ++i) sample += sums[b * tasks + i];
    if (mean) {
      total += sample;
    } else {
      loss[b] = static_cast<A>(sample * share);
    }
  }
  if (mean) loss[0] = static_cast<A>(total * share);
}

Tensor finish(const Call& call, const Tensor& prediction, const std::vector<double>& sums, bool mean) {
  const bool wide = prediction.scalar_type() == ScalarType::Double;
  std::vector<int64_t> shape;
  if (!mean) shape.push_back(prediction.size(0));
  Tensor loss = torch::stable::new_empty(prediction, shape, wide ? ScalarType::Double : ScalarType::Float);
  // The mean of no elements is NaN, as in torch.
  if (prediction.numel() == 0) {
    torch::stable::fill_(loss, std::numeric_limits<double>::quiet_NaN());
  } else if (wide) {
    write_loss(call, sums, mean, vdiff::mutable_data<double>(loss));
  } else {
    write_loss(call, sums, mean, vdiff::mutable_data<float>(loss));
  }
  return loss;
}

Tensor forward(const Tensor& prediction, MaybeTensor x0, MaybeTensor noise, const Tensor& t, const Tensor& signal,
               const Tensor& noise_scale, MaybeTensor seed, MaybeTensor sample_offset, MaybeTensor stream,
               string target, string weighting, double gamma, string kind, double delta, int64_t frames, double shared,
               double own, bool progressive, bool mean) {
  const auto call = make_call(prediction, x0, noise, t, signal, noise_scale, seed, sample_offset, stream,
                              vdiff::loss_options(target, weighting, gamma, kind, delta),
                              vdiff::frame_correlation(frames, shared, own, progressive));
  std::vector<double> sums(call.tasks.batch * call.tasks.per_sample());
  run(call, sums.data(), nullptr, nullptr, 0);
  return finish(call, prediction, sums, mean);
}

std::tuple<Tensor, Tensor> forward_and_gradient(const Tensor& prediction, MaybeTensor x0, MaybeTensor noise,
                                                const Tensor& t, const Tensor& signal, const Tensor& noise_scale,
                                                MaybeTensor seed, MaybeTensor sample_offset, MaybeTensor stream,
                                                string target, string weighting, double gamma, string kind,
                                                double delta, int64_t frames, double shared, double own,
                                                bool progressive, bool mean) {
  const auto call = make_call(prediction, x0, noise, t, signal, noise_scale, seed, sample_offset, stream,
                              vdiff::loss_options(target, weighting, gamma, kind, delta),
                              vdiff::frame_correlation(frames, shared, own, progressive));
  Tensor gradient = torch::stable::empty_like(prediction);
  std::vector<double> sums(call.tasks.batch * call.tasks.per_sample());
  run(call, sums.data(), gradient.data_ptr(), nullptr, vdiff::loss_share(call.tasks.batch, call.per_sample(), mean));
  return {finish(call, prediction, sums, mean), gradient};
}

Tensor backward(const Tensor& upstream, const Tensor& prediction, MaybeTensor x0, MaybeTensor noise, const Tensor& t,
                const Tensor& signal, const Tensor& noise_scale, MaybeTensor seed, MaybeTensor sample_offset,
                MaybeTensor stream, string target, string weighting, double gamma, string kind, double delta,
                int64_t frames, double shared, double own, bool progressive, string of) {
  auto options = vdiff::loss_options(target, weighting, gamma, kind, delta);
  options.of = vdiff::loss_input(of);
  const auto call = make_call(prediction, x0, noise, t, signal, noise_scale, seed, sample_offset, stream, options,
                              vdiff::frame_correlation(frames, shared, own, progressive));
  Tensor gradient = torch::stable::empty_like(prediction);
  run(call, nullptr, gradient.data_ptr(), &upstream,
      vdiff::loss_share(call.tasks.batch, call.per_sample(), upstream.dim() == 0));
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("diffusion_loss", TORCH_BOX(&forward));
  m.impl("diffusion_loss_backward", TORCH_BOX(&backward));
  m.impl("diffusion_loss_and_gradient", TORCH_BOX(&forward_and_gradient));
}
