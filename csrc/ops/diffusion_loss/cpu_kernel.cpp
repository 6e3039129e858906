#include "ops/diffusion_loss/cpu_kernel.h"

#include "cpu/video_noise.h"

namespace vdiff::VDIFF_ISA {
namespace {

// The loss of an error d, and its derivative by d in `slope`; NaN where d is NaN.
inline vfloat element_loss(vfloat d, vfloat delta, bool huber, vfloat& slope) {
  if (!huber) {
    slope = d;
    return d * d;
  }
  slope = select(d > delta, delta, select(d < -delta, -delta, d));
  const vfloat size = abs(d), inner = select(size > delta, delta, size);
  return inner * (size - inner * 0.5f);
}

inline double element_loss(double d, double delta, bool huber, double& slope) {
  slope = !huber ? d : d > delta ? delta : d < -delta ? -delta : d;
  if (!huber) return d * d;
  const double size = __builtin_fabs(d), inner = size > delta ? delta : size;
  return inner * (size - inner * 0.5);
}

// The pass over one sample, called with the noise of `count` elements from offset `at` on. T is the type of the
// prediction and X that of x0, which is null if the target does not need it. The kind of loss and of target are
// branches and no template parameters: they are the same for a whole call, and each instance would hold the generator
// once more.
template <class T, class X>
struct Pass {
  const T* prediction;
  const X* x0;
  T* gradient;
  float p, q, scale, delta;
  bool huber;
  vfloat sum = {}, lost = {};

  void operator()(int64_t at, vfloat n, int count) {
    vfloat target = splat(q) * n, slope;
    if (x0 != nullptr) target += splat(p) * load_elements(x0 + at, count);
    vfloat d = load_elements(prediction + at, count) - target;
    if (count < kLanes) {
      for (int i = count; i < kLanes; ++i) d[i] = 0;
    }
    add(element_loss(d, splat(delta), huber, slope));
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

template <class X>
struct Pass<double, X> {
  const double* prediction;
  const X* x0;
  double* gradient;
  double p, q, scale, delta;
  bool huber;
  double sum = 0;

  void element(int64_t i, double n) {
    double slope;
    const double target = x0 != nullptr ? q * n + p * (double)x0[i] : q * n;
    sum += element_loss(prediction[i] - target, delta, huber, slope);
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

template <class T, class X>
void over_noise(Pass<T, X>& pass, const DiffusionLoss& args, int64_t sample, int64_t base, int64_t begin, int64_t end) {
  const NoiseSource& s = args.noise;
  if (s.drawn) {
    philox::for_each(s, sample, args.channels, args.positions, begin, end, Forward<Pass<T, X>>{&pass});
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

template <class T, class X, class A>
void run(const DiffusionLoss& args, const LossOutput& out, int64_t sample, int64_t begin, int64_t end) {
  const int64_t base = sample * args.channels * args.positions;
  const auto terms = loss_terms<A>(args.schedule, sample, args.options);
  const A upstream = out.upstream ? ((const A*)out.upstream)[sample * out.upstream_stride] : A(1);
  const A scale = gradient_scale(terms, args.options, upstream, out.share);
  Pass<T, X> pass{(const T*)args.prediction + base,
                  needs_x0(args.options.target) ? (const X*)args.x0 + base : nullptr,
                  out.gradient ? (T*)out.gradient + base : nullptr,
                  terms.mix.p,
                  terms.mix.q,
                  scale,
                  (A)args.options.delta,
                  args.options.huber};
  over_noise(pass, args, sample, base, begin, end);
  if (out.task_sum != nullptr) *out.task_sum = terms.weight * pass.total();
}

}  // namespace

void diffusion_loss(const DiffusionLoss& args, const LossOutput& out, int64_t sample, int64_t begin, int64_t end) {
  const bool same = !args.other_is_float;
  switch (args.dtype) {
    case DType::f32: return run<float, float, float>(args, out, sample, begin, end);
    case DType::bf16:
      return same ? run<bf16, bf16, float>(args, out, sample, begin, end)
                  : run<bf16, float, float>(args, out, sample, begin, end);
    case DType::f16:
      return same ? run<fp16, fp16, float>(args, out, sample, begin, end)
                  : run<fp16, float, float>(args, out, sample, begin, end);
    case DType::f64: return run<double, double, double>(args, out, sample, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
