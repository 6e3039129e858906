#include "cuda/norm_vectors.cuh"
#include "ops/rms_norm_silu/cuda_block.h"

namespace {

using namespace vdiff::norm;
using vdiff::Tensor;
using vdiff::rms_norm::Layout;
using vdiff::rms_norm::Problem;
using vdiff::rms_norm::Shape;

// Two blocks a multiprocessor: one loads while the other computes.
template <class T, bool kLast, bool kBackward>
__global__ void __launch_bounds__(kThreads, 2) tile_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  vdiff::DeviceCta cta;
  const vdiff::rms_norm::Block<vdiff::DeviceCta, T, kLast, kBackward> block(cta, p, blockIdx.x, memory);
  if constexpr (kBackward) {
    block.backward();
  } else {
    block.forward();
  }
}

Shape shape_of(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, bool silu) {
  Shape s{};
  s.channels_last = !x.is_contiguous(), s.silu = silu, s.element = static_cast<int>(x.element_size());
  s.batch = x.size(0), s.channels = x.size(1);
  int64_t positions = 1;
  for (int64_t d = 2; d < x.dim(); ++d) positions *= x.size(d);
  s.segments = std::max(frames_of(scale), frames_of(shift)), s.length = positions / std::max<int64_t>(s.segments, 1);
  return s;
}

template <bool kBackward, class T>
void launch(const Problem<T>& p, cudaStream_t stream) {
  const int64_t bytes = Layout(p.shape, kBackward).bytes;
  start(p.shape.channels_last ? tile_kernel<T, true, kBackward> : tile_kernel<T, false, kBackward>, p, p.shape.blocks(),
        bytes, stream);
}

int64_t shared_bytes(const Tensor& x) { return device_attribute(x, cudaDevAttrMaxSharedMemoryPerBlockOptin); }

std::tuple<Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& weight, double eps, const MaybeTensor& scale,
                                   const MaybeTensor& shift, bool silu) {
  Shape s = shape_of(x, scale, shift, silu);
  Tensor y = torch::stable::empty_like(x);
  const std::vector<int64_t> shape{s.batch, s.segments * s.length};
  Tensor rstd = torch::stable::new_empty(x, shape, vdiff::ScalarType::Float);
  if (s.empty()) return {y, torch::stable::zero_(rstd)};
  choose(s, shared_bytes(x), false, on_packs({x.data_ptr(), y.data_ptr()}));
  const FloatVectors vectors(weight, std::nullopt, scale, shift, std::nullopt);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    Problem<T> p{s, vectors.view(), eps};
    p.x = vdiff::data<T>(x), p.y = vdiff::mutable_data<T>(y), p.rstd = vdiff::mutable_data<float>(rstd);
    launch<false>(p, vdiff::current_stream(x));
  });
  return {y, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const MaybeTensor& weight,
                                                    const Tensor& rstd, const MaybeTensor& scale,
                                                    const MaybeTensor& shift, bool silu) {
  Shape s = shape_of(x, scale, shift, silu);
  const Tensor dx = torch::stable::empty_like(x);
  const VectorGradients d(x, weight, std::nullopt, scale, shift, std::nullopt);
  if (!s.empty()) {
    choose(s, shared_bytes(x), true, on_packs({dy.data_ptr(), x.data_ptr(), dx.data_ptr()}));
    const FloatVectors vectors(weight, std::nullopt, scale, shift, std::nullopt);
    const Tensor parts = scratch(x, 3 * s.vectors() * s.cuts);
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
      Problem<T> p{s, vectors.view(), 0.0};
      p.x = vdiff::data<T>(x), p.dy = vdiff::data<T>(dy), p.y = vdiff::mutable_data<T>(dx);
      p.rstd = vdiff::mutable_data<float>(rstd), p.channel_sums = vdiff::mutable_data<float>(parts);
      launch<true>(p, vdiff::current_stream(x));
    });
    d.launch(s, vectors.view(), vdiff::data<float>(parts), vdiff::current_stream(x));
  }
  return {dx, d.weight(), d.scale(), d.shift()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("rms_norm_silu_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("rms_norm_silu_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
