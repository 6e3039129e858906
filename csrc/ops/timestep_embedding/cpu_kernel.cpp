#include "ops/timestep_embedding/cpu_kernel.h"

#include "cpu/sinusoid.h"

namespace vdiff::VDIFF_ISA {
namespace {

template <class T>
void rows(const double* times, const double* frequencies, int64_t dim, bool flip, float* scratch, T* y, int64_t begin,
          int64_t end) {
  const int64_t half = dim / 2;
  for (int64_t row = begin; row < end; ++row) {
    T* out = y + row * dim;
    sinusoids(times[row], frequencies, half, flip, scratch);
    for (int64_t i = 0; i < 2 * half; ++i) from_float(out + i, scratch[i]);
    if (dim % 2) from_float(out + dim - 1, 0.0f);
  }
}

// float and double are computed where they go.
template <class T>
void rows_in_place(const double* times, const double* frequencies, int64_t dim, bool flip, T* y, int64_t begin,
                   int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    sinusoids(times[row], frequencies, dim / 2, flip, y + row * dim);
    if (dim % 2) y[row * dim + dim - 1] = 0;
  }
}

}  // namespace

void timestep_embedding(DType dtype, const double* times, const double* frequencies, int64_t dim, bool flip,
                        float* scratch, void* y, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return rows_in_place(times, frequencies, dim, flip, (float*)y, begin, end);
    case DType::bf16: return rows(times, frequencies, dim, flip, scratch, (bf16*)y, begin, end);
    case DType::f16: return rows(times, frequencies, dim, flip, scratch, (fp16*)y, begin, end);
    case DType::f64: return rows_in_place(times, frequencies, dim, flip, (double*)y, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
