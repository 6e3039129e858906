#include "ops/q_sample/cpu_kernel.h"

#include "cpu/video_noise.h"

namespace vdiff::VDIFF_ISA {
namespace {

// out = a x0 + b n. Both products are rounded before they are added, so that every backend gives the same bits.
template <class T>
struct Mix {
  const T* x0;
  T* out;
  float a, b;

  void operator()(int64_t at, vfloat n, int count) const {
    if (count == kLanes) {
      store(out + at, splat(a) * load(x0 + at) + splat(b) * n);
    } else {
      store_tail_elements(out + at, splat(a) * load_tail_elements(x0 + at, count) + splat(b) * n, count);
    }
  }
};

template <>
struct Mix<double> {
  const double* x0;
  double* out;
  double a, b;

  void operator()(int64_t at, vfloat n, int count) const {
    for (int i = 0; i < count; ++i) out[at + i] = a * x0[at + i] + b * (double)n[i];
  }
};

// The noise is a tensor.
template <class T, class N>
void mix_given(const Mix<T>& mix, const N* noise, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += kLanes) {
    const int count = end - at < kLanes ? (int)(end - at) : kLanes;
    mix(at, count == kLanes ? load(noise + at) : load_tail_elements(noise + at, count), count);
  }
}

void mix_given(const Mix<double>& mix, const double* noise, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) mix.out[i] = mix.a * mix.x0[i] + mix.b * noise[i];
}

// There is no noise.
template <class T>
void scale(const Mix<T>& mix, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += kLanes) {
    mix(at, splat(0.0f), end - at < kLanes ? (int)(end - at) : kLanes);
  }
}

template <class T, class A>
void run(const QSample& q, int64_t sample, int64_t begin, int64_t end) {
  const int64_t base = sample * q.channels * q.positions;
  const auto c = coefficients<A>(q.schedule, sample);
  const NoiseSource& s = q.noise;
  const Mix<T> mix{(const T*)q.x0 + base, (T*)q.out + base, c.signal, c.noise_scale};
  if (s.drawn) {
    philox::for_each(s, sample, q.channels, q.positions, begin, end, mix);
  } else if (s.given == nullptr) {
    scale(mix, begin, end);
  } else if (s.given_is_float) {
    mix_given(mix, (const float*)s.given + base, begin, end);
  } else {
    mix_given(mix, (const T*)s.given + base, begin, end);
  }
}

}  // namespace

void q_sample(const QSample& args, int64_t sample, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32: return run<float, float>(args, sample, begin, end);
    case DType::bf16: return run<bf16, float>(args, sample, begin, end);
    case DType::f16: return run<fp16, float>(args, sample, begin, end);
    case DType::f64: return run<double, double>(args, sample, begin, end);
  }
}

}  // namespace vdiff::VDIFF_ISA
