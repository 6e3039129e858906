#include "ops/gelu_tanh/cpu_kernel.h"

#include "cpu/gelu.h"
#include "cpu/row_vectors.h"

namespace vdiff::VDIFF_ISA {
namespace {

template <class T>
struct Kernels : RowVectors<T> {
  using Base = RowVectors<T>;

  using typename Base::Real;
  using typename Base::V;
  static constexpr int kDigits = digits<T>;

  static inline V shifted(const T* x, const Real* bias, int64_t i, int lanes) {
    const V z = load_n(x + i, lanes);
    return bias ? z + load_n(bias + i, lanes) : z;
  }

  static void forward(const BiasedRows& a, int64_t begin, int64_t end) {
    const int64_t n = a.runs.width;
    for (int64_t row = begin; row < end; ++row) {
      const T* x = (const T*)a.x + row * n;
      transform<false>((T*)a.out + row * n, n, [&](int64_t i, int lanes) {
        return TanhGelu<V>(shifted(x, (const Real*)a.bias, i, lanes)).template value<kDigits>();
      });
    }
  }

  static void backward(const BiasedRows& a, int64_t part) {
    const int64_t n = a.runs.width, begin = a.runs.first_row(part), end = a.runs.first_row(part + 1);
    Real* sums = a.partial ? (Real*)a.partial + part * n : nullptr;
    if (sums) Base::clear(sums, n);
    for (int64_t row = begin; row < end; ++row) {
      const T *x = (const T*)a.x + row * n, *dy = (const T*)a.dy + row * n;
      transform<false>((T*)a.out + row * n, n, [&](int64_t i, int lanes) {
        const TanhGelu<V> gelu(shifted(x, (const Real*)a.bias, i, lanes));
        const V g = load_n(dy + i, lanes) * gelu.template slope<kDigits>();
        if (sums) store_n(sums + i, load_n(sums + i, lanes) + g, lanes);
        return g;
      });
    }
  }
};

}  // namespace

void gelu_tanh_kernels(DType dtype, BiasedRowsKernels* table) {
  switch (dtype) {
    case DType::bf16: *table = {Kernels<bf16>::forward, Kernels<bf16>::backward}; return;
    case DType::f16: *table = {Kernels<fp16>::forward, Kernels<fp16>::backward}; return;
    case DType::f64: *table = {Kernels<double>::forward, Kernels<double>::backward}; return;
    default: *table = {Kernels<float>::forward, Kernels<float>::backward}; return;
  }
}

}  // namespace vdiff::VDIFF_ISA
