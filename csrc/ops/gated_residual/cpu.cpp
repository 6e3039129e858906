#include "cpu/spans_tensor.h"
#include "ops/gated_residual/cpu_kernel.h"

namespace {

using vdiff::GatedResidual;
using vdiff::GatedResidualKernels;
using vdiff::Runs;
using vdiff::Tensor;

GatedResidualKernels kernels_for(const Tensor& x) {
  GatedResidualKernels table;
  VDIFF_KERNEL(gated_residual_kernels)(vdiff::dtype_of(x), &table);
  return table;
}

Tensor forward(const Tensor& residual, const Tensor& branch, const Tensor& gate) {
  Tensor y = vdiff::output_like(residual);
  const GatedResidual a{vdiff::runs_of(residual, gate),
                        residual.data_ptr(),
                        branch.data_ptr(),
                        vdiff::run_vectors(gate),
                        y.data_ptr(),
                        nullptr,
                        nullptr,
                        vdiff::beyond_cache(3 * y.numel() * y.element_size())};
  vdiff::run_forward(kernels_for(residual), a);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& branch, const Tensor& gate) {
  const Runs runs = vdiff::runs_of(branch, gate);
  Tensor dbranch = vdiff::output_like(branch), dgate = vdiff::vector_gradient_of(gate, runs);
  const Tensor partial = vdiff::partial_sums(branch, runs.cuts > 1 ? runs.parts() : 0, 1);
  const GatedResidual a{runs,
                        dy.data_ptr(),
                        branch.data_ptr(),
                        vdiff::run_vectors(gate),
                        dbranch.data_ptr(),
                        dgate.data_ptr(),
                        partial.data_ptr(),
                        vdiff::beyond_cache(3 * dbranch.numel() * dbranch.element_size())};
  vdiff::run_backward(kernels_for(branch), a);
  return {dbranch, dgate};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("gated_residual_forward", TORCH_BOX(&forward));
  m.impl("gated_residual_backward", TORCH_BOX(&backward));
}
