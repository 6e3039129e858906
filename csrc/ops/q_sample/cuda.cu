#include "cuda/draw.cuh"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;

template <class T, bool kFrames>
__global__ void __launch_bounds__(vdiff::kDrawThreads)
    q_sample_kernel(const T* x0, T* out, vdiff::DeviceNoise noise, vdiff::ScheduleTables schedule,
                    vdiff::SampleLayout layout, int64_t blocks) {
  const int64_t sample = blockIdx.x / blocks, block = blockIdx.x - sample * blocks;
  const int64_t base = sample * layout.channels * layout.positions;
  const auto c = vdiff::coefficients<float>(schedule, sample);
  vdiff::for_each_quad<T, kFrames>(noise, layout, sample, block * vdiff::kDrawThreads + threadIdx.x,
                                   [&](const vdiff::Quad& quad, const float (&n)[4]) {
                                     float x[4];
                                     vdiff::read(x0 + base, quad, x);
#pragma unroll
                                     for (int w = 0; w < 4; ++w)
                                       x[w] = __fadd_rn(__fmul_rn(c.signal, x[w]), __fmul_rn(c.noise_scale, n[w]));
                                     vdiff::write(out + base, quad, x);
                                   });
}

Tensor q_sample(const Tensor& x0, const Tensor& t, const Tensor& signal, const Tensor& noise_scale, MaybeTensor noise,
                MaybeTensor seed, MaybeTensor sample_offset, MaybeTensor stream, int64_t frames, double shared,
                double own, bool progressive) {
  Tensor out = torch::stable::empty_like(x0);
  if (out.numel() == 0) return out;
  auto layout = vdiff::sample_layout(x0);
  if (!seed.has_value()) layout = {layout.batch, 1, layout.channels * layout.positions};
  const auto source = vdiff::device_noise(noise, seed, sample_offset, stream,
                                          vdiff::frame_correlation(frames, shared, own, progressive));
  const int64_t blocks = vdiff::draw_blocks(layout, source);
  VDIFF_CUDA_DISPATCH(x0.scalar_type(), T, {
    const auto kernel = source.correlation.frames > 0 ? &q_sample_kernel<T, true> : &q_sample_kernel<T, false>;
    kernel<<<layout.batch * blocks, vdiff::kDrawThreads, 0, vdiff::current_stream(x0)>>>(
        vdiff::data<T>(x0), vdiff::mutable_data<T>(out), source, vdiff::schedule_tables(t, signal, noise_scale), layout,
        blocks);
  });
  vdiff::check_launch();
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) { m.impl("q_sample", TORCH_BOX(&vdiff::OnDevice<&q_sample>::call)); }
