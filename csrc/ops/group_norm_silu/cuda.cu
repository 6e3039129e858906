#include "cuda/norm_vectors.cuh"
#include "ops/group_norm_silu/cuda_block.h"

namespace {

using namespace vdiff::norm;
using vdiff::Tensor;
using vdiff::group_norm::kHeldBlocks;
using vdiff::group_norm::Phase;
using vdiff::group_norm::Problem;
using vdiff::group_norm::Shape;
using vdiff::group_norm::Way;

// Two blocks a multiprocessor: one loads while the other computes.
template <class T, bool kLast, bool kBackward, Phase kPhase>
__global__ void __launch_bounds__(kThreads, kHeldBlocks) share_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  vdiff::DeviceCta cta;
  // From the last block backwards, what the kernel before read last is still in the L2.
  const int64_t index = kPhase == Phase::apply ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  vdiff::group_norm::Block<vdiff::DeviceCta, T, kLast, kBackward>(cta, p, index, memory).template run<kPhase>();
}

// All its blocks run at once: no more than kHeldBlocks for every multiprocessor.
template <class T, bool kLast, bool kBackward>
__global__ void __launch_bounds__(kThreads, kHeldBlocks) grid_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  vdiff::DeviceCta cta;
  vdiff::group_norm::take_turns<vdiff::DeviceCta, T, kLast, kBackward>(cta, p, blockIdx.x, memory);
}

const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }

Shape shape_of(const Tensor& x, const MaybeTensor& x2, int64_t groups, int64_t frames, bool per_frame, bool silu) {
  Shape s{};
  s.channels_last = !(x.is_contiguous() && (!x2.has_value() || x2->is_contiguous()));
  s.silu = silu, s.batch = x.size(0), s.groups = groups, s.element = static_cast<int>(x.element_size());
  s.c1 = x.size(1), s.c2 = x2.has_value() ? x2->size(1) : 0;
  s.channels = s.c1 + s.c2, s.per_group = s.channels / groups;
  int64_t positions = 1;
  for (int64_t d = 2; d < x.dim(); ++d) positions *= x.size(d);
  s.segments = per_frame || frames > 1 ? x.size(2) : 1;
  s.length = positions / std::max<int64_t>(s.segments, 1);
  s.unit_segments = per_frame ? 1 : s.segments;
  s.units = per_frame ? s.batch * s.segments : s.batch;
  return s;
}

// Whether the kernels wait for their cluster: those made from the PTX of an older architecture do not, on any device.
// All are compiled alike, so one stands for them.
bool compiled_for_clusters() {
  cudaFuncAttributes compiled{};
  const auto kernel = share_kernel<float, false, false, Phase::whole>;
  return cudaFuncGetAttributes(&compiled, kernel) == cudaSuccess && compiled.ptxVersion >= 90;
}

vdiff::group_norm::Device device_of(const Tensor& x) {
  return {device_attribute(x, cudaDevAttrMultiProcessorCount),
          device_attribute(x, cudaDevAttrMaxSharedMemoryPerBlockOptin),
          device_attribute(x, cudaDevAttrClusterLaunch) != 0 && compiled_for_clusters(),
          device_attribute(x, cudaDevAttrCooperativeLaunch) != 0};
}

template <class T, bool kLast, bool kBackward, Phase kPhase>
void launch_phase(const Problem<T>& p, cudaStream_t stream) {
  start(share_kernel<T, kLast, kBackward, kPhase>, p, p.shape.blocks(),
        vdiff::group_norm::Layout(p.shape, kBackward).bytes, stream,
        in_clusters(kPhase == Phase::whole ? p.shape.shares : 1));
}

template <class T, bool kLast, bool kBackward>
void launch_grid(const Problem<T>& p, cudaStream_t stream) {
  const auto kernel = grid_kernel<T, kLast, kBackward>;
  // The plan counts on all of it.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  start(kernel, p, p.shape.blocks(), vdiff::group_norm::Layout(p.shape, kBackward).bytes, stream, at_once());
}

template <bool kBackward, class T>
void launch(const Problem<T>& p, cudaStream_t stream) {
  const auto run = [&](auto last) {
    constexpr bool kLast = decltype(last)::value;
    if (p.shape.way == Way::cluster) return launch_phase<T, kLast, kBackward, Phase::whole>(p, stream);
    if (p.shape.way == Way::grid) return launch_grid<T, kLast, kBackward>(p, stream);
    launch_phase<T, kLast, kBackward, Phase::reduce>(p, stream);
    launch_phase<T, kLast, kBackward, Phase::apply>(p, stream);
  };
  p.shape.channels_last ? run(std::true_type{}) : run(std::false_type{});
}

// An output for [x | x2] in their layout.
Tensor empty_joint(const Shape& s, const Tensor& x, const MaybeTensor& x2) {
  if (!x2.has_value()) return torch::stable::empty_like(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[1] = s.channels;
  if (!s.channels_last) return torch::stable::new_empty(x, shape);
  std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  Tensor y = torch::stable::new_empty(x, shape);
  for (int64_t d = x.dim() - 1; d > 1; --d) y = torch::stable::transpose(y, d, d - 1);
  return y;
}

// Where a unit's shares meet that no cluster holds.
struct Meeting {
  MaybeTensor sums, arrivals;

  Meeting(const Shape& s, const Tensor& x) {
    if (s.way == Way::cluster) return;
    sums = scratch(x, 3 * s.all_shares() * s.slab_groups, vdiff::ScalarType::Double);
    if (s.way == Way::split) return;
    arrivals = torch::stable::new_zeros(x, std::vector<int64_t>{s.items()}, vdiff::ScalarType::Int);
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
  Shape s = shape_of(x, x2, num_groups, std::max(frames_of(scale), frames_of(shift)), per_frame, silu);
  Tensor y = empty_joint(s, x, x2);
  const std::vector<int64_t> shape{s.units, s.groups};
  Tensor mean = torch::stable::new_empty(x, shape, vdiff::ScalarType::Float), rstd = torch::stable::empty_like(mean);
  if (s.empty()) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  choose(s, device_of(x), false, on_packs({x.data_ptr(), pointer(x2), y.data_ptr()}));
  const FloatVectors vectors(weight, bias, scale, shift, add);
  const Meeting meeting(s, x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    Problem<T> p{s, vectors.view(), eps};
    p.x = vdiff::data<T>(x), p.x2 = vdiff::data<T>(x2), p.y = vdiff::mutable_data<T>(y);
    p.mean = vdiff::mutable_data<float>(mean), p.rstd = vdiff::mutable_data<float>(rstd);
    meeting.add_to(p);
    launch<false>(p, vdiff::current_stream(x));
  });
  return {y, mean, rstd};
}

template <class T>
void launch_backward(const Shape& s, const Vectors& v, const Tensor& dy, const Tensor& x, const MaybeTensor& x2,
                     const Tensor& mean, const Tensor& rstd, const Tensor& dx, const Tensor& dx2,
                     const VectorGradients& gradients) {
  const cudaStream_t stream = vdiff::current_stream(x);
  const Meeting meeting(s, x);
  const Tensor parts = scratch(x, 3 * s.vectors() * s.cuts);
  Problem<T> p{s, v, 0.0};
  p.x = vdiff::data<T>(x), p.x2 = vdiff::data<T>(x2), p.dy = vdiff::data<T>(dy);
  p.y = vdiff::mutable_data<T>(dx), p.y2 = x2.has_value() ? vdiff::mutable_data<T>(dx2) : nullptr;
  p.mean = vdiff::mutable_data<float>(mean), p.rstd = vdiff::mutable_data<float>(rstd);
  p.channel_sums = vdiff::mutable_data<float>(parts);
  meeting.add_to(p);
  launch<true>(p, stream);
  gradients.launch(s, v, p.channel_sums, stream);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& dy, const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                   const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean, const Tensor& rstd,
                   const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add, bool per_frame,
                   bool silu) {
  Shape s = shape_of(x, x2, num_groups, std::max(frames_of(scale), frames_of(shift)), per_frame, silu);
  const Tensor dx = torch::stable::empty_like(x);
  const Tensor dx2 = x2.has_value() ? torch::stable::empty_like(*x2) : scratch(x, 0, x.scalar_type());
  const VectorGradients d(x, weight, bias, scale, shift, add);
  if (!s.empty()) {
    choose(
        s, device_of(x), true,
        on_packs({dy.data_ptr(), x.data_ptr(), pointer(x2), dx.data_ptr(), x2.has_value() ? dx2.data_ptr() : nullptr}));
    const FloatVectors vectors(weight, bias, scale, shift, add);
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T,
                        { launch_backward<T>(s, vectors.view(), dy, x, x2, mean, rstd, dx, dx2, d); });
  }
  return {dx, dx2, d.weight(), d.bias(), d.scale(), d.shift(), d.add()};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("group_norm_silu_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("group_norm_silu_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
