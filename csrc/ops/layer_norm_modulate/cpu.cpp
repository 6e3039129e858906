#include "cpu/layer_norm_tensor.h"
#include "ops/layer_norm_modulate/cpu_kernel.h"

namespace {

using vdiff::LayerNormKernels;
using vdiff::MaybeTensor;
using vdiff::Runs;
using vdiff::Tensor;

LayerNormKernels kernels_for(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias) {
  LayerNormKernels table;
  VDIFF_KERNEL(layer_norm_modulate_kernels)(vdiff::dtype_of(x), weight.has_value() || bias.has_value(), &table);
  return table;
}

const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shift, const Tensor& scale, const MaybeTensor& weight,
                                   const MaybeTensor& bias, double eps) {
  Tensor y = vdiff::output_like(x), statistics = vdiff::row_statistics(x);
  vdiff::LayerNormForward a{};
  a.runs = vdiff::runs_of(x, shift), a.eps = eps;
  a.residual = x.data_ptr(), a.shift = vdiff::run_vectors(shift), a.scale = vdiff::run_vectors(scale);
  a.weight = pointer(weight), a.bias = pointer(bias);
  a.y = y.data_ptr(), a.statistics = statistics.data_ptr();
  a.streamed = vdiff::beyond_cache(2 * y.numel() * y.element_size());
  vdiff::run_forward(kernels_for(x, weight, bias), a);
  return {y, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const Tensor& scale,
                                                            const MaybeTensor& weight, const MaybeTensor& bias,
                                                            const Tensor& statistics) {
  const Runs runs = vdiff::runs_of(x, scale);
  const bool affine = weight.has_value() || bias.has_value();
  Tensor dx = vdiff::output_like(x);
  Tensor dshift = vdiff::vector_gradient_of(scale, runs), dscale = vdiff::vector_gradient_of(scale, runs);
  const Tensor partial = vdiff::partial_sums(x, runs.cuts > 1 ? runs.parts() : 0, 2);
  const Tensor affine_partial = vdiff::partial_sums(x, affine ? runs.parts() : 0, 2);
  vdiff::LayerNormBackward a{};
  a.runs = runs, a.dy = dy.data_ptr(), a.h = x.data_ptr(), a.scale = vdiff::run_vectors(scale);
  a.weight = pointer(weight), a.bias = pointer(bias), a.statistics = statistics.data_ptr();
  a.dx = dx.data_ptr(), a.dshift = dshift.data_ptr(), a.dscale = dscale.data_ptr();
  a.partial = partial.data_ptr(), a.affine_partial = affine_partial.data_ptr();
  vdiff::run_backward(kernels_for(x, weight, bias), a);
  return {dx, dshift, dscale, vdiff::sum_of_parts(weight, x, affine_partial, 1),
          vdiff::sum_of_parts(bias, x, affine_partial, 0)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("layer_norm_modulate_forward", TORCH_BOX(&forward));
  m.impl("layer_norm_modulate_backward", TORCH_BOX(&backward));
}
