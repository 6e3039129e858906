#include "ops/timestep_mlp/kernel.h"

#include "ops/timestep_embedding/sinusoid.h"

namespace vdiff::VDIFF_ISA {
namespace {

// 4 x 4 sums stay in registers, and each weight is loaded once per four samples.
constexpr int kBlock = 4;

inline float lanes_sum(vfloat v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return sum(v);
#endif
}

inline double to_float(double x) { return x; }
inline void from_float(double* p, double x) { *p = x; }
using vdiff::VDIFF_ISA::from_float;
using vdiff::VDIFF_ISA::to_float;

template <class T, class A>
inline void finish(const Linear& args, int64_t sample, int64_t row, A dot) {
  const A y = args.bias == nullptr ? dot : dot + to_float(((const T*)args.bias)[row]);
  const int64_t at = sample * args.rows + row;
  if (args.y != nullptr) from_float((T*)args.y + at, y);
  if (args.wide != nullptr) ((A*)args.wide)[at] = y;
}

// Dots of R rows of w with S samples.
template <int R, int S, class T>
inline void tile(const Linear& args, int64_t row, int64_t sample) {
  const T* w = (const T*)args.w + row * args.columns;
  const float* x = (const float*)args.x + sample * args.stride;
  vfloat sums[R][S] = {};
  const auto accumulate = [&](int64_t at, const vfloat(&weights)[R]) {
    for (int s = 0; s < S; ++s) {
      const vfloat value = load(x + s * args.stride + at);
      for (int r = 0; r < R; ++r) sums[r][s] = fma(weights[r], value, sums[r][s]);
    }
  };
  int64_t at = 0;
  vfloat weights[R];
  for (; at + kLanes <= args.columns; at += kLanes) {
    for (int r = 0; r < R; ++r) weights[r] = load(w + r * args.columns + at);
    accumulate(at, weights);
  }
  if (at < args.columns) {
    for (int r = 0; r < R; ++r) weights[r] = load_partial(w + r * args.columns + at, (int)(args.columns - at));
    accumulate(at, weights);
  }
  for (int r = 0; r < R; ++r) {
    for (int s = 0; s < S; ++s) finish<T>(args, sample + s, row + r, lanes_sum(sums[r][s]));
  }
}

template <int R, class T>
inline void all_samples(const Linear& args, int64_t row) {
  int64_t sample = 0;
  for (; sample + kBlock <= args.batch; sample += kBlock) tile<R, kBlock, T>(args, row, sample);
  for (; sample < args.batch; ++sample) tile<R, 1, T>(args, row, sample);
}

template <class T>
void linear(const Linear& args, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + kBlock <= end; row += kBlock) all_samples<kBlock, T>(args, row);
  for (; row < end; ++row) all_samples<1, T>(args, row);
}

// SiLU of what the rows gave, while it is in cache.
void activate(const Linear& args, int64_t begin, int64_t end) {
  for (int64_t sample = 0; sample < args.batch; ++sample) {
    const float* in = (const float*)args.wide + sample * args.rows;
    float* out = (float*)args.activated + sample * args.activated_stride;
    int64_t row = begin;
    for (; row + kLanes <= end; row += kLanes) {
      const vfloat x = load(in + row);
      store(out + row, x * vsigmoid(x));
    }
    if (row < end) {
      const vfloat x = load_partial(in + row, (int)(end - row));
      store_partial(out + row, x * vsigmoid(x), (int)(end - row));
    }
  }
}

void activate_double(const Linear& args, int64_t begin, int64_t end) {
  for (int64_t sample = 0; sample < args.batch; ++sample) {
    const double* in = (const double*)args.wide + sample * args.rows;
    double* out = (double*)args.activated + sample * args.activated_stride;
    for (int64_t row = begin; row < end; ++row) out[row] = in[row] / (1.0 + __builtin_exp(-in[row]));
  }
}

void linear_double(const Linear& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t sample = 0; sample < args.batch; ++sample) {
      const double *w = (const double*)args.w + row * args.columns, *x = (const double*)args.x + sample * args.stride;
      double dot = 0;
      for (int64_t i = 0; i < args.columns; ++i) dot += w[i] * x[i];
      finish<double>(args, sample, row, dot);
    }
  }
}

}  // namespace

void timestep_linear(const Linear& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32: linear<float>(args, begin, end); break;
    case DType::bf16: linear<bf16>(args, begin, end); break;
    case DType::f16: linear<fp16>(args, begin, end); break;
    case DType::f64: linear_double(args, begin, end); break;
  }
  if (args.activated == nullptr) return;
  args.dtype == DType::f64 ? activate_double(args, begin, end) : activate(args, begin, end);
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
