#include "cuda/draw.cuh"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;

template <class T, bool kFrames>
__global__ void __launch_bounds__(vdiff::kDrawThreads)
    noise_kernel(vdiff::DeviceNoise noise, T* y, int64_t elements, int64_t blocks) {
  const int64_t sample = blockIdx.x / blocks, block = blockIdx.x - sample * blocks;
  y += sample * elements;
  vdiff::for_each_quad<T, kFrames>(noise, {gridDim.x / blocks, 1, elements}, sample,
                                   block * vdiff::kDrawThreads + threadIdx.x,
                                   [&](const vdiff::Quad& quad, const float (&n)[4]) { vdiff::write(y, quad, n); });
}

Tensor noise(const Tensor& seed, MaybeTensor sample_offset, MaybeTensor stream, int64_t batch, int64_t per_sample,
             vdiff::ScalarType dtype, int64_t frames, double shared, double own, bool progressive) {
  Tensor y = torch::stable::new_empty(seed, {batch, per_sample}, dtype);
  if (y.numel() == 0) return y;
  const auto source = vdiff::device_noise(std::nullopt, seed, sample_offset, stream,
                                          vdiff::frame_correlation(frames, shared, own, progressive));
  const int64_t blocks = vdiff::draw_blocks({batch, 1, per_sample}, source);
  VDIFF_CUDA_DISPATCH(dtype, T, {
    const auto kernel = frames > 0 ? &noise_kernel<T, true> : &noise_kernel<T, false>;
    kernel<<<batch * blocks, vdiff::kDrawThreads, 0, vdiff::current_stream(y)>>>(source, vdiff::mutable_data<T>(y),
                                                                                 per_sample, blocks);
  });
  vdiff::check_launch();
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) { m.impl("noise", TORCH_BOX(&vdiff::OnDevice<&noise>::call)); }
