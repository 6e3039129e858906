#include "ops/geglu/kernel.h"

#include "cpu/simd.h"

namespace vdiff::VDIFF_ISA {
namespace {

// Phi(x), the normal distribution function, through erfc: accurate in both tails, where 1 + erf(x) cancels.
inline float normal_cdf(float x) { return 0.5f * __builtin_erfcf(-x * 0.70710678f); }
inline double normal_cdf(double x) { return 0.5 * __builtin_erfc(-x * 0.70710678118654752440); }
inline float normal_pdf(float x) { return 0.39894228f * __builtin_expf(-0.5f * x * x); }
inline double normal_pdf(double x) { return 0.39894228040143267794 * __builtin_exp(-0.5 * x * x); }

inline double to_float(double x) { return x; }
inline void from_float(double* p, double x) { *p = x; }
using vdiff::VDIFF_ISA::from_float;
using vdiff::VDIFF_ISA::to_float;

template <class T>
void forward(const T* x, T* y, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T *value = x + row * 2 * width, *gate = value + width;
    for (int64_t i = 0; i < width; ++i) {
      const auto g = to_float(gate[i]);
      from_float(y + row * width + i, to_float(value[i]) * g * normal_cdf(g));
    }
  }
}

template <class T>
void backward(const T* dy, const T* x, T* dx, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T *value = x + row * 2 * width, *gate = value + width;
    T *dvalue = dx + row * 2 * width, *dgate = dvalue + width;
    for (int64_t i = 0; i < width; ++i) {
      const auto g = to_float(gate[i]), grad = to_float(dy[row * width + i]), cdf = normal_cdf(g);
      from_float(dvalue + i, grad * g * cdf);
      from_float(dgate + i, grad * to_float(value[i]) * (cdf + g * normal_pdf(g)));
    }
  }
}

}  // namespace

void geglu_forward(DType dtype, const void* x, void* y, int64_t width, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return forward((const float*)x, (float*)y, width, begin, end);
    case DType::bf16: return forward((const bf16*)x, (bf16*)y, width, begin, end);
    case DType::f16: return forward((const fp16*)x, (fp16*)y, width, begin, end);
    case DType::f64: return forward((const double*)x, (double*)y, width, begin, end);
  }
}

void geglu_backward(DType dtype, const void* dy, const void* x, void* dx, int64_t width, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::f32: return backward((const float*)dy, (const float*)x, (float*)dx, width, begin, end);
    case DType::bf16: return backward((const bf16*)dy, (const bf16*)x, (bf16*)dx, width, begin, end);
    case DType::f16: return backward((const fp16*)dy, (const fp16*)x, (fp16*)dx, width, begin, end);
    case DType::f64: return backward((const double*)dy, (const double*)x, (double*)dx, width, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
