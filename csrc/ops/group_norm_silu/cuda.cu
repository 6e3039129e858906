#include "cuda/norm_inputs.cuh"
#include "ops/group_norm_silu/arguments.h"
#include "ops/group_norm_silu/cuda_block.h"

namespace {

using namespace vdiff::norm;
using namespace vdiff::group_norm;
using vdiff::DeviceCta;
using vdiff::MaybeTensor;
using vdiff::ScalarType;
using vdiff::Tensor;

// With two blocks on a multiprocessor one loads while the other computes.
template <class T, bool kLast, bool kBackward, Phase kPhase>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    slice_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  DeviceCta cta;
  // The apply phase begins with the last slice: what the reduce phase read last is still in the L2.
  const int64_t index = kPhase == Phase::apply ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  run_slice<kPhase, DeviceCta, T, kLast, kBackward>(cta, p, index, memory);
}

// All its blocks run at once: at most kBlocksPerMultiprocessor on every multiprocessor.
template <class T, bool kLast, bool kBackward>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    grid_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  DeviceCta cta;
  run_iterations<DeviceCta, T, kLast, kBackward>(cta, p, blockIdx.x, memory);
}

const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }

// Whether the kernels wait for their cluster: those made from the PTX of an older architecture do not, on any device.
// All are compiled alike, so one stands for them.
bool compiled_for_clusters() {
  cudaFuncAttributes compiled{};
  const auto kernel = slice_kernel<float, false, false, Phase::whole>;
  return cudaFuncGetAttributes(&compiled, kernel) == cudaSuccess && compiled.ptxVersion >= 90;
}

Plan plan_of(const Tensor& x, const MaybeTensor& x2, int64_t num_groups, const MaybeTensor& scale,
             const MaybeTensor& shift, bool per_frame, bool silu) {
  const int64_t frames = std::max(vdiff::frames_of(scale), vdiff::frames_of(shift));
  return Plan{geometry_of(x, x2, num_groups, frames, per_frame, silu)};
}

Device device_of(const Tensor& x) {
  return {device_attribute(x, cudaDevAttrMultiProcessorCount),
          device_attribute(x, cudaDevAttrMaxSharedMemoryPerBlockOptin),
          device_attribute(x, cudaDevAttrClusterLaunch) != 0 && compiled_for_clusters(),
          device_attribute(x, cudaDevAttrCooperativeLaunch) != 0};
}

template <class T, bool kLast, bool kBackward, Phase kPhase>
void launch_phase(const Problem<T>& p, cudaStream_t stream) {
  start(slice_kernel<T, kLast, kBackward, kPhase>, p, p.plan.blocks(), Layout(p.plan, kBackward).bytes, stream,
        in_clusters(kPhase == Phase::whole ? p.plan.slices : 1));
}

template <class T, bool kLast, bool kBackward>
void launch_grid(const Problem<T>& p, cudaStream_t stream) {
  const auto kernel = grid_kernel<T, kLast, kBackward>;
  // The plan counts on all of the shared memory.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  start(kernel, p, p.plan.blocks(), Layout(p.plan, kBackward).bytes, stream, at_once());
}

template <bool kBackward, class T>
void launch(const Problem<T>& p, cudaStream_t stream) {
  const auto run = [&](auto last) {
    constexpr bool kLast = decltype(last)::value;
    if (p.plan.exchange == Exchange::cluster) return launch_phase<T, kLast, kBackward, Phase::whole>(p, stream);
    if (p.plan.exchange == Exchange::grid) return launch_grid<T, kLast, kBackward>(p, stream);
    launch_phase<T, kLast, kBackward, Phase::reduce>(p, stream);
    launch_phase<T, kLast, kBackward, Phase::apply>(p, stream);
  };
  p.plan.channels_last ? run(std::true_type{}) : run(std::false_type{});
}

// Global memory in which the slices of a tile exchange their sums, where no cluster does.
struct ExchangeMemory {
  MaybeTensor sums, arrivals;

  ExchangeMemory(const Plan& plan, const Tensor& x) {
    if (plan.exchange == Exchange::cluster) return;
    sums = scratch(x, 3 * plan.all_slices() * plan.tile_groups, ScalarType::Double);
    if (plan.exchange == Exchange::split) return;
    arrivals = torch::stable::new_zeros(x, std::vector<int64_t>{plan.all_tiles()}, ScalarType::Int);
  }
  template <class T>
  void add_to(Problem<T>& p) const {
    if (sums.has_value()) p.group_sums = vdiff::mutable_data<double>(*sums);
    if (arrivals.has_value()) p.arrivals = vdiff::mutable_data<unsigned>(*arrivals);
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                                           const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                           const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add,
                                           bool per_frame, bool silu) {
  Plan plan = plan_of(x, x2, num_groups, scale, shift, per_frame, silu);
  Tensor y = empty_joint(
      plan, x, x2, [](const Tensor& like) { return torch::stable::empty_like(like); },
      [](const Tensor& like, const std::vector<int64_t>& shape) { return torch::stable::new_empty(like, shape); });
  const std::vector<int64_t> shape{plan.units, plan.groups};
  Tensor mean = torch::stable::new_empty(x, shape, ScalarType::Float), rstd = torch::stable::empty_like(mean);
  if (plan.empty()) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  choose(plan, device_of(x), false, on_vectors({x.data_ptr(), pointer(x2), y.data_ptr()}));
  const FloatChannelInputs inputs(weight, bias, scale, shift, add);
  const ExchangeMemory exchange(plan, x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    Problem<T> p{plan, inputs.view(), eps};
    p.x = vdiff::data<T>(x), p.x2 = vdiff::data<T>(x2), p.y = vdiff::mutable_data<T>(y);
    p.mean = vdiff::mutable_data<float>(mean), p.rstd = vdiff::mutable_data<float>(rstd);
    exchange.add_to(p);
    launch<false>(p, vdiff::current_stream(x));
  });
  return {y, mean, rstd};
}

template <class T>
void launch_backward(const Plan& plan, const ChannelInputs& inputs, const Tensor& dy, const Tensor& x,
                     const MaybeTensor& x2, const Tensor& mean, const Tensor& rstd, const Tensor& dx, const Tensor& dx2,
                     const ChannelGradients& gradients) {
  const cudaStream_t stream = vdiff::current_stream(x);
  const ExchangeMemory exchange(plan, x);
  const Tensor parts = scratch(x, 3 * plan.segment_channels() * plan.cuts);
  Problem<T> p{plan, inputs, 0.0};
  p.x = vdiff::data<T>(x), p.x2 = vdiff::data<T>(x2), p.dy = vdiff::data<T>(dy);
  p.y = vdiff::mutable_data<T>(dx), p.y2 = x2.has_value() ? vdiff::mutable_data<T>(dx2) : nullptr;
  p.mean = vdiff::mutable_data<float>(mean), p.rstd = vdiff::mutable_data<float>(rstd);
  p.channel_sums = vdiff::mutable_data<float>(parts);
  exchange.add_to(p);
  launch<true>(p, stream);
  gradients.launch(plan, plan.cuts, inputs, p.channel_sums, stream);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& dy, const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                   const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean, const Tensor& rstd,
                   const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add, bool per_frame,
                   bool silu) {
  Plan plan = plan_of(x, x2, num_groups, scale, shift, per_frame, silu);
  const Tensor dx = torch::stable::empty_like(x);
  const Tensor dx2 = x2.has_value() ? torch::stable::empty_like(*x2) : scratch(x, 0, x.scalar_type());
  const ChannelGradients d(x, weight, bias, scale, shift, add);
  if (!plan.empty()) {
    choose(plan, device_of(x), true,
           on_vectors(
               {dy.data_ptr(), x.data_ptr(), pointer(x2), dx.data_ptr(), x2.has_value() ? dx2.data_ptr() : nullptr}));
    const FloatChannelInputs inputs(weight, bias, scale, shift, add);
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T,
                        { launch_backward<T>(plan, inputs.view(), dy, x, x2, mean, rstd, dx, dx2, d); });
  }
  return {dx, dx2, d.weight(), d.bias(), d.scale(), d.shift(), d.add()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("group_norm_silu_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("group_norm_silu_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
