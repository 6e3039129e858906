#include "ops/noise/cpu_kernel.h"

#include "cpu/video_noise.h"

namespace vdiff::VDIFF_ISA {
namespace {

inline void write(double* y, vfloat n, int count) {
  for (int i = 0; i < count; ++i) y[i] = (double)n[i];
}
template <class T>
inline void write(T* y, vfloat n, int count) {
  store_elements(y, n, count);
}

template <class T>
void fill(const NoiseSource& s, int64_t sample, T* y, int64_t elements, int64_t begin, int64_t end) {
  philox::for_each(s, sample, 1, elements, begin, end,
                   [=](int64_t at, vfloat n, int count) { write(y + at, n, count); });
}

}  // namespace

void noise(DType dtype, const NoiseSource& source, int64_t sample, void* y, int64_t elements, int64_t begin,
           int64_t end) {
  switch (dtype) {
    case DType::f32: return fill(source, sample, (float*)y, elements, begin, end);
    case DType::bf16: return fill(source, sample, (bf16*)y, elements, begin, end);
    case DType::f16: return fill(source, sample, (fp16*)y, elements, begin, end);
    case DType::f64: return fill(source, sample, (double*)y, elements, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
