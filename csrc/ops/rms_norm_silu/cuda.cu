#include "cuda/norm_inputs.cuh"
#include "ops/rms_norm_silu/cuda_block.h"

namespace {

using namespace vdiff::norm;
using vdiff::MaybeTensor;
using vdiff::Tensor;
using vdiff::rms_norm::Layout;
using vdiff::rms_norm::Plan;
using vdiff::rms_norm::Problem;

// With two blocks on a multiprocessor one loads while the other computes.
template <class T, bool kLast, bool kBackward>
__global__ void __launch_bounds__(kThreads, 2) block_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  vdiff::DeviceCta cta;
  const vdiff::rms_norm::Block<vdiff::DeviceCta, T, kLast, kBackward> block(cta, p, blockIdx.x, memory);
  if constexpr (kBackward) {
    block.backward();
  } else {
    block.forward();
  }
}

Plan plan_of(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, bool silu) {
  const int64_t segments = std::max(vdiff::frames_of(scale), vdiff::frames_of(shift));
  return Plan{vdiff::norm_geometry(x, x.size(1), segments, !x.is_contiguous(), silu)};
}

template <bool kBackward, class T>
void launch(const Problem<T>& p, cudaStream_t stream) {
  const int64_t bytes = Layout(p.plan, kBackward).bytes;
  start(p.plan.channels_last ? block_kernel<T, true, kBackward> : block_kernel<T, false, kBackward>, p, p.plan.blocks(),
        bytes, stream);
}

int64_t shared_bytes(const Tensor& x) { return device_attribute(x, cudaDevAttrMaxSharedMemoryPerBlockOptin); }

std::tuple<Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& weight, double eps, const MaybeTensor& scale,
                                   const MaybeTensor& shift, bool silu) {
  Plan plan = plan_of(x, scale, shift, silu);
  Tensor y = torch::stable::empty_like(x);
  const std::vector<int64_t> shape{plan.batch, plan.segments * plan.length};
  Tensor rstd = torch::stable::new_empty(x, shape, vdiff::ScalarType::Float);
  if (plan.empty()) return {y, torch::stable::zero_(rstd)};
  choose(plan, shared_bytes(x), false, on_vectors({x.data_ptr(), y.data_ptr()}));
  const FloatChannelInputs inputs(weight, std::nullopt, scale, shift, std::nullopt);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    Problem<T> p{plan, inputs.view(), eps};
    p.x = vdiff::data<T>(x), p.y = vdiff::mutable_data<T>(y), p.rstd = vdiff::mutable_data<float>(rstd);
    launch<false>(p, vdiff::current_stream(x));
  });
  return {y, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const MaybeTensor& weight,
                                                    const Tensor& rstd, const MaybeTensor& scale,
                                                    const MaybeTensor& shift, bool silu) {
  Plan plan = plan_of(x, scale, shift, silu);
  const Tensor dx = torch::stable::empty_like(x);
  const ChannelGradients d(x, weight, std::nullopt, scale, shift, std::nullopt);
  if (!plan.empty()) {
    choose(plan, shared_bytes(x), true, on_vectors({dy.data_ptr(), x.data_ptr(), dx.data_ptr()}));
    const FloatChannelInputs inputs(weight, std::nullopt, scale, shift, std::nullopt);
    const Tensor parts = scratch(x, 3 * plan.segment_channels() * plan.cuts);
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
      Problem<T> p{plan, inputs.view(), 0.0};
      p.x = vdiff::data<T>(x), p.dy = vdiff::data<T>(dy), p.y = vdiff::mutable_data<T>(dx);
      p.rstd = vdiff::mutable_data<float>(rstd), p.channel_sums = vdiff::mutable_data<float>(parts);
      launch<true>(p, vdiff::current_stream(x));
    });
    d.launch(plan, plan.cuts, inputs.view(), vdiff::data<float>(parts), vdiff::current_stream(x));
  }
  return {dx, d.weight(), d.scale(), d.shift()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("rms_norm_silu_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("rms_norm_silu_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
