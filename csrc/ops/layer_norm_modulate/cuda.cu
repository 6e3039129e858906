#include "cuda/column_sums.cuh"
#include "cuda/layer_norm.cuh"

namespace {

using vdiff::DeviceVectors;
using vdiff::kSumThreads;
using vdiff::MaybeTensor;
using vdiff::Tensor;

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shift, const Tensor& scale, const MaybeTensor& weight,
                                   const MaybeTensor& bias, double eps) {
  Tensor y = torch::stable::empty_like(x);
  const auto shape = vdiff::layer_norm_shape(x, scale);
  Tensor statistics = torch::stable::new_empty(x, std::vector<int64_t>{3, shape.rows}, vdiff::ScalarType::Float);
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    vdiff::ForwardRows<T> a{};
    a.shape = shape, a.eps = static_cast<float>(eps), a.residual = vdiff::data<T>(x);
    a.shift = vdiff::device_vectors(shift), a.scale = vdiff::device_vectors(scale);
    a.weight = vdiff::data<float>(weight), a.bias = vdiff::data<float>(bias);
    a.y = vdiff::mutable_data<T>(y), a.statistics = vdiff::mutable_data<float>(statistics);
    vdiff::launch_forward<T, false>(a, vdiff::current_stream(x));
  });
  return {y, statistics};
}

// dshift and dscale of every run, from its parts in their order; the run's sums replace those of its first part. dscale
// is the gradient of 1 + scale, which multiplies normed * weight + bias.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    finish_runs_kernel(float* partial, int64_t runs, int64_t parts, int64_t width, const float* weight,
                       const float* bias, T* dshift, T* dscale) {
  const int64_t i = vdiff::sum_column(), run = i / width, column = i - run * width;
  float* first = partial + run * parts * 2 * width + column;
  const auto add = [&](int64_t part, double (&t)[2]) {
    t[0] += first[part * 2 * width], t[1] += first[(part * 2 + 1) * width];
  };
  double sums[2] = {};
  vdiff::sum_parts_of_column(run < runs, parts, add, sums);
  if (run >= runs || threadIdx.y > 0) return;
  const auto [dy, dy_normed] = sums;
  const double gained = dy_normed * (weight ? weight[column] : 1.0f) + dy * (bias ? bias[column] : 0.0f);
  dshift[i] = vdiff::from_float<T>(static_cast<float>(dy));
  dscale[i] = vdiff::from_float<T>(static_cast<float>(gained));
  first[0] = static_cast<float>(dy), first[width] = static_cast<float>(dy_normed);
}

// dweight and dbias: over all runs, each times its gain, or, where parts hold dz already (no scale), as they are.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    affine_kernel(const float* partial, int64_t count, int64_t step, int64_t width, bool gained, DeviceVectors scale,
                  float* dweight, float* dbias) {
  const int64_t column = vdiff::sum_column();
  const auto add = [&](int64_t i, double (&t)[2]) {
    const double gain = gained ? 1.0 : 1.0 + vdiff::to_float(scale.at<T>(i)[column]);
    t[0] += gain * partial[i * step + column], t[1] += gain * partial[i * step + width + column];
  };
  double sums[2] = {};
  vdiff::sum_parts_of_column(column < width, count, add, sums);
  if (column >= width || threadIdx.y > 0) return;
  if (dweight) dweight[column] = static_cast<float>(sums[1]);
  if (dbias) dbias[column] = static_cast<float>(sums[0]);
}

Tensor gradient_of(const MaybeTensor& v, const Tensor& x) {
  return v.has_value() ? torch::stable::empty_like(*v) : torch::stable::new_empty(x, std::vector<int64_t>{0});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const Tensor& scale,
                                                            const MaybeTensor& weight, const MaybeTensor& bias,
                                                            const Tensor& statistics) {
  const std::vector<int64_t> vectors{scale.size(0), scale.size(1), scale.size(2)};
  Tensor dx = torch::stable::empty_like(x), dshift = torch::stable::new_empty(x, vectors);
  Tensor dscale = torch::stable::new_empty(x, vectors), dweight = gradient_of(weight, x), dbias = gradient_of(bias, x);
  if (x.numel() == 0) {
    return {dx, torch::stable::zero_(dshift), torch::stable::zero_(dscale), torch::stable::zero_(dweight),
            torch::stable::zero_(dbias)};
  }
  VDIFF_CUDA_DISPATCH(x.scalar_type(), T, {
    vdiff::BackwardRows<T> a{};
    a.shape = vdiff::layer_norm_shape(x, scale);
    const int64_t blocks = vdiff::plan_backward<T, false>(a), width = a.shape.width, runs = a.shape.runs();
    const bool per_token = a.shape.length == 1, sums = !per_token || weight.has_value() || bias.has_value();
    const Tensor partial =
        torch::stable::new_empty(x, std::vector<int64_t>{sums ? blocks : 0, 2, width}, vdiff::ScalarType::Float);
    a.dy = vdiff::data<T>(dy), a.h = vdiff::data<T>(x), a.scale = vdiff::device_vectors(scale);
    a.weight = vdiff::data<float>(weight), a.bias = vdiff::data<float>(bias);
    a.statistics = vdiff::data<float>(statistics), a.dx = vdiff::mutable_data<T>(dx);
    a.dshift = vdiff::mutable_data<T>(dshift), a.dscale = vdiff::mutable_data<T>(dscale);
    a.partial = sums ? vdiff::mutable_data<float>(partial) : nullptr;
    const cudaStream_t stream = vdiff::current_stream(x);
    vdiff::launch_backward<T, false>(a, blocks, stream);
    if (!per_token) {
      const dim3 block = vdiff::sum_block(a.parts);
      finish_runs_kernel<T><<<vdiff::ceil_div(runs * width, block.x), block, 0, stream>>>(
          a.partial, runs, a.parts, width, a.weight, a.bias, a.dshift, a.dscale);
      vdiff::check_launch();
    }
    if (a.weight || a.bias) {
      const int64_t count = per_token ? blocks : runs;
      const dim3 block = vdiff::sum_block(count);
      affine_kernel<T><<<vdiff::ceil_div(width, block.x), block, 0, stream>>>(
          a.partial, count, per_token ? 2 * width : a.parts * 2 * width, width, per_token, a.scale,
          a.weight ? vdiff::mutable_data<float>(dweight) : nullptr,
          a.bias ? vdiff::mutable_data<float>(dbias) : nullptr);
      vdiff::check_launch();
    }
  });
  return {dx, dshift, dscale, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("layer_norm_modulate_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("layer_norm_modulate_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
