#include "ops/group_norm_silu/cpu_kernel.h"

#include "cpu/row_vectors.h"
#include "cpu/silu.h"

namespace vdiff::VDIFF_ISA {
namespace {

// Elements between two flushes of a channel's sums to double, and bytes of a block of rows: both stay in cache for the
// second pass.
constexpr int64_t kChunk = 4096, kBlockBytes = 128 << 10;

template <class T>
struct Kernels : RowVectors<T> {
  using Base = RowVectors<T>;
  using Base::each_vector, Base::kCount;
  using typename Base::Real;
  using typename Base::V;
  static constexpr bool kNarrow = sizeof(T) == 2;
  static constexpr int kDigits = digits<T>;

  // --- statistics: the mean of a chunk, then the deviations from it while it is in the cache, then Chan's combination

  static void moments_chunk(const T* x, int64_t n, double& mean, double& squares) {
    V sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kCount <= n; i += 4 * kCount) {
      for (int j = 0; j < 4; ++j) sums[j] += load(x + i + j * kCount);
    }
    each_vector(n - i, [&](int64_t at, int lanes) { sums[0] += load_n(x + i + at, lanes); });
    const Real center = reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<Real>(n);
    V first[4] = {}, second[4] = {};
    i = 0;
    for (; i + 4 * kCount <= n; i += 4 * kCount) {
      for (int j = 0; j < 4; ++j) {
        const V d = load(x + i + j * kCount) - center;
        first[j] += d;
        second[j] = fma(d, d, second[j]);
      }
    }
    each_vector(n - i, [&](int64_t at, int lanes) {
      const V d = keep_n<T>(load_n(x + i + at, lanes) - center, lanes);
      first[0] += d;
      second[0] = fma(d, d, second[0]);
    });
    const double rest = reduce_sum((first[0] + first[1]) + (first[2] + first[3])), count = static_cast<double>(n);
    mean = center + rest / count;
    squares = reduce_sum((second[0] + second[1]) + (second[2] + second[3])) - rest * rest / count;
  }

  static void moments_contiguous(const void* data, int64_t n, double* moments) {
    const T* x = static_cast<const T*>(data);
    double mean = 0, squares = 0;
    for (int64_t done = 0; done < n; done += kChunk) {
      const int64_t count = n - done < kChunk ? n - done : kChunk;
      double chunk_mean, chunk_squares;
      moments_chunk(x + done, count, chunk_mean, chunk_squares);
      const double delta = chunk_mean - mean, fraction = static_cast<double>(count) / static_cast<double>(done + count);
      mean += delta * fraction;
      squares += chunk_squares + delta * delta * fraction * static_cast<double>(done);
    }
    moments[0] = mean;
    moments[1] = squares;
  }

  static int64_t block_rows(int64_t n) {
    const int64_t rows = kBlockBytes / (n * static_cast<int64_t>(sizeof(T)));
    return rows < 16 ? 16 : rows > 256 ? 256 : rows;
  }

  // Calls four(row) for every four rows, then one(row) for the rest: sums in the cache are read and written once per
  // four rows.
  template <class Four, class One>
  static inline void each_row(int64_t rows, Four four, One one) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) four(row);
    for (; row < rows; ++row) one(row);
  }

  static void block_sums(const T* x, int64_t stride, int64_t rows, int64_t n, Real* sums) {
    each_vector(n, [&](int64_t c, int) { store(sums + c, V{}); });
    each_row(
        rows,
        [&](int64_t row) {
          const T *a = x + row * stride, *b = a + stride, *c = b + stride, *d = c + stride;
          each_vector(n, [&](int64_t at, int lanes) {
            const V four =
                (load_n(a + at, lanes) + load_n(b + at, lanes)) + (load_n(c + at, lanes) + load_n(d + at, lanes));
            store(sums + at, load(sums + at) + four);
          });
        },
        [&](int64_t row) {
          each_vector(n, [&](int64_t at, int lanes) {
            store(sums + at, load(sums + at) + load_n(x + row * stride + at, lanes));
          });
        });
  }

  static void block_deviations(const T* x, int64_t stride, int64_t rows, int64_t n, const Real* center, Real* first,
                               Real* second) {
    each_vector(n, [&](int64_t c, int) { store(first + c, V{}), store(second + c, V{}); });
    each_row(
        rows,
        [&](int64_t row) {
          const T* p = x + row * stride;
          each_vector(n, [&](int64_t at, int lanes) {
            const V m = load(center + at);
            const V a = load_n(p + at, lanes) - m, b = load_n(p + stride + at, lanes) - m;
            const V c = load_n(p + 2 * stride + at, lanes) - m, d = load_n(p + 3 * stride + at, lanes) - m;
            store(first + at, load(first + at) + ((a + b) + (c + d)));
            store(second + at, load(second + at) + (fma(a, a, b * b) + fma(c, c, d * d)));
          });
        },
        [&](int64_t row) {
          each_vector(n, [&](int64_t at, int lanes) {
            const V d = load_n(x + row * stride + at, lanes) - load(center + at);
            store(first + at, load(first + at) + d);
            store(second + at, fma(d, d, load(second + at)));
          });
        });
  }

  static void moments_channels_last(const void* data, int64_t stride, int64_t rows, int64_t n, double* mean,
                                    double* squares, Real* scratch) {
    const int64_t padded = n + 16, step = block_rows(n);
    Real *center = scratch, *first = scratch + padded, *second = first + padded;
    for (int64_t c = 0; c < n; ++c) mean[c] = squares[c] = 0;
    for (int64_t done = 0; done < rows; done += step) {
      const int64_t count = rows - done < step ? rows - done : step;
      const T* x = static_cast<const T*>(data) + done * stride;
      block_sums(x, stride, count, n, center);
      each_vector(n, [&](int64_t c, int) { store(center + c, load(center + c) / static_cast<Real>(count)); });
      block_deviations(x, stride, count, n, center, first, second);
      const double inverse = 1.0 / static_cast<double>(count);
      const double fraction = static_cast<double>(count) / static_cast<double>(done + count);
      for (int64_t c = 0; c < n; ++c) {
        const double rest = first[c], block_mean = center[c] + rest * inverse, delta = block_mean - mean[c];
        mean[c] += delta * fraction;
        squares[c] += second[c] - rest * rest * inverse + delta * delta * fraction * static_cast<double>(done);
      }
    }
  }

  // --- forward

  static inline void fetch(const T* p, int64_t ahead) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead, 0, 2);
  }

  template <bool kSilu, bool kPast>
  static void apply_contiguous_as(const T* x, T* y, int64_t stride, int64_t rows, int64_t n, AffineArrays<Real> affine,
                                  int64_t ahead) {
    for (int64_t row = 0; row < rows; ++row, x += stride, y += stride) {
      const V center = V{} + affine.center[row], slope = V{} + affine.slope[row], offset = V{} + affine.offset[row];
      transform<kPast>(y, n, [&](int64_t i, int lanes) {
        fetch(x + i, ahead);
        return activate<kSilu, kDigits>(fma(load_n(x + i, lanes) - center, slope, offset));
      });
    }
    if constexpr (kPast) stream_fence();
  }
  static void apply_contiguous(const void* x, void* y, int64_t stride, int64_t rows, int64_t n,
                               AffineArrays<Real> affine, bool silu, int64_t ahead, bool streamed) {
    const bool past = streamed && aligned_vectors((const T*)y, n) && aligned_vectors((const T*)y, stride);
    (silu ? past ? apply_contiguous_as<true, true> : apply_contiguous_as<true, false>
          : apply_contiguous_as<false, false>)((const T*)x, (T*)y, stride, rows, n, affine, ahead);
  }

  static inline V preactivation(V x, AffineArrays<Real> affine, int64_t c, int lanes, V& centered) {
    centered = x - load_n(affine.center + c, lanes);
    return fma(centered, load_n(affine.slope + c, lanes), load_n(affine.offset + c, lanes));
  }

  template <bool kSilu, bool kPast>
  static void apply_channels_last_as(const T* x, int64_t stride, T* y, int64_t y_stride, int64_t rows, int64_t n,
                                     AffineArrays<Real> affine) {
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = x + row * stride;
      transform<kPast>(y + row * y_stride, n, [&](int64_t c, int lanes) {
        V centered;
        return activate<kSilu, kDigits>(preactivation(load_n(from + c, lanes), affine, c, lanes, centered));
      });
    }
    if constexpr (kPast) stream_fence();
  }
  static void apply_channels_last(const void* x, int64_t stride, void* y, int64_t y_stride, int64_t rows, int64_t n,
                                  AffineArrays<Real> affine, bool silu, bool streamed) {
    const bool past = streamed && aligned_vectors((const T*)y, n) && aligned_vectors((const T*)y, y_stride);
    (silu ? past ? apply_channels_last_as<true, true> : apply_channels_last_as<true, false>
          : apply_channels_last_as<false, false>)((const T*)x, stride, (T*)y, y_stride, rows, n, affine);
  }

  // --- backward

  // Where g comes from in the second pass: it is dy itself (no SiLU), it is computed again, or the first pass kept it
  // in dx.
  enum Source { kPlain, kComputed, kKept };
  template <class Function>
  static Function pick(Function plain, Function computed, Function kept, bool silu, bool keep) {
    return !silu ? plain : keep && !kNarrow ? kept : computed;
  }

  template <Source kSource>
  static inline V incoming(const T* dy, T* dx, V z, int lanes) {
    const V g = load_n(dy, lanes) * activation_slope<kSource != kPlain, kDigits>(z);
    if constexpr (kSource == kKept) store_n(dx, g, lanes);
    return g;
  }
  template <Source kSource>
  static inline V outgoing(const T* dy, const T* dx, V z, int lanes) {
    if constexpr (kSource == kKept) return load_n(dx, lanes);
    return load_n(dy, lanes) * activation_slope<kSource != kPlain, kDigits>(z);
  }

  template <Source kSource>
  static void sums_of_channel(const T* dy, const T* x, T* dx, int64_t n, V center, V slope, V offset, double* sums) {
    for (int64_t done = 0; done < n; done += kChunk) {
      V g_sum{}, gx_sum{}, x_sum{};
      each_vector(n - done < kChunk ? n - done : kChunk, [&](int64_t i, int lanes) {
        const V centered = keep_n<T>(load_n(x + done + i, lanes) - center, lanes);
        const V g = incoming<kSource>(dy + done + i, dx + done + i, fma(centered, slope, offset), lanes);
        g_sum += g;
        gx_sum = fma(g, centered, gx_sum);
        x_sum += centered;
      });
      sums[0] += reduce_sum(g_sum);
      sums[1] += reduce_sum(gx_sum);
      sums[2] += reduce_sum(x_sum);
    }
  }
  template <Source kSource>
  static void sums_contiguous_as(const T* dy, const T* x, T* dx, int64_t stride, int64_t rows, int64_t n,
                                 AffineArrays<Real> affine, double* sums) {
    for (int64_t row = 0; row < rows; ++row) {
      sums_of_channel<kSource>(dy + row * stride, x + row * stride, dx + row * stride, n, V{} + affine.center[row],
                               V{} + affine.slope[row], V{} + affine.offset[row], sums + 3 * row);
    }
  }
  static void sums_contiguous(const void* dy, const void* x, void* dx, int64_t stride, int64_t rows, int64_t n,
                              AffineArrays<Real> affine, bool silu, bool keep, double* sums) {
    pick(sums_contiguous_as<kPlain>, sums_contiguous_as<kComputed>, sums_contiguous_as<kKept>, silu, keep)(
        (const T*)dy, (const T*)x, (T*)dx, stride, rows, n, affine, sums);
  }

  // Adds kRows rows to the sums, in pairs, which takes fewer roundings and fewer stores than row by row.
  template <Source kSource, int kRows>
  static inline void sums_rows(const T* dy, int64_t dy_stride, const T* x, T* dx, int64_t stride, int64_t n,
                               AffineArrays<Real> affine, Real* g_sum, Real* gx_sum, Real* x_sum) {
    each_vector(n, [&](int64_t c, int lanes) {
      const V center = load_n(affine.center + c, lanes), slope = load_n(affine.slope + c, lanes);
      const V offset = load_n(affine.offset + c, lanes);
      V g[kRows], gx[kRows], centered[kRows];
      for (int i = 0; i < kRows; ++i) {
        centered[i] = load_n(x + i * stride + c, lanes) - center;
        const V z = fma(centered[i], slope, offset);
        g[i] = incoming<kSource>(dy + i * dy_stride + c, dx + i * stride + c, z, lanes);
        gx[i] = g[i] * centered[i];
      }
      for (int half = kRows / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) g[i] += g[i + half], gx[i] += gx[i + half], centered[i] += centered[i + half];
      }
      store(g_sum + c, load(g_sum + c) + g[0]);
      store(gx_sum + c, load(gx_sum + c) + gx[0]);
      store(x_sum + c, load(x_sum + c) + centered[0]);
    });
  }

  template <Source kSource>
  static void sums_block(const T* dy, int64_t dy_stride, const T* x, T* dx, int64_t stride, int64_t rows, int64_t n,
                         AffineArrays<Real> affine, Real* g_sum, Real* gx_sum, Real* x_sum) {
    each_vector(n, [&](int64_t c, int) { store(g_sum + c, V{}), store(gx_sum + c, V{}), store(x_sum + c, V{}); });
    const auto add = [&]<int kRows>(int64_t row) {
      sums_rows<kSource, kRows>(dy + row * dy_stride, dy_stride, x + row * stride, dx + row * stride, stride, n, affine,
                                g_sum, gx_sum, x_sum);
    };
    each_row(
        rows, [&](int64_t row) { add.template operator()<4>(row); },
        [&](int64_t row) { add.template operator()<1>(row); });
  }
  static void sums_channels_last(const void* dy, int64_t dy_stride, const void* x, void* dx, int64_t stride,
                                 int64_t rows, int64_t n, AffineArrays<Real> affine, bool silu, bool keep, double* g,
                                 double* gx, double* xs, Real* scratch) {
    const auto block = pick(sums_block<kPlain>, sums_block<kComputed>, sums_block<kKept>, silu, keep);
    const int64_t padded = n + 16, step = 256;
    Real *g_sum = scratch, *gx_sum = scratch + padded, *x_sum = gx_sum + padded;
    for (int64_t done = 0; done < rows; done += step) {
      const int64_t count = rows - done < step ? rows - done : step;
      block((const T*)dy + done * dy_stride, dy_stride, (const T*)x + done * stride, (T*)dx + done * stride, stride,
            count, n, affine, g_sum, gx_sum, x_sum);
      for (int64_t c = 0; c < n; ++c) g[c] += g_sum[c], gx[c] += gx_sum[c], xs[c] += x_sum[c];
    }
  }

  template <Source kSource>
  static void gradient_contiguous_as(const T* dy, const T* x, T* dx, int64_t stride, int64_t rows, int64_t n,
                                     AffineArrays<Real> affine, GradientArrays<Real> gradient, int64_t ahead) {
    for (int64_t row = 0; row < rows; ++row, dy += stride, x += stride, dx += stride) {
      const V center = V{} + affine.center[row], slope = V{} + affine.slope[row], offset = V{} + affine.offset[row];
      const V gain = V{} + gradient.gain[row], tilt = V{} + gradient.tilt[row], level = V{} + gradient.level[row];
      transform<false>(dx, n, [&](int64_t i, int lanes) {
        fetch(x + i, ahead);
        fetch(dy + i, ahead);
        const V centered = load_n(x + i, lanes) - center;
        const V g = outgoing<kSource>(dy + i, dx + i, fma(centered, slope, offset), lanes);
        return fma(g, gain, fma(centered, tilt, level));
      });
    }
  }
  static void gradient_contiguous(const void* dy, const void* x, void* dx, int64_t stride, int64_t rows, int64_t n,
                                  AffineArrays<Real> affine, GradientArrays<Real> gradient, bool silu, bool keep,
                                  int64_t ahead) {
    pick(gradient_contiguous_as<kPlain>, gradient_contiguous_as<kComputed>, gradient_contiguous_as<kKept>, silu, keep)(
        (const T*)dy, (const T*)x, (T*)dx, stride, rows, n, affine, gradient, ahead);
  }

  template <Source kSource>
  static void gradient_channels_last_as(const T* dy, int64_t dy_stride, const T* x, T* dx, int64_t stride, int64_t rows,
                                        int64_t n, AffineArrays<Real> affine, GradientArrays<Real> gradient) {
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = x + row * stride;
      T* to = dx + row * stride;
      transform<false>(to, n, [&](int64_t c, int lanes) {
        V centered;
        const V z = preactivation(load_n(from + c, lanes), affine, c, lanes, centered);
        const V g = outgoing<kSource>(dy + row * dy_stride + c, to + c, z, lanes);
        const V flat = fma(centered, load_n(gradient.tilt + c, lanes), load_n(gradient.level + c, lanes));
        return fma(g, load_n(gradient.gain + c, lanes), flat);
      });
    }
  }
  static void gradient_channels_last(const void* dy, int64_t dy_stride, const void* x, void* dx, int64_t stride,
                                     int64_t rows, int64_t n, AffineArrays<Real> affine, GradientArrays<Real> gradient,
                                     bool silu, bool keep) {
    pick(gradient_channels_last_as<kPlain>, gradient_channels_last_as<kComputed>, gradient_channels_last_as<kKept>,
         silu, keep)((const T*)dy, dy_stride, (const T*)x, (T*)dx, stride, rows, n, affine, gradient);
  }

  static GroupNormKernels<Real> table() {
    return {moments_contiguous, moments_channels_last, apply_contiguous,    apply_channels_last,
            sums_contiguous,    sums_channels_last,    gradient_contiguous, gradient_channels_last};
  }
};

}  // namespace

void group_norm_kernels(DType dtype, GroupNormKernels<float>* table) {
  switch (dtype) {
    case DType::bf16: *table = Kernels<bf16>::table(); return;
    case DType::f16: *table = Kernels<fp16>::table(); return;
    default: *table = Kernels<float>::table(); return;
  }
}

void group_norm_kernels_f64(GroupNormKernels<double>* table) { *table = Kernels<double>::table(); }

}  // namespace vdiff::VDIFF_ISA
