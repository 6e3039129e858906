#include <algorithm>
#include <initializer_list>

#include "cuda/cta.cuh"
#include "cuda/launch.h"
#include "ops/group_norm_silu/share.h"

namespace {

using vdiff::Tensor;
using vdiff::group_norm::kThreads;
using vdiff::group_norm::Phase;
using vdiff::group_norm::Problem;
using vdiff::group_norm::Shape;
using vdiff::group_norm::Vectors;
using MaybeTensor = std::optional<Tensor>;

// Two blocks a multiprocessor: one loads while the other computes.
template <class T, bool kLast, bool kBackward, Phase kPhase>
__global__ void __launch_bounds__(kThreads, 2) share_kernel(const __grid_constant__ Problem<T> p) {
  extern __shared__ __align__(16) char memory[];
  vdiff::DeviceCta cta;
  // From the last block backwards, what the kernel before read last is still in the L2.
  const int64_t index = kPhase == Phase::apply ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const vdiff::group_norm::Block<vdiff::DeviceCta, T, kLast, kBackward> block(cta, p, index, memory);
  if constexpr (kBackward) {
    block.template backward<kPhase>();
  } else {
    block.template forward<kPhase>();
  }
}

__global__ void __launch_bounds__(kThreads) fold_kernel(Shape s, const float* channel_sums, double* sums) {
  vdiff::DeviceCta cta;
  vdiff::group_norm::fold_cuts(cta, s, blockIdx.x, channel_sums, sums);
}

// Gradients of weight and bias, a thread per channel.
__global__ void __launch_bounds__(kThreads)
    channel_gradient_kernel(Shape s, Vectors v, const double* sums, float* dweight, float* dbias) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= s.channels) return;
  if (dweight != nullptr) dweight[c] = vdiff::group_norm::channel_gradient<true>(s, v, sums, c);
  if (dbias != nullptr) dbias[c] = vdiff::group_norm::channel_gradient<false>(s, v, sums, c);
}

// Gradients of scale, shift or add, a thread per element of the (batch, frames, channels) output.
__global__ void __launch_bounds__(kThreads)
    frame_gradient_kernel(Shape s, Vectors v, const double* sums, vdiff::group_norm::Framed which, int64_t frames,
                          float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < s.batch * frames * s.channels) out[i] = vdiff::group_norm::frame_gradient(s, v, sums, which, frames, i);
}

int64_t frames_of(const MaybeTensor& t) { return t.has_value() ? t->size(1) : 1; }

bool on_packs(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % vdiff::group_norm::kBytesAPack != 0) return false;
  }
  return true;
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

vdiff::group_norm::Device device_of(const Tensor& x) {
  const int index = x.get_device_index();
  const auto attribute = [index](cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, index);
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrClusterLaunch) != 0};
}

template <class T, bool kLast, bool kBackward, Phase kPhase>
void launch_phase(const Problem<T>& p, cudaStream_t stream) {
  const auto kernel = share_kernel<T, kLast, kBackward, kPhase>;
  const int bytes = static_cast<int>(vdiff::group_norm::Layout(p.shape, kBackward).bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(p.shape.shares), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.shape.blocks())), config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes, config.stream = stream, config.attrs = &cluster;
  config.numAttrs = kPhase == Phase::whole && p.shape.shares > 1 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, p);
  vdiff::check_launch();
}

template <bool kBackward, class T>
void launch(const Problem<T>& p, cudaStream_t stream) {
  const auto run = [&](auto last) {
    constexpr bool kLast = decltype(last)::value;
    if (p.shape.resident) return launch_phase<T, kLast, kBackward, Phase::whole>(p, stream);
    launch_phase<T, kLast, kBackward, Phase::reduce>(p, stream);
    launch_phase<T, kLast, kBackward, Phase::apply>(p, stream);
  };
  p.shape.channels_last ? run(std::true_type{}) : run(std::false_type{});
}

MaybeTensor as_float(const MaybeTensor& t) {
  if (!t.has_value() || t->scalar_type() == vdiff::ScalarType::Float) return t;
  return torch::stable::to(*t, vdiff::ScalarType::Float);
}

// Owns the float32 copies that `view` points at.
struct FloatVectors {
  MaybeTensor weight, bias, scale, shift, add;

  Vectors view() const {
    using vdiff::data;
    return {data<float>(weight), data<float>(bias), data<float>(scale), data<float>(shift),
            data<float>(add),    frames_of(scale),  frames_of(shift)};
  }
};

Tensor scratch(const Tensor& x, int64_t n, vdiff::ScalarType dtype = vdiff::ScalarType::Float) {
  return torch::stable::new_empty(x, std::vector<int64_t>{n}, dtype);
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

int64_t blocks(int64_t threads) { return vdiff::ceil_div(threads, kThreads); }

// Where a unit's shares meet in a second kernel.
Tensor group_sums(const Shape& s, const Tensor& x) {
  return scratch(x, s.resident ? 0 : 3 * s.blocks() * s.slab_groups, vdiff::ScalarType::Double);
}

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
  const FloatVectors vectors{as_float(weight), as_float(bias), as_float(scale), as_float(shift), as_float(add)};
  const Tensor between = group_sums(s, x);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    Problem<T> p{s, vectors.view(), eps};
    p.x = vdiff::data<T>(x), p.x2 = vdiff::data<T>(x2), p.y = vdiff::mutable_data<T>(y);
    p.mean = vdiff::mutable_data<float>(mean), p.rstd = vdiff::mutable_data<float>(rstd);
    p.group_sums = vdiff::mutable_data<double>(between);
    launch<false>(p, vdiff::current_stream(x));
  });
  return {y, mean, rstd};
}

// A zeroed float32 gradient of the shape of `like`, no elements where it is absent.
Tensor float_gradient(const MaybeTensor& like, const Tensor& x) {
  if (!like.has_value()) return scratch(x, 0);
  const std::vector<int64_t> shape(like->sizes().begin(), like->sizes().end());
  return torch::stable::new_zeros(x, shape, vdiff::ScalarType::Float);
}

// The gradient in the dtype of `like`.
Tensor finished(const Tensor& gradient, const MaybeTensor& like, const Tensor& x) {
  const auto dtype = like.has_value() ? like->scalar_type() : x.scalar_type();
  return dtype == vdiff::ScalarType::Float ? gradient : torch::stable::to(gradient, dtype);
}

float* target(const Tensor& t) { return t.numel() > 0 ? vdiff::mutable_data<float>(t) : nullptr; }

struct VectorGradients {
  Tensor weight, bias, scale, shift, add;

  void launch(const Shape& s, const Vectors& v, const double* sums, cudaStream_t stream) const {
    if (target(weight) != nullptr || target(bias) != nullptr) {
      channel_gradient_kernel<<<blocks(s.channels), kThreads, 0, stream>>>(s, v, sums, target(weight), target(bias));
    }
    const Tensor* framed[] = {&scale, &shift, &add};
    const int64_t frames[] = {v.scale_frames, v.shift_frames, 1};
    for (int which = 0; which < 3; ++which) {
      float* to = target(*framed[which]);
      if (to == nullptr) continue;
      frame_gradient_kernel<<<blocks(framed[which]->numel()), kThreads, 0, stream>>>(
          s, v, sums, static_cast<vdiff::group_norm::Framed>(which), frames[which], to);
    }
  }
  bool wanted() const { return target(weight) || target(bias) || target(scale) || target(shift) || target(add); }
};

template <class T>
void launch_backward(const Shape& s, const Vectors& v, const Tensor& dy, const Tensor& x, const MaybeTensor& x2,
                     const Tensor& mean, const Tensor& rstd, const Tensor& dx, const Tensor& dx2,
                     const VectorGradients& gradients) {
  const cudaStream_t stream = vdiff::current_stream(x);
  const Tensor between = group_sums(s, x), parts = scratch(x, 3 * s.vectors() * s.cuts);
  Problem<T> p{s, v, 0.0};
  p.x = vdiff::data<T>(x), p.x2 = vdiff::data<T>(x2), p.dy = vdiff::data<T>(dy);
  p.y = vdiff::mutable_data<T>(dx), p.y2 = x2.has_value() ? vdiff::mutable_data<T>(dx2) : nullptr;
  p.mean = vdiff::mutable_data<float>(mean), p.rstd = vdiff::mutable_data<float>(rstd);
  p.group_sums = vdiff::mutable_data<double>(between), p.channel_sums = vdiff::mutable_data<float>(parts);
  launch<true>(p, stream);
  if (!gradients.wanted()) return;
  const Tensor sums = scratch(x, 3 * s.vectors(), vdiff::ScalarType::Double);
  double* folded = vdiff::mutable_data<double>(sums);
  fold_kernel<<<blocks(s.vectors() * vdiff::group_norm::kWarp), kThreads, 0, stream>>>(s, p.channel_sums, folded);
  gradients.launch(s, v, folded, stream);
  vdiff::check_launch();
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& dy, const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                   const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean, const Tensor& rstd,
                   const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add, bool per_frame,
                   bool silu) {
  Shape s = shape_of(x, x2, num_groups, std::max(frames_of(scale), frames_of(shift)), per_frame, silu);
  const Tensor dx = torch::stable::empty_like(x);
  const Tensor dx2 = x2.has_value() ? torch::stable::empty_like(*x2) : scratch(x, 0, x.scalar_type());
  const VectorGradients d{float_gradient(weight, x), float_gradient(bias, x), float_gradient(scale, x),
                          float_gradient(shift, x), float_gradient(add, x)};
  if (!s.empty()) {
    choose(
        s, device_of(x), true,
        on_packs({dy.data_ptr(), x.data_ptr(), pointer(x2), dx.data_ptr(), x2.has_value() ? dx2.data_ptr() : nullptr}));
    const FloatVectors vectors{as_float(weight), as_float(bias), as_float(scale), as_float(shift), as_float(add)};
    VDIFF_CUDA_DISPATCH(x.scalar_type(), T,
                        { launch_backward<T>(s, vectors.view(), dy, x, x2, mean, rstd, dx, dx2, d); });
  }
  return {dx,
          dx2,
          finished(d.weight, weight, x),
          finished(d.bias, bias, x),
          finished(d.scale, scale, x),
          finished(d.shift, shift, x),
          finished(d.add, add, x)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("group_norm_silu_forward", TORCH_BOX(&forward));
  m.impl("group_norm_silu_backward", TORCH_BOX(&backward));
}
