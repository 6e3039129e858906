#include "ops/rms_norm_silu/cpu_kernel.h"

#include "cpu/row_vectors.h"
#include "cpu/silu.h"

namespace vdiff::VDIFF_ISA {
namespace {

inline vfloat root(vfloat v) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
inline vdouble root(vdouble v) {
  for (int i = 0; i < kDoubleLanes; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}

template <class T>
struct Kernels : RowVectors<T> {
  using Base = RowVectors<T>;
  using Base::each_vector, Base::kCount;
  using typename Base::Real;
  using typename Base::V;
  static constexpr bool kNarrow = sizeof(T) == 2;
  static constexpr int kDigits = digits<T>;
  // Positions whose channels are taken together where positions are contiguous: whole cache lines of every channel.
  static constexpr int kWide = 4;

  // --- channels-last: a row of channels per position

  template <bool kSilu>
  static void forward_row(const T* x, T* y, int64_t n, Real* rstd, const Real* slope, const Real* offset, Real eps) {
    V squares{};
    each_vector(n, [&](int64_t c, int lanes) {
      const V v = load_n(x + c, lanes);
      squares = fma(v, v, squares);
    });
    const Real mean = reduce_sum(squares) / static_cast<Real>(n);
    const Real inverse = Real{1} / root(V{} + (mean + eps))[0];
    *rstd = inverse;
    transform<false>(y, n, [&](int64_t c, int lanes) {
      return activate<kSilu, kDigits>(
          fma(load_n(x + c, lanes) * inverse, load_n(slope + c, lanes), load_n(offset + c, lanes)));
    });
  }

  // dx = rstd * (g slope - n mean(g slope n)); g slope of the row waits in scratch.
  template <bool kSilu>
  static void backward_row(const T* dy, const T* x, T* dx, int64_t n, Real rstd, const Real* slope, const Real* offset,
                           Real* g_sum, Real* gn_sum, Real* held) {
    V dot{};
    each_vector(n, [&](int64_t c, int lanes) {
      const V normed = load_n(x + c, lanes) * rstd, s = load_n(slope + c, lanes);
      const V g = load_n(dy + c, lanes) * activation_slope<kSilu, kDigits>(fma(normed, s, load_n(offset + c, lanes)));
      store(g_sum + c, load(g_sum + c) + g);
      store(gn_sum + c, fma(g, normed, load(gn_sum + c)));
      store(held + c, g * s);
      dot = fma(g * s, normed, dot);
    });
    const Real mean = reduce_sum(dot) / static_cast<Real>(n);
    transform<false>(
        dx, n, [&](int64_t c, int lanes) { return (load(held + c) - load_n(x + c, lanes) * rstd * mean) * rstd; });
  }

  template <bool kSilu>
  static void backward_rows(const RmsNormPart& part, const T* dy, const T* x, T* dx, const Real* rstd,
                            const Real* slope, const Real* offset, double* g, double* gn, Real* scratch) {
    const int64_t n = part.channels, padded = n + 16;
    Real *held = scratch, *g_sum = scratch + padded, *gn_sum = g_sum + padded;
    for (int64_t done = part.begin; done < part.end;) {
      // A sum of 64 rows in float32 was 1.5 times as far from float64 as eager's, which adds in pairs.
      const int64_t stop = part.end - done < 16 ? part.end : done + 16;
      each_vector(n, [&](int64_t c, int) { store(g_sum + c, V{}), store(gn_sum + c, V{}); });
      for (; done < stop; ++done) {
        const int64_t at = done * n;
        backward_row<kSilu>(dy + at, x + at, dx + at, n, rstd[done], slope, offset, g_sum, gn_sum, held);
      }
      for (int64_t c = 0; c < n; ++c) g[c] += g_sum[c], gn[c] += gn_sum[c];
    }
  }

  // --- contiguous: kWide vectors of positions, all channels of which stay in cache between the two passes

  // body(first, last) for every 16 channels: 384 squares added one by one were 2.3 times eager's error.
  template <class Body>
  static inline void each_chain(int64_t channels, Body body) {
    for (int64_t c = 0; c < channels; c += 16) body(c, channels - c < 16 ? channels : c + 16);
  }

  template <int kVectors, bool kSilu>
  static void forward_block(const RmsNormPart& part, const T* x, T* y, Real* rstd, const Real* slope,
                            const Real* offset, Real eps, int lanes) {
    V squares[kVectors] = {};
    each_chain(part.channels, [&](int64_t first, int64_t last) {
      V sums[kVectors] = {};
      for (int64_t c = first; c < last; ++c) {
        for (int j = 0; j < kVectors; ++j) {
          const V v = load_n(x + c * part.channel_stride + j * kCount, lanes);
          sums[j] = fma(v, v, sums[j]);
        }
      }
      for (int j = 0; j < kVectors; ++j) squares[j] += sums[j];
    });
    for (int j = 0; j < kVectors; ++j) {
      squares[j] = 1 / root(squares[j] / (V{} + static_cast<Real>(part.channels)) + eps);
      store_n(rstd + j * kCount, squares[j], lanes);
    }
    for (int64_t c = 0; c < part.channels; ++c) {
      const V s = V{} + slope[c], o = V{} + offset[c];
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = c * part.channel_stride + j * kCount;
        store_n(y + at, activate<kSilu, kDigits>(fma(load_n(x + at, lanes) * squares[j], s, o)), lanes);
      }
    }
  }

  // A SiLU's slope costs most of a pass: g is kept in dx where that rounds nothing.
  template <bool kSilu>
  static constexpr bool kKeep = kSilu && !kNarrow;

  template <int kVectors, bool kSilu>
  static void backward_block(const RmsNormPart& part, const T* dy, const T* x, T* dx, const Real* rstd,
                             const Real* slope, const Real* offset, double* g_sums, double* gn_sums, int lanes) {
    V dot[kVectors] = {}, inverse[kVectors];
    for (int j = 0; j < kVectors; ++j) inverse[j] = load_n(rstd + j * kCount, lanes);
    each_chain(part.channels, [&](int64_t first, int64_t last) {
      V sums[kVectors] = {};
      for (int64_t c = first; c < last; ++c) {
        const V s = V{} + slope[c], o = V{} + offset[c];
        V g_sum{}, gn_sum{};
        for (int j = 0; j < kVectors; ++j) {
          const int64_t at = c * part.channel_stride + j * kCount;
          const V normed = load_n(x + at, lanes) * inverse[j];
          const V g = load_n(dy + at, lanes) * activation_slope<kSilu, kDigits>(fma(normed, s, o));
          if constexpr (kKeep<kSilu>) store_n(dx + at, g, lanes);
          g_sum += g;
          gn_sum = fma(g, normed, gn_sum);
          sums[j] = fma(g * s, normed, sums[j]);
        }
        g_sums[c] += reduce_sum(g_sum);
        gn_sums[c] += reduce_sum(gn_sum);
      }
      for (int j = 0; j < kVectors; ++j) dot[j] += sums[j];
    });
    for (int j = 0; j < kVectors; ++j) dot[j] = dot[j] / (V{} + static_cast<Real>(part.channels));
    for (int64_t c = 0; c < part.channels; ++c) {
      const V s = V{} + slope[c], o = V{} + offset[c];
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = c * part.channel_stride + j * kCount;
        const V normed = load_n(x + at, lanes) * inverse[j];
        V g;
        if constexpr (kKeep<kSilu>) {
          g = load_n(dx + at, lanes);
        } else {
          g = load_n(dy + at, lanes) * activation_slope<kSilu, kDigits>(fma(normed, s, o));
        }
        store_n(dx + at, (g * s - normed * dot[j]) * inverse[j], lanes);
      }
    }
  }

  // Calls wide(position) for kWide whole vectors, then narrow(position, lanes) for one.
  template <class WideBody, class NarrowBody>
  static inline void each_block(const RmsNormPart& part, WideBody wide, NarrowBody narrow) {
    int64_t p = part.begin;
    for (; p + kWide * kCount <= part.end; p += kWide * kCount) wide(p);
    each_vector(part.end - p, [&](int64_t i, int lanes) { narrow(p + i, lanes); });
  }

  template <bool kSilu>
  static void forward_as(RmsNormPart part, const T* x, T* y, Real* rstd, const Real* slope, const Real* offset,
                         Real eps) {
    if (part.position_stride != 1) {
      for (int64_t p = part.begin; p < part.end; ++p) {
        forward_row<kSilu>(x + p * part.channels, y + p * part.channels, part.channels, rstd + p, slope, offset, eps);
      }
      return;
    }
    each_block(
        part, [&](int64_t p) { forward_block<kWide, kSilu>(part, x + p, y + p, rstd + p, slope, offset, eps, kCount); },
        [&](int64_t p, int lanes) {
          forward_block<1, kSilu>(part, x + p, y + p, rstd + p, slope, offset, eps, lanes);
        });
  }
  static void forward(RmsNormPart part, const void* x, void* y, Real* rstd, const Real* slope, const Real* offset,
                      double eps, Real*) {
    (part.silu ? forward_as<true> : forward_as<false>)(part, (const T*)x, (T*)y, rstd, slope, offset,
                                                       static_cast<Real>(eps));
  }

  template <bool kSilu>
  static void backward_as(RmsNormPart part, const T* dy, const T* x, T* dx, const Real* rstd, const Real* slope,
                          const Real* offset, double* g, double* gn, Real* scratch) {
    if (part.position_stride != 1) {
      return backward_rows<kSilu>(part, dy, x, dx, rstd, slope, offset, g, gn, scratch);
    }
    each_block(
        part,
        [&](int64_t p) {
          backward_block<kWide, kSilu>(part, dy + p, x + p, dx + p, rstd + p, slope, offset, g, gn, kCount);
        },
        [&](int64_t p, int lanes) {
          backward_block<1, kSilu>(part, dy + p, x + p, dx + p, rstd + p, slope, offset, g, gn, lanes);
        });
  }
  static void backward(RmsNormPart part, const void* dy, const void* x, void* dx, const Real* rstd, const Real* slope,
                       const Real* offset, double* g, double* gn, Real* scratch) {
    (part.silu ? backward_as<true> : backward_as<false>)(part, (const T*)dy, (const T*)x, (T*)dx, rstd, slope, offset,
                                                         g, gn, scratch);
  }
};

}  // namespace

void rms_norm_kernels(DType dtype, RmsNormKernels<float>* table) {
  switch (dtype) {
    case DType::bf16: *table = {Kernels<bf16>::forward, Kernels<bf16>::backward}; return;
    case DType::f16: *table = {Kernels<fp16>::forward, Kernels<fp16>::backward}; return;
    default: *table = {Kernels<float>::forward, Kernels<float>::backward}; return;
  }
}

void rms_norm_kernels_f64(RmsNormKernels<double>* table) {
  *table = {Kernels<double>::forward, Kernels<double>::backward};
}

}  // namespace vdiff::VDIFF_ISA
