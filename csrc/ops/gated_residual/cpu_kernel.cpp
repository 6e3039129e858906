#include "ops/gated_residual/cpu_kernel.h"

#include "cpu/row_vectors.h"

namespace vdiff::VDIFF_ISA {
namespace {

template <class T>
struct Kernels : RowVectors<T> {
  using Base = RowVectors<T>;
  using Base::each_vector;
  using typename Base::Real;
  using typename Base::V;
  // Rows that share a pass over the column sums.
  static constexpr int kBlock = 4;

  static bool streamed(const GatedResidual& a) { return a.streamed && aligned_vectors((const T*)a.y, a.runs.width); }

  template <bool kPast>
  static void forward_as(const GatedResidual& a, int64_t begin, int64_t end) {
    const int64_t n = a.runs.width;
    for (int64_t row = begin; row < end; ++row) {
      const T *residual = (const T*)a.residual + row * n, *branch = (const T*)a.branch + row * n;
      const T* gate = a.gate.at<T>(a.runs, row / a.runs.length);
      transform<kPast>((T*)a.y + row * n, n, [&](int64_t i, int lanes) {
        return fma(load_n(gate + i, lanes), load_n(branch + i, lanes), load_n(residual + i, lanes));
      });
    }
    if constexpr (kPast) stream_fence();
  }
  static void forward(const GatedResidual& a, int64_t begin, int64_t end) {
    (streamed(a) ? forward_as<true> : forward_as<false>)(a, begin, end);
  }

  template <int kRows, bool kPast>
  static void backward_rows(const GatedResidual& a, int64_t row, int64_t run, Real* sums) {
    const int64_t n = a.runs.width, at = row * n;
    const T *dy = (const T*)a.residual + at, *branch = (const T*)a.branch + at, *gate = a.gate.at<T>(a.runs, run);
    T* dbranch = (T*)a.y + at;
    each_vector(n, [&](int64_t i, int lanes) {
      const V k = load_n(gate + i, lanes);
      V sum{};
      for (int r = 0; r < kRows; ++r) {
        const V g = load_n(dy + r * n + i, lanes);
        store_or_stream<kPast>(dbranch + r * n + i, g * k, lanes);
        sum = fma(g, load_n(branch + r * n + i, lanes), sum);
      }
      store(sums + i, load(sums + i) + sum);
    });
  }

  static int64_t scratch(int64_t width) { return Base::padded(width) * static_cast<int64_t>(sizeof(Real)); }

  template <bool kPast>
  static void backward_as(const GatedResidual& a, int64_t part, void* memory) {
    const Runs& runs = a.runs;
    const int64_t n = runs.width, end = runs.first_row(part + 1);
    Real* sums = (Real*)memory;
    for (int64_t row = runs.first_row(part); row < end;) {
      const int64_t run = row / runs.length, stop = (run + 1) * runs.length < end ? (run + 1) * runs.length : end;
      Base::clear(sums, Base::padded(n));
      for (; row + kBlock <= stop; row += kBlock) backward_rows<kBlock, kPast>(a, row, run, sums);
      for (; row < stop; ++row) backward_rows<1, kPast>(a, row, run, sums);
      if (runs.cuts == 1) write_run(a, run, sums);
    }
    if (runs.cuts > 1) __builtin_memcpy((Real*)a.partial + part * n, sums, n * sizeof(Real));
    if constexpr (kPast) stream_fence();
  }
  static void backward(const GatedResidual& a, int64_t part, void* memory) {
    (streamed(a) ? backward_as<true> : backward_as<false>)(a, part, memory);
  }

  template <class Sum>
  static void write_run(const GatedResidual& a, int64_t run, const Sum* sums) {
    const int64_t n = a.runs.width;
    for (int64_t i = 0; i < n; ++i) store_rounded((T*)a.dgate + run * n + i, sums[i]);
  }

  static void reduce(const GatedResidual& a, int64_t run, double* scratch) {
    const int64_t n = a.runs.width;
    for (int64_t i = 0; i < n; ++i) scratch[i] = 0;
    for (int64_t cut = 0; cut < a.runs.cuts; ++cut) {
      Base::add(scratch, (const Real*)a.partial + (run * a.runs.cuts + cut) * n, n);
    }
    write_run(a, run, scratch);
  }

  static constexpr GatedResidualKernels table() { return {forward, backward, reduce, scratch}; }
};

}  // namespace

void gated_residual_kernels(DType dtype, GatedResidualKernels* table) {
  switch (dtype) {
    case DType::bf16: *table = Kernels<bf16>::table(); return;
    case DType::f16: *table = Kernels<fp16>::table(); return;
    case DType::f64: *table = Kernels<double>::table(); return;
    default: *table = Kernels<float>::table(); return;
  }
}

}  // namespace vdiff::VDIFF_ISA
