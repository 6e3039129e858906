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

struct Frames {
  int64_t count, elements;
  float shared, own;
  bool progressive;
};

// Four normals from element `first` on, which need not begin a counter.
__device__ __forceinline__ void normals_from(const vdiff::philox::Stream& stream, int64_t first, float (&n)[4]) {
  if (first % 4 == 0) return vdiff::philox::normals(stream, first / 4, n);
  float low[4], high[4];
  vdiff::philox::normals(stream, first / 4, low);
  vdiff::philox::normals(stream, first / 4 + 1, high);
  // Selections of registers: an index would put the eight numbers into local memory.
  const bool one = first % 4 == 1, two = first % 4 == 2;
  n[0] = one ? low[1] : two ? low[2] : low[3];
  n[1] = one ? low[2] : two ? low[3] : high[0];
  n[2] = one ? low[3] : two ? high[0] : high[1];
  n[3] = one ? high[0] : two ? high[1] : high[2];
}

// A thread makes four elements of every frame: what frames share stays in registers.
template <class T>
__global__ void __launch_bounds__(vdiff::kDrawThreads)
    correlated_kernel(vdiff::DeviceNoise noise, Frames frames, T* y, int64_t blocks) {
  const int64_t sample = blockIdx.x / blocks, block = blockIdx.x - sample * blocks;
  const int64_t first = 4 * (block * vdiff::kDrawThreads + threadIdx.x);
  if (first >= frames.elements) return;
  const auto stream = vdiff::philox::make_stream(noise.seed, noise.sample_offset, noise.stream, sample);
  auto common = stream;
  common.stream ^= 1u << 31;
  float carried[4] = {}, n[4];
  if (!frames.progressive) vdiff::philox::normals(common, first / 4, carried);
  y += sample * frames.count * frames.elements;
  for (int64_t frame = 0; frame < frames.count; ++frame) {
    const int64_t at = frame * frames.elements + first;
    normals_from(stream, at, n);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float z = __fadd_rn(__fmul_rn(frames.shared, carried[w]), __fmul_rn(frames.own, n[w]));
      if (frames.progressive) carried[w] = z = frame == 0 ? n[w] : z;
      if (first + w < frames.elements) y[at + w] = vdiff::from_float<T>(z);
    }
  }
}

Tensor correlated_noise(const Tensor& seed, std::optional<Tensor> sample_offset, std::optional<Tensor> stream,
                        int64_t batch, int64_t per_sample, vdiff::ScalarType dtype, int64_t frames, double shared,
                        double own, bool progressive) {
  Tensor y = torch::stable::new_empty(seed, {batch, per_sample}, dtype);
  if (y.numel() == 0) return y;
  const auto source = vdiff::device_noise(std::nullopt, seed, sample_offset, stream);
  const Frames f{frames, per_sample / frames, static_cast<float>(shared), static_cast<float>(own), progressive};
  const int64_t blocks = vdiff::draw_blocks(f.elements);
  VDIFF_CUDA_DISPATCH(dtype, T, {
    correlated_kernel<T><<<batch * blocks, vdiff::kDrawThreads, 0, vdiff::current_stream(y)>>>(
        source, f, vdiff::mutable_data<T>(y), blocks);
  });
  vdiff::check_launch();
  return y;
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

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("noise", TORCH_BOX(&noise));
  m.impl("correlated_noise", TORCH_BOX(&correlated_noise));
}
