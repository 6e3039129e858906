#include "ops/geglu/cpu_kernel.h"

#include "cpu/gelu.h"
#include "cpu/row_vectors.h"

namespace vdiff::VDIFF_ISA {
namespace {

template <class T>
struct Kernels : RowVectors<T> {
  using Base = RowVectors<T>;
  using Base::each_vector;
  using typename Base::Real;
  using typename Base::V;
  static constexpr int kDigits = digits<T>;

  static inline V shifted(const T* x, const Real* bias, int64_t i, int lanes) {
    const V z = load_n(x + i, lanes);
    return bias ? z + load_n(bias + i, lanes) : z;
  }

  static void forward(const BiasedRows& a, int64_t begin, int64_t end) {
    const int64_t half = a.runs.width / 2;
    const Real* bias = (const Real*)a.bias;
    for (int64_t row = begin; row < end; ++row) {
      const T* x = (const T*)a.x + row * 2 * half;
      transform<false>((T*)a.out + row * half, half, [&](int64_t i, int lanes) {
        const V gate = shifted(x, bias, half + i, lanes);
        return shifted(x, bias, i, lanes) * (gate * normal<kDigits>(gate).cdf);
      });
    }
  }

  static void backward(const BiasedRows& a, int64_t part) {
    const int64_t half = a.runs.width / 2, begin = a.runs.first_row(part), end = a.runs.first_row(part + 1);
    const Real* bias = (const Real*)a.bias;
    Real* sums = a.partial ? (Real*)a.partial + part * 2 * half : nullptr;
    if (sums) Base::clear(sums, 2 * half);
    for (int64_t row = begin; row < end; ++row) {
      const T *x = (const T*)a.x + row * 2 * half, *dy = (const T*)a.dy + row * half;
      T* dx = (T*)a.out + row * 2 * half;
      each_vector(half, [&](int64_t i, int lanes) {
        const V gate = shifted(x, bias, half + i, lanes), g = load_n(dy + i, lanes);
        const auto phi = normal<kDigits>(gate);
        const V dvalue = g * (gate * phi.cdf);
        const V dgate = g * shifted(x, bias, i, lanes) * fma(gate, phi.pdf, phi.cdf);
        store_n(dx + i, dvalue, lanes), store_n(dx + half + i, dgate, lanes);
        if (sums) {
          store_n(sums + i, load_n(sums + i, lanes) + dvalue, lanes);
          store_n(sums + half + i, load_n(sums + half + i, lanes) + dgate, lanes);
        }
      });
    }
  }
};

}  // namespace

void geglu_kernels(DType dtype, BiasedRowsKernels* table) {
  switch (dtype) {
    case DType::bf16: *table = {Kernels<bf16>::forward, Kernels<bf16>::backward}; return;
    case DType::f16: *table = {Kernels<fp16>::forward, Kernels<fp16>::backward}; return;
    case DType::f64: *table = {Kernels<double>::forward, Kernels<double>::backward}; return;
    default: *table = {Kernels<float>::forward, Kernels<float>::backward}; return;
  }
}

}  // namespace vdiff::VDIFF_ISA
