#include "cpu/spans_tensor.h"
#include "ops/geglu/cpu_kernel.h"

namespace {

using vdiff::BiasedRows;
using vdiff::BiasedRowsKernels;
using vdiff::MaybeTensor;
using vdiff::Runs;
using vdiff::Tensor;

BiasedRowsKernels kernels_for(const Tensor& x) {
  BiasedRowsKernels table;
  VDIFF_KERNEL(geglu_kernels)(vdiff::dtype_of(x), &table);
  return table;
}

Tensor forward(const Tensor& x, const MaybeTensor& bias) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() /= 2;
  Tensor y = vdiff::new_output(x, shape);
  const BiasedRows a{vdiff::rows_of(x), nullptr, x.data_ptr(), vdiff::data<void>(bias), y.data_ptr(), nullptr};
  vdiff::run_forward(kernels_for(x), a);
  return y;
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const MaybeTensor& bias) {
  const Runs runs = vdiff::rows_of(x);
  Tensor dx = vdiff::output_like(x);
  const Tensor partial = vdiff::partial_sums(x, bias.has_value() ? runs.parts() : 0, 1);
  const BiasedRows a{runs,          dy.data_ptr(),
                     x.data_ptr(),  vdiff::data<void>(bias),
                     dx.data_ptr(), bias.has_value() ? partial.data_ptr() : nullptr};
  const auto kernels = kernels_for(x);
  vdiff::each_part(runs, [&](int64_t part) { kernels.backward(a, part); });
  return {dx, vdiff::sum_of_parts(bias, x, partial, 0)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("geglu_forward", TORCH_BOX(&forward));
  m.impl("geglu_backward", TORCH_BOX(&backward));
}
