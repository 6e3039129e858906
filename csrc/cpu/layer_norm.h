// h = residual + gate * branch; y = (normed(h) * weight + bias) * (1 + scale) + shift, and its backward, row by row in
// cache. Included by cpu_kernel.cpp files only.
#pragma once

#include "cpu/layer_norm_rows.h"
#include "cpu/row_vectors.h"

namespace vdiff::VDIFF_ISA {

template <class T, bool kGated, bool kAffine>
struct LayerNorm : RowVectors<T> {
  using Base = RowVectors<T>;
  using Base::each_vector, Base::each_vector_unrolled, Base::kCount, Base::reduce_sum4;
  using typename Base::Real;
  using typename Base::V;
  // Rows that share a pass over the column sums.
  static constexpr int kBlock = 4;

  // normed = (x - high) * rstd + offset; the mean's low part counts where the mean is far above the deviation.
  struct Statistics {
    Real high, low, rstd;
    inline V normed(V x) const { return fma(x - (V{} + high), V{} + rstd, V{} - low * rstd); }
  };
  static Statistics read_statistics(const Real* planes, const Runs& runs, int64_t row) {
    return {planes[row], planes[runs.rows + row], planes[2 * runs.rows + row]};
  }

  static Statistics statistics(const T* x, int64_t n, Real eps) {
    V sum[4] = {}, square[4] = {};
    each_vector_unrolled(n, [&](int64_t i, int lanes, int j) { sum[j] += load_n(x + i, lanes); });
    const Real high = reduce_sum4(sum) / static_cast<Real>(n);
    for (V& s : sum) s = V{};
    each_vector_unrolled(n, [&](int64_t i, int lanes, int j) {
      const V d = keep_n<T>(load_n(x + i, lanes) - (V{} + high), lanes);
      sum[j] += d;
      square[j] = fma(d, d, square[j]);
    });
    const Real low = reduce_sum4(sum) / static_cast<Real>(n),
               variance = reduce_sum4(square) / static_cast<Real>(n) - low * low;
    const double root = __builtin_sqrt(static_cast<double>((variance > 0 ? variance : Real{0}) + eps));
    return {high, low, static_cast<Real>(1.0 / root)};
  }

  static void gate_row(const T* residual, const T* branch, const T* gate, T* h, int64_t n) {
    transform<false>(h, n, [&](int64_t i, int lanes) {
      return fma(load_n(gate + i, lanes), load_n(branch + i, lanes), load_n(residual + i, lanes));
    });
  }

  static void forward(const LayerNormForward& a, int64_t begin, int64_t end) {
    const bool past = a.streamed && aligned_vectors((const T*)a.y, a.runs.width);
    (past ? forward_as<true> : forward_as<false>)(a, begin, end);
  }
  template <bool kPast>
  static void forward_as(const LayerNormForward& a, int64_t begin, int64_t end) {
    const int64_t n = a.runs.width;
    const Real *weight = (const Real*)a.weight, *bias = (const Real*)a.bias;
    Real* planes = (Real*)a.statistics;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t run = row / a.runs.length, at = row * n;
      const T *shift = a.shift.at<T>(a.runs, run), *scale = a.scale.at<T>(a.runs, run);
      const T* x = (const T*)a.residual + at;
      if constexpr (kGated) {
        gate_row(x, (const T*)a.branch + at, a.gate.at<T>(a.runs, run), (T*)a.h + at, n);
        x = (const T*)a.h + at;
      }
      const Statistics s = statistics(x, n, static_cast<Real>(a.eps));
      planes[row] = s.high, planes[a.runs.rows + row] = s.low, planes[2 * a.runs.rows + row] = s.rstd;
      transform<kPast>((T*)a.y + at, n, [&](int64_t i, int lanes) {
        V z = s.normed(load_n(x + i, lanes));
        if constexpr (kAffine) z = affine(z, weight, bias, i, lanes);
        return fma(z, load_n(scale + i, lanes) + 1, load_n(shift + i, lanes));
      });
    }
    if constexpr (kPast) stream_fence();
  }
  static inline V affine(V z, const Real* weight, const Real* bias, int64_t i, int lanes) {
    const V w = weight ? load_n(weight + i, lanes) : V{} + 1;
    return fma(z, w, bias ? load_n(bias + i, lanes) : V{});
  }

  // Column sums of one run within a part: dy, dy * normed, dh * branch; then of dz and dz * normed over the whole part.
  struct Sums {
    Real *dy, *dy_normed, *dh_branch, *dz, *dz_normed;
    Sums(Real* scratch, int64_t padded)
        : dy(scratch),
          dy_normed(scratch + padded),
          dh_branch(scratch + 2 * padded),
          dz(scratch + 3 * padded),
          dz_normed(scratch + 4 * padded) {}
  };
  static int64_t scratch(int64_t width) { return 5 * Base::padded(width) * static_cast<int64_t>(sizeof(Real)); }

  // kRows rows of one run, from `row` on.
  template <int kRows>
  static void backward_rows(const LayerNormBackward& a, int64_t row, int64_t run, const Sums& sums) {
    const int64_t n = a.runs.width, at = row * n;
    const T *dy = (const T*)a.dy + at, *x = (const T*)a.h + at, *scale = a.scale.at<T>(a.runs, run);
    const Real* weight = (const Real*)a.weight;
    Statistics s[kRows];
    for (int r = 0; r < kRows; ++r) s[r] = read_statistics((const Real*)a.statistics, a.runs, row + r);
    V dot[kRows] = {}, mean[kRows] = {};
    each_vector(n, [&](int64_t i, int lanes) {
      const V gain = load_n(scale + i, lanes) + 1;
      V w = gain;
      if constexpr (kAffine) w = weight ? gain * load_n(weight + i, lanes) : gain;
      V sum[kRows], sum_normed[kRows];
      for (int r = 0; r < kRows; ++r) {
        const V g = load_n(dy + r * n + i, lanes), normed = s[r].normed(load_n(x + r * n + i, lanes));
        sum[r] = g, sum_normed[r] = g * normed;
        mean[r] = fma(g, w, mean[r]);
        dot[r] = fma(sum_normed[r], w, dot[r]);
      }
      for (int half = kRows / 2; half > 0; half /= 2) {
        for (int r = 0; r < half; ++r) sum[r] += sum[r + half], sum_normed[r] += sum_normed[r + half];
      }
      store(sums.dy + i, load(sums.dy + i) + sum[0]);
      store(sums.dy_normed + i, load(sums.dy_normed + i) + sum_normed[0]);
      if constexpr (kAffine) {
        store(sums.dz + i, fma(sum[0], gain, load(sums.dz + i)));
        store(sums.dz_normed + i, fma(sum_normed[0], gain, load(sums.dz_normed + i)));
      }
    });
    for (int r = 0; r < kRows; ++r) {
      mean[r] = V{} + reduce_sum(mean[r]) / static_cast<Real>(n);
      dot[r] = V{} + reduce_sum(dot[r]) / static_cast<Real>(n);
    }
    each_vector(n, [&](int64_t i, int lanes) {
      V w = load_n(scale + i, lanes) + 1;
      if constexpr (kAffine) w = weight ? w * load_n(weight + i, lanes) : w;
      V dx[kRows];
      for (int r = 0; r < kRows; ++r) {
        const V normed = s[r].normed(load_n(x + r * n + i, lanes));
        dx[r] = (fma(load_n(dy + r * n + i, lanes), w, -mean[r]) - normed * dot[r]) * s[r].rstd;
      }
      finish_vector<kRows>(a, at + i, i, run, lanes, dx, sums);
    });
  }

  // Writes dx, and through the gate what came from elsewhere too.
  template <int kRows>
  static inline void finish_vector(const LayerNormBackward& a, int64_t at, int64_t i, int64_t run, int lanes,
                                   V (&dx)[kRows], const Sums& sums) {
    const int64_t n = a.runs.width;
    if constexpr (kGated) {
      const V gate = load_n(a.gate.at<T>(a.runs, run) + i, lanes);
      V sum{};
      for (int r = 0; r < kRows; ++r) {
        if (a.dh) dx[r] += load_n((const T*)a.dh + at + r * n, lanes);
        store_n((T*)a.dbranch + at + r * n, dx[r] * gate, lanes);
        sum = fma(dx[r], load_n((const T*)a.branch + at + r * n, lanes), sum);
      }
      store(sums.dh_branch + i, load(sums.dh_branch + i) + sum);
    }
    for (int r = 0; r < kRows; ++r) store_n((T*)a.dx + at + r * n, dx[r], lanes);
  }

  static void backward(const LayerNormBackward& a, int64_t part, void* memory) {
    const Runs& runs = a.runs;
    const int64_t n = runs.width, padded = Base::padded(n), end = runs.first_row(part + 1);
    Real* scratch = (Real*)memory;
    const Sums sums(scratch, padded);
    Base::clear(scratch, 5 * padded);
    for (int64_t row = runs.first_row(part); row < end;) {
      const int64_t run = row / runs.length, stop = (run + 1) * runs.length < end ? (run + 1) * runs.length : end;
      for (; row + kBlock <= stop; row += kBlock) backward_rows<kBlock>(a, row, run, sums);
      for (; row < stop; ++row) backward_rows<1>(a, row, run, sums);
      if (runs.cuts == 1) {
        write_run(a, run, sums.dy, sums.dy_normed, sums.dh_branch);
        Base::clear(scratch, 3 * padded);
      }
    }
    constexpr int kSums = kGated ? 3 : 2;
    if (runs.cuts > 1) {
      for (int k = 0; k < kSums; ++k) {
        __builtin_memcpy((Real*)a.partial + (part * kSums + k) * n, scratch + k * padded, n * sizeof(Real));
      }
    }
    if constexpr (kAffine) {
      for (int k = 0; k < 2; ++k) {
        __builtin_memcpy((Real*)a.affine_partial + (part * 2 + k) * n, scratch + (3 + k) * padded, n * sizeof(Real));
      }
    }
  }

  // dscale is the gradient of 1 + scale, which multiplies normed * weight + bias.
  template <class Sum>
  static void write_run(const LayerNormBackward& a, int64_t run, const Sum* dy, const Sum* dy_normed,
                        const Sum* dh_branch) {
    const int64_t n = a.runs.width;
    T *dshift = (T*)a.dshift + run * n, *dscale = (T*)a.dscale + run * n, *dgate = (T*)a.dgate + run * n;
    const Real *weight = (const Real*)a.weight, *bias = (const Real*)a.bias;
    for (int64_t i = 0; i < n; ++i) {
      store_rounded(dshift + i, dy[i]);
      double gained = dy_normed[i];
      if constexpr (kAffine) gained = gained * (weight ? weight[i] : 1) + (bias ? bias[i] * double(dy[i]) : 0);
      store_rounded(dscale + i, gained);
      if constexpr (kGated) store_rounded(dgate + i, dh_branch[i]);
    }
  }

  // The pieces of a cut run, in their order; scratch for 3 * width doubles.
  static void reduce(const LayerNormBackward& a, int64_t run, double* scratch) {
    constexpr int kSums = kGated ? 3 : 2;
    const int64_t n = a.runs.width;
    for (int64_t i = 0; i < kSums * n; ++i) scratch[i] = 0;
    for (int64_t cut = 0; cut < a.runs.cuts; ++cut) {
      Base::add(scratch, (const Real*)a.partial + (run * a.runs.cuts + cut) * kSums * n, kSums * n);
    }
    write_run(a, run, scratch, scratch + n, scratch + 2 * n);
  }

  static constexpr LayerNormKernels table() { return {forward, backward, reduce, scratch}; }
};

template <bool kGated, bool kAffine>
LayerNormKernels layer_norm_table(DType dtype) {
  switch (dtype) {
    case DType::bf16: return LayerNorm<bf16, kGated, kAffine>::table();
    case DType::f16: return LayerNorm<fp16, kGated, kAffine>::table();
    case DType::f64: return LayerNorm<double, kGated, kAffine>::table();
    default: return LayerNorm<float, kGated, kAffine>::table();
  }
}

}  // namespace vdiff::VDIFF_ISA
