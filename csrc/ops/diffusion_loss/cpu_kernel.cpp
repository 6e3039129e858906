#include "ops/diffusion_loss/cpu_kernel.h"

#include "cpu/video_noise.h"

namespace vdiff::VDIFF_ISA {
namespace {

// The loss of an error d, and its derivative by d in `slope`; NaN where d is NaN.
template <bool kHuber>
inline vfloat element_loss(vfloat d, vfloat delta, vfloat& slope) {
  if constexpr (!kHuber) {
    slope = d;
    return d * d;
  }
  slope = select(d > delta, delta, select(d < -delta, -delta, d));
  const vfloat size = abs(d), inner = select(size > delta, delta, size);
  return inner * (size - inner * 0.5f);
}

template <bool kHuber>
inline double element_loss(double d, double delta, double& slope) {
  slope = !kHuber ? d : d > delta ? delta : d < -delta ? -delta : d;
  if (!kHuber) return d * d;
  const double size = __builtin_fabs(d), inner = size > delta ? delta : size;
  return inner * (size - inner * 0.5);
}

// The pass over one sample, called with the noise of `count` elements from offset `at` on. T is the type of the
// prediction and X that of x0; kX0 says whether the target needs x0.
template <class T, class X, bool kX0, bool kHuber>
struct Pass {
  const T* prediction;
  const X* x0;
  T* gradient;
  float p, q, scale, delta;
  vfloat sum = {}, lost = {};

  void operator()(int64_t at, vfloat n, int count) {
    vfloat target = splat(q) * n, slope;
    if constexpr (kX0) target += splat(p) * load_elements(x0 + at, count);
    vfloat d = load_elements(prediction + at, count) - target;
    if (count < kLanes) {
      for (int i = count; i < kLanes; ++i) d[i] = 0;
    }
    add(element_loss<kHuber>(d, splat(delta), slope));
    if (gradient == nullptr) return;
    store_elements(gradient + at, slope * scale, count);
  }

  // Adds with compensation (Kahan): losses are not negative, so the sum is the larger of the two terms.
  void add(vfloat loss) {
    const vfloat next = sum + loss;
    lost += loss - (next - sum);
    sum = next;
  }

  double total() const {
    double result = 0;
    for (int i = 0; i < kLanes; ++i) result += (double)sum[i] + (double)lost[i];
    return result;
  }
};

template <bool kX0, bool kHuber, class X>
struct Pass<double, X, kX0, kHuber> {
  const double* prediction;
  const X* x0;
  double* gradient;
  double p, q, scale, delta;
  double sum = 0;

  void element(int64_t i, double n) {
    double slope;
    const double target = kX0 ? q * n + p * (double)x0[i] : q * n;
    sum += element_loss<kHuber>(prediction[i] - target, delta, slope);
    if (gradient != nullptr) gradient[i] = slope * scale;
  }
  void operator()(int64_t at, vfloat n, int count) {
    for (int i = 0; i < count; ++i) element(at + i, (double)n[i]);
  }
  double total() const { return sum; }
};

// Passes the body by reference, because it holds the sum.
template <class Body>
struct Forward {
  Body* body;
  void operator()(int64_t at, vfloat n, int count) const { (*body)(at, n, count); }
};

template <class T, class X, bool kX0, bool kHuber>
void over_noise(Pass<T, X, kX0, kHuber>& pass, const DiffusionLoss& args, int64_t sample, int64_t base, int64_t begin,
                int64_t end) {
  const NoiseSource& s = args.noise;
  if (s.drawn) {
    philox::for_each(s, sample, args.channels, args.positions, begin, end, Forward<Pass<T, X, kX0, kHuber>>{&pass});
    return;
  }
  const X* given = s.given == nullptr ? nullptr : (const X*)s.given + base;
  if constexpr (__is_same(X, double)) {
    for (int64_t i = begin; i < end; ++i) pass.element(i, given ? given[i] : 0.0);
  } else {
    for (int64_t at = begin; at < end; at += kLanes) {
      const int count = end - at < kLanes ? (int)(end - at) : kLanes;
      pass(at, given ? load_elements(given + at, count) : splat(0.0f), count);
    }
  }
}

template <class T, class X, class A, bool kX0, bool kHuber>
void run(const DiffusionLoss& args, const LossOutput& out, int64_t sample, int64_t begin, int64_t end) {
  const int64_t base = sample * args.channels * args.positions;
  const auto terms = loss_terms<A>(args.schedule, sample, args.options);
  const A upstream = out.upstream ? ((const A*)out.upstream)[sample * out.upstream_stride] : A(1);
  const A scale = gradient_scale(terms, args.options, upstream, out.share);
  Pass<T, X, kX0, kHuber> pass{(const T*)args.prediction + base,
                               kX0 ? (const X*)args.x0 + base : nullptr,
                               out.gradient ? (T*)out.gradient + base : nullptr,
                               terms.mix.p,
                               terms.mix.q,
                               scale,
                               (A)args.options.delta};
  over_noise(pass, args, sample, base, begin, end);
  if (out.task_sum != nullptr) *out.task_sum = terms.weight * pass.total();
}

template <class T, class X, class A>
void choose(const DiffusionLoss& args, const LossOutput& out, int64_t sample, int64_t begin, int64_t end) {
  const bool x0 = needs_x0(args.options.target), huber = args.options.huber;
  const auto f = x0 ? (huber ? run<T, X, A, true, true> : run<T, X, A, true, false>)
                    : (huber ? run<T, X, A, false, true> : run<T, X, A, false, false>);
  f(args, out, sample, begin, end);
}

}  // namespace

void diffusion_loss(const DiffusionLoss& args, const LossOutput& out, int64_t sample, int64_t begin, int64_t end) {
  const bool same = !args.other_is_float;
  switch (args.dtype) {
    case DType::f32: return choose<float, float, float>(args, out, sample, begin, end);
    case DType::bf16:
      return same ? choose<bf16, bf16, float>(args, out, sample, begin, end)
                  : choose<bf16, float, float>(args, out, sample, begin, end);
    case DType::f16:
      return same ? choose<fp16, fp16, float>(args, out, sample, begin, end)
                  : choose<fp16, float, float>(args, out, sample, begin, end);
    case DType::f64: return choose<double, double, double>(args, out, sample, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
