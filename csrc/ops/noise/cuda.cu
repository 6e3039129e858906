#include "cuda/draw.cuh"

namespace {

using vdiff::Tensor;

template <class T>
__global__ void __launch_bounds__(vdiff::kDrawThreads)
    noise_kernel(vdiff::DeviceNoise noise, T* y, int64_t elements, int64_t blocks) {
  const int64_t sample = blockIdx.x / blocks, block = blockIdx.x - sample * blocks;
  vdiff::Quad quad;
  if (!vdiff::find_quad(1, elements, block * vdiff::kDrawThreads + threadIdx.x, quad)) return;
  float n[4];
  vdiff::read_noise<T>(noise, sample, 0, quad, n);
  vdiff::write(y + sample * elements, quad, n);
}

Tensor noise(const Tensor& seed, std::optional<Tensor> sample_offset, std::optional<Tensor> stream, int64_t batch,
             int64_t per_sample, vdiff::ScalarType dtype) {
  Tensor y = torch::stable::new_empty(seed, {batch, per_sample}, dtype);
  if (y.numel() == 0) return y;
  const auto source = vdiff::device_noise(std::nullopt, seed, sample_offset, stream);
  const int64_t blocks = vdiff::draw_blocks(per_sample);
  VDIFF_CUDA_DISPATCH(dtype, T, {
    noise_kernel<T><<<batch * blocks, vdiff::kDrawThreads, 0, vdiff::current_stream(y)>>>(
        source, vdiff::mutable_data<T>(y), per_sample, blocks);
  });
  vdiff::check_launch();
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) { m.impl("noise", TORCH_BOX(&noise)); }
