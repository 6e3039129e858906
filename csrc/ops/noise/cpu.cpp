#include "cpu/noise_tensor.h"
#include "ops/noise/cpu_kernel.h"

namespace {

using vdiff::MaybeTensor;
using vdiff::Tensor;

Tensor noise(const Tensor& seed, MaybeTensor sample_offset, MaybeTensor stream, int64_t batch, int64_t per_sample,
             vdiff::ScalarType dtype, int64_t frames, double shared, double own, bool progressive) {
  Tensor y = torch::stable::new_empty(seed, {batch, per_sample}, dtype);
  if (y.numel() == 0) return y;
  const auto source = vdiff::noise_source(std::nullopt, seed, sample_offset, stream,
                                          vdiff::frame_correlation(frames, shared, own, progressive));
  const auto kernel = VDIFF_KERNEL(noise);
  const auto code = vdiff::dtype_of(y);
  char* out = static_cast<char*>(y.data_ptr());
  const int64_t bytes = y.element_size() * per_sample;
  vdiff::NoiseTasks({batch, 1, per_sample}, source).run([&](int64_t sample, int64_t, int64_t begin, int64_t end) {
    kernel(code, source, sample, out + sample * bytes, per_sample, begin, end);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) { m.impl("noise", TORCH_BOX(&noise)); }
