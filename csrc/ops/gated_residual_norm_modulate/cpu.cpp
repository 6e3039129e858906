#include "cpu/layer_norm_tensor.h"
#include "ops/gated_residual_norm_modulate/cpu_kernel.h"

namespace {

using vdiff::LayerNormKernels;
using vdiff::MaybeTensor;
using vdiff::Runs;
using vdiff::Tensor;

LayerNormKernels kernels_for(const Tensor& x) {
  LayerNormKernels table;
  VDIFF_KERNEL(gated_residual_norm_modulate_kernels)(vdiff::dtype_of(x), &table);
  return table;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& residual, const Tensor& branch, const Tensor& gate,
                                           const Tensor& shift, const Tensor& scale, double eps) {
  Tensor h = vdiff::output_like(residual), y = vdiff::output_like(residual);
  Tensor statistics = vdiff::row_statistics(residual);
  vdiff::LayerNormForward a{};
  a.runs = vdiff::runs_of(residual, gate), a.eps = eps;
  a.residual = residual.data_ptr(), a.branch = branch.data_ptr();
  a.gate = vdiff::run_vectors(gate), a.shift = vdiff::run_vectors(shift), a.scale = vdiff::run_vectors(scale);
  a.h = h.data_ptr(), a.y = y.data_ptr(), a.statistics = statistics.data_ptr();
  a.streamed = vdiff::beyond_cache(4 * y.numel() * y.element_size());
  vdiff::run_forward(kernels_for(residual), a);
  return {h, y, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dy, const MaybeTensor& dh, const Tensor& h,
                                                            const Tensor& branch, const Tensor& gate,
                                                            const Tensor& scale, const Tensor& statistics) {
  const Runs runs = vdiff::runs_of(h, gate);
  Tensor dresidual = vdiff::output_like(h), dbranch = vdiff::output_like(h);
  Tensor dgate = vdiff::vector_gradient_of(gate, runs);
  Tensor dshift = vdiff::vector_gradient_of(scale, runs), dscale = vdiff::vector_gradient_of(scale, runs);
  const Tensor partial = vdiff::partial_sums(h, runs.cuts > 1 ? runs.parts() : 0, 3);
  vdiff::LayerNormBackward a{};
  a.runs = runs, a.dy = dy.data_ptr(), a.dh = dh.has_value() ? dh->data_ptr() : nullptr;
  a.h = h.data_ptr(), a.branch = branch.data_ptr();
  a.gate = vdiff::run_vectors(gate), a.scale = vdiff::run_vectors(scale), a.statistics = statistics.data_ptr();
  a.dx = dresidual.data_ptr(), a.dbranch = dbranch.data_ptr();
  a.dshift = dshift.data_ptr(), a.dscale = dscale.data_ptr(), a.dgate = dgate.data_ptr();
  a.partial = partial.data_ptr();
  vdiff::run_backward(kernels_for(h), a);
  return {dresidual, dbranch, dgate, dshift, dscale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("gated_residual_norm_modulate_forward", TORCH_BOX(&forward));
  m.impl("gated_residual_norm_modulate_backward", TORCH_BOX(&backward));
}
