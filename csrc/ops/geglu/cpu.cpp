#include "cpu/tensor.h"
#include "ops/geglu/kernel.h"

namespace {

using vdiff::Tensor;

Tensor forward(const Tensor& x) {
  const int64_t width = x.size(x.dim() - 1) / 2;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = width;
  Tensor y = torch::stable::new_empty(x, shape);
  if (y.numel() == 0) return y;
  const auto kernel = VDIFF_KERNEL(geglu_forward);
  torch::stable::parallel_for(0, y.numel() / width, 1 + vdiff::kGrain / width, [&](int64_t begin, int64_t end) {
    kernel(vdiff::dtype_of(x), x.data_ptr(), y.data_ptr(), width, begin, end);
  });
  return y;
}

Tensor backward(const Tensor& dy, const Tensor& x) {
  const int64_t width = x.size(x.dim() - 1) / 2;
  Tensor dx = torch::stable::empty_like(x);
  if (dx.numel() == 0) return dx;
  const auto kernel = VDIFF_KERNEL(geglu_backward);
  torch::stable::parallel_for(0, dy.numel() / width, 1 + vdiff::kGrain / width, [&](int64_t begin, int64_t end) {
    kernel(vdiff::dtype_of(x), dy.data_ptr(), x.data_ptr(), dx.data_ptr(), width, begin, end);
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("geglu_forward", TORCH_BOX(&forward));
  m.impl("geglu_backward", TORCH_BOX(&backward));
}
