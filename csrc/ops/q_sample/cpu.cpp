#include "cpu/noise_tensor.h"
#include "ops/q_sample/cpu_kernel.h"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;

Tensor q_sample(const Tensor& x0, const Tensor& t, const Tensor& signal, const Tensor& noise_scale, MaybeTensor noise,
                MaybeTensor seed, MaybeTensor sample_offset, MaybeTensor stream, int64_t frames, double shared,
                double own, bool progressive) {
  Tensor out = torch::stable::empty_like(x0);
  if (out.numel() == 0) return out;
  auto layout = vdiff::sample_layout(x0);
  if (!seed.has_value()) layout = {layout.batch, 1, layout.channels * layout.positions};
  const vdiff::QSample args{vdiff::dtype_of(x0),
                            x0.data_ptr(),
                            out.data_ptr(),
                            vdiff::noise_source(noise, seed, sample_offset, stream,
                                                vdiff::frame_correlation(frames, shared, own, progressive)),
                            vdiff::schedule_tables(t, signal, noise_scale),
                            layout.channels,
                            layout.positions};
  const auto kernel = VDIFF_KERNEL(q_sample);
  vdiff::NoiseTasks(layout, args.noise).run([&](int64_t sample, int64_t, int64_t begin, int64_t end) {
    kernel(args, sample, begin, end);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) { m.impl("q_sample", TORCH_BOX(&q_sample)); }
