#include "cuda/column_sums.cuh"
#include "cuda/layer_norm.cuh"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& residual, const Tensor& branch, const Tensor& gate,
                                           const Tensor& shift, const Tensor& scale, double eps) {
  Tensor h = torch::stable::empty_like(residual), y = torch::stable::empty_like(residual);
  const auto shape = vdiff::layer_norm_shape(residual, gate);
  Tensor statistics = torch::stable::new_empty(residual, std::vector<int64_t>{3, shape.rows}, vdiff::ScalarType::Float);
  VDIFF_CUDA_DISPATCH(residual.scalar_type(), T, {
    vdiff::ForwardRows<T> a{};
    a.shape = shape, a.eps = static_cast<float>(eps);
    a.residual = vdiff::data<T>(residual), a.branch = vdiff::data<T>(branch);
    a.gate = vdiff::device_vectors(gate), a.shift = vdiff::device_vectors(shift);
    a.scale = vdiff::device_vectors(scale);
    a.h = vdiff::mutable_data<T>(h), a.y = vdiff::mutable_data<T>(y);
    a.statistics = vdiff::mutable_data<float>(statistics);
    vdiff::launch_forward<T, true>(a, vdiff::current_stream(residual));
  });
  return {h, y, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dy, const MaybeTensor& dh, const Tensor& h,
                                                            const Tensor& branch, const Tensor& gate,
                                                            const Tensor& scale, const Tensor& statistics) {
  const std::vector<int64_t> vectors{gate.size(0), gate.size(1), gate.size(2)};
  Tensor dresidual = torch::stable::empty_like(h), dbranch = torch::stable::empty_like(h);
  Tensor dgate = torch::stable::new_empty(h, vectors), dshift = torch::stable::new_empty(h, vectors);
  Tensor dscale = torch::stable::new_empty(h, vectors);
  if (h.numel() == 0) {
    return {dresidual, dbranch, torch::stable::zero_(dgate), torch::stable::zero_(dshift),
            torch::stable::zero_(dscale)};
  }
  VDIFF_CUDA_DISPATCH(h.scalar_type(), T, {
    vdiff::BackwardRows<T> a{};
    a.shape = vdiff::layer_norm_shape(h, gate);
    const int64_t blocks = vdiff::plan_backward<T, true>(a), width = a.shape.width;
    const bool per_token = a.shape.length == 1;
    const Tensor partial =
        torch::stable::new_empty(h, std::vector<int64_t>{per_token ? 0 : blocks, 3, width}, vdiff::ScalarType::Float);
    a.dy = vdiff::data<T>(dy), a.dh = vdiff::data<T>(dh), a.h = vdiff::data<T>(h), a.branch = vdiff::data<T>(branch);
    a.gate = vdiff::device_vectors(gate), a.scale = vdiff::device_vectors(scale);
    a.statistics = vdiff::data<float>(statistics);
    a.dx = vdiff::mutable_data<T>(dresidual), a.dbranch = vdiff::mutable_data<T>(dbranch);
    a.dgate = vdiff::mutable_data<T>(dgate), a.dshift = vdiff::mutable_data<T>(dshift);
    a.dscale = vdiff::mutable_data<T>(dscale), a.partial = per_token ? nullptr : vdiff::mutable_data<float>(partial);
    const cudaStream_t stream = vdiff::current_stream(h);
    vdiff::launch_backward<T, true>(a, blocks, stream);
    if (!per_token) {
      vdiff::sum_parts<T>(a.partial, {a.dshift, a.dscale, a.dgate}, a.shape.runs(), a.parts, width, stream);
    }
  });
  return {dresidual, dbranch, dgate, dshift, dscale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CUDA, m) {
  m.impl("gated_residual_norm_modulate_forward", TORCH_BOX(&vdiff::OnDevice<&forward>::call));
  m.impl("gated_residual_norm_modulate_backward", TORCH_BOX(&vdiff::OnDevice<&backward>::call));
}
