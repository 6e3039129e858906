#include "cpu/tensor.h"
#include "cpu/times.h"
#include "ops/timestep_embedding/cpu_kernel.h"

namespace {

using vdiff::Tensor;

Tensor timestep_embedding(const Tensor& t, int64_t dim, double max_period, double shift, bool flip_sin_to_cos,
                          double scale, vdiff::ScalarType dtype) {
  Tensor y = torch::stable::new_empty(t, {t.numel(), dim}, dtype);
  if (y.numel() == 0) return y;
  const auto times = vdiff::times(t, scale);
  const auto& frequencies = vdiff::frequencies(dim / 2, max_period, shift);
  const auto kernel = VDIFF_KERNEL(timestep_embedding);
  const int64_t grain = 1 + vdiff::kGrain / 4 / dim;
  torch::stable::parallel_for(0, t.numel(), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(2 * (dim / 2));
    kernel(vdiff::dtype_of(y), times.data(), frequencies.data(), dim, flip_sin_to_cos, scratch.data(), y.data_ptr(),
           begin, end);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) { m.impl("timestep_embedding", TORCH_BOX(&timestep_embedding)); }
