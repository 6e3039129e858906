#include "ops/timestep_mlp/cpu_kernel.h"

#include "cpu/row_vectors.h"
#include "cpu/silu.h"
#include "cpu/sinusoid.h"

namespace vdiff::VDIFF_ISA {
namespace {

// Sums of kRows x kSamples dots stay in registers; a weight is loaded once per kSamples samples. In the backward sums
// of kRows x kColumns vectors do; with 8 rows one column keeps both multipliers busy.
constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
// Widening 16 bits takes a register more.
template <class T>
constexpr int kSamples = kVectorBytes == 64 || sizeof(T) == 2 ? 2 : 3;
constexpr int kColumns = kVectorBytes == 64 ? 1 : 3;

#if defined(__AVX512F__)
inline __m512 add_pairs(vfloat a, vfloat b) {
  return _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
}
// In every 128 bits the sums of the same bits of four vectors.
inline __m512 add_quads(const vfloat* v) {
  const __m512d ab = _mm512_castps_pd(add_pairs(v[0], v[1])), cd = _mm512_castps_pd(add_pairs(v[2], v[3]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
// out[i] = the sum of the lanes of v[i], in one order whatever N: a tree of shuffles for all, as a sum at a time would
// cost as much as a short dot.
template <int N>
inline void sum_each(const vfloat (&v)[N], float* out) {
  vfloat all[16] = {};
  for (int i = 0; i < N; ++i) all[i] = v[i];
  const __m512 a = add_quads(all), b = add_quads(all + 4), c = add_quads(all + 8), d = add_quads(all + 12);
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  _mm512_mask_storeu_ps(out, mask_n(N), sums);
}
#elif defined(__AVX2__)
// As above, four sums at a time.
template <int N>
inline void sum_each(const vfloat (&v)[N], float* out) {
#pragma GCC unroll 4
  for (int i = 0; i < N; i += 4) {
    const auto at = [&](int j) { return i + j < N ? (__m256)v[i + j] : _mm256_setzero_ps(); };
    const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(at(0), at(1)), _mm256_hadd_ps(at(2), at(3)));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    float four[4];
    _mm_storeu_ps(four, sums);
    __builtin_memcpy(out + i, four, (N - i < 4 ? N - i : 4) * sizeof(float));
  }
}
#else
template <int N>
inline void sum_each(const vfloat (&v)[N], float* out) {
  for (int i = 0; i < N; ++i) out[i] = reduce_sum(v[i]);
}
#endif

template <class T, class A>
inline void finish(const Linear& args, int64_t sample, int64_t row, A dot) {
  const A y = args.bias == nullptr ? dot : dot + to_float(((const T*)args.bias)[row]);
  const int64_t at = sample * args.rows + row;
  if (args.y != nullptr) from_float((T*)args.y + at, y);
  if (args.wide != nullptr) ((A*)args.wide)[at] = y;
}

// Dots of R rows of w with S samples. The first samples of a block of rows ask for the rows of the next one.
template <int R, int S, class T>
inline void tile(const Linear& args, int64_t row, int64_t sample) {
  const T* w = (const T*)args.w + row * args.columns;
  const float* x = (const float*)args.x + sample * args.stride;
  const bool ahead = sample == 0 && row + 2 * R <= args.rows;
  vfloat sums[S * R];
#pragma GCC unroll 16
  for (int i = 0; i < S * R; ++i) sums[i] = vfloat{};
  RowVectors<T>::each_vector(args.columns, [&](int64_t at, int lanes) __attribute__((always_inline)) {
    vfloat values[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) values[s] = load(x + s * args.stride + at);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      // One weight at a time: sums, values and it just fill a small set's registers.
      const vfloat weight = load_n(w + r * args.columns + at, lanes);
      if (ahead) __builtin_prefetch(w + (R + r) * args.columns + at);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sums[s * R + r] = fma(weight, values[s], sums[s * R + r]);
    }
  });
  float dots[S * R];
  sum_each(sums, dots);
  for (int s = 0; s < S; ++s) {
    for (int r = 0; r < R; ++r) finish<T>(args, sample + s, row + r, dots[s * R + r]);
  }
}

template <int R, class T>
inline void all_samples(const Linear& args, int64_t row) {
  int64_t sample = 0;
  // Four left are two pairs: a single one would wait for its own sums.
  for (int64_t left = args.batch; left >= kSamples<T> && (kSamples<T> == 2 || left != 4); left -= kSamples<T>) {
    tile<R, kSamples<T>, T>(args, row, sample);
    sample += kSamples<T>;
  }
  for (; sample + 2 <= args.batch; sample += 2) tile<R, 2, T>(args, row, sample);
  if (sample < args.batch) tile<R, 1, T>(args, row, sample);
}

template <class T>
void linear(const Linear& args, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) all_samples<kRows, T>(args, row);
  for (; row < end; ++row) all_samples<1, T>(args, row);
}

template <>
void linear<double>(const Linear& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t sample = 0; sample < args.batch; ++sample) {
      const double *w = (const double*)args.w + row * args.columns, *x = (const double*)args.x + sample * args.stride;
      double dot = 0;
      for (int64_t i = 0; i < args.columns; ++i) dot += w[i] * x[i];
      finish<double>(args, sample, row, dot);
    }
  }
}

// SiLU of columns [begin, end) of every row, pre's rows `from` apart and out's `to`.
template <class A>
void silu(const void* pre, void* out, int64_t batch, int64_t from, int64_t to, int64_t begin, int64_t end) {
  typedef RowVectors<A> C;
  for (int64_t b = 0; b < batch; ++b) {
    const A* in = (const A*)pre + b * from + begin;
    A* y = (A*)out + b * to + begin;
    C::each_vector(end - begin, [&](int64_t at, int lanes) {
      store_n(y + at, activate<true, digits<A>>(load_n(in + at, lanes)), lanes);
    });
  }
}

// R rows of dw in N vectors of columns from `at` on, and what they add to dx, which they begin where `first`. A is the
// type of dy, x and dx.
template <int R, int N, class T, class A>
__attribute__((always_inline)) inline void gradient_tile(const LinearGradient& args, A* dx, bool first, int64_t row,
                                                         int64_t at, int lanes) {
  typedef RowVectors<A> C;
  typedef typename C::V V;
  const A *dy = (const A*)args.dy + row, *x = (const A*)args.x + at;
  const T* w = (const T*)args.w + row * args.columns + at;
  if (args.dw != nullptr) {
    V sums[R][N] = {};
    for (int64_t b = 0; b < args.batch; ++b) {
      V values[N];
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) values[i] = load(x + b * args.stride + i * C::kCount);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V factor = dy[b * args.dy_stride + r] - V{};
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) sums[r][i] = fma(factor, values[i], sums[r][i]);
      }
    }
    T* dw = (T*)args.dw + row * args.columns + at;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) store_n(dw + r * args.columns + i * C::kCount, sums[r][i], lanes);
    }
  }
  if (dx == nullptr) return;
  V weights[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) weights[r][i] = load_n(w + r * args.columns + i * C::kCount, lanes);
  }
  for (int64_t b = 0; b < args.batch; ++b) {
    A* to = dx + b * args.stride + at;
    V sums[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sums[i] = first ? V{} : load(to + i * C::kCount);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V factor = dy[b * args.dy_stride + r] - V{};
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) sums[i] = fma(factor, weights[r][i], sums[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(to + i * C::kCount, sums[i]);
  }
}

template <int R, class T, class A>
inline void gradient_rows(const LinearGradient& args, A* dx, bool first, int64_t row) {
  typedef RowVectors<A> C;
  int64_t at = 0;
  for (constexpr int step = kColumns * C::kCount; at + step <= args.columns; at += step) {
    gradient_tile<R, kColumns, T>(args, dx, first, row, at, C::kCount);
  }
  C::each_vector(args.columns - at,
                 [&](int64_t rest, int lanes) { gradient_tile<R, 1, T>(args, dx, first, row, at + rest, lanes); });
}

template <class T, class A>
void linear_gradient(const LinearGradient& args, void* dx, int64_t begin, int64_t end) {
  typedef RowVectors<A> C;
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) gradient_rows<kRows, T>(args, (A*)dx, row == begin, row);
  for (; row < end; ++row) gradient_rows<1, T>(args, (A*)dx, row == begin, row);
  if (args.dbias == nullptr) return;
  C::each_vector(end - begin, [&](int64_t at, int lanes) {
    typename C::V sum{}, lost{};
    for (int64_t b = 0; b < args.batch; ++b) {
      // What rounding takes is kept (Knuth's two-sum): torch sums in pairs, and a plain sum is further off.
      const auto term = load_n((const A*)args.dy + b * args.dy_stride + begin + at, lanes);
      const auto next = sum + term, added = next - sum;
      lost += (sum - (next - added)) + (term - added);
      sum = next;
    }
    store_n((T*)args.dbias + begin + at, sum + lost, lanes);
  });
}

template <class A>
void hidden_gradient(const HiddenGradient& args) {
  typedef RowVectors<A> C;
  for (int64_t b = 0; b < args.batch; ++b) {
    C::each_vector(args.columns, [&](int64_t at, int lanes) {
      typename C::V sum{};
      for (int64_t part = 0; part < args.parts; ++part) {
        sum += load_n((const A*)args.dx + (part * args.batch + b) * args.stride + at, lanes);
      }
      const auto pre = load_n((const A*)args.pre + b * args.columns + at, lanes);
      store_n((A*)args.dpre + b * args.stride + at, sum * activation_slope<true, digits<A>>(pre), lanes);
    });
  }
}

template <class T, class A>
void widen(const void* in, void* out, int64_t batch, int64_t columns, int64_t stride) {
  typedef RowVectors<A> C;
  for (int64_t b = 0; b < batch; ++b) {
    C::each_vector(columns, [&](int64_t at, int lanes) {
      store_n((A*)out + b * stride + at, load_n((const T*)in + b * columns + at, lanes), lanes);
    });
  }
}

}  // namespace

void timestep_linear(const Linear& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32: linear<float>(args, begin, end); break;
    case DType::bf16: linear<bf16>(args, begin, end); break;
    case DType::f16: linear<fp16>(args, begin, end); break;
    case DType::f64: linear<double>(args, begin, end); break;
  }
  if (args.activated == nullptr) return;
  // While it is in cache.
  const auto activate = args.dtype == DType::f64 ? &silu<double> : &silu<float>;
  activate(args.wide, args.activated, args.batch, args.rows, args.activated_stride, begin, end);
}

void timestep_linear_gradient(const LinearGradient& args, void* dx, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32: return linear_gradient<float, float>(args, dx, begin, end);
    case DType::bf16: return linear_gradient<bf16, float>(args, dx, begin, end);
    case DType::f16: return linear_gradient<fp16, float>(args, dx, begin, end);
    case DType::f64: return linear_gradient<double, double>(args, dx, begin, end);
  }
}

void timestep_hidden_gradient(const HiddenGradient& args) {
  args.dtype == DType::f64 ? hidden_gradient<double>(args) : hidden_gradient<float>(args);
}

void timestep_activate(DType dtype, const void* pre, void* out, int64_t batch, int64_t columns, int64_t stride) {
  const auto activate = dtype == DType::f64 ? &silu<double> : &silu<float>;
  activate(pre, out, batch, columns, stride, 0, columns);
}

void timestep_widen(DType dtype, const void* in, void* out, int64_t batch, int64_t columns, int64_t stride) {
  switch (dtype) {
    case DType::f32: return widen<float, float>(in, out, batch, columns, stride);
    case DType::bf16: return widen<bf16, float>(in, out, batch, columns, stride);
    case DType::f16: return widen<fp16, float>(in, out, batch, columns, stride);
    case DType::f64: return widen<double, double>(in, out, batch, columns, stride);
  }
}

void timestep_sinusoids(DType dtype, const double* times, int64_t batch, const double* frequencies, int64_t half,
                        bool flip, void* out, int64_t stride) {
  for (int64_t b = 0; b < batch; ++b) {
    if (dtype == DType::f64) {
      sinusoids(times[b], frequencies, half, flip, (double*)out + b * stride);
    } else {
      sinusoids(times[b], frequencies, half, flip, (float*)out + b * stride);
    }
  }
}

}  // namespace vdiff::VDIFF_ISA
