#include "ops/sampler_step/cpu_kernel.h"

#include "cpu/video_noise.h"

namespace vdiff::VDIFF_ISA {
namespace {

using namespace vdiff::sampler;

// The inputs and coefficients of one sample; its functions compute `count` elements from `at` on. T is the type of x
// and P that of the prediction.
template <class T, class P>
class Sample {
 public:
  using V = typename VecOrScalar<T>::V;

  Sample(const SamplerStep& s, int64_t sample)
      : s_(s), base_(sample * s.channels * s.positions), has_limit_(s.limit != nullptr) {
    for (int i = 0; i < kColumns; ++i) row_[i] = splat(s.row[i]);
    scale_ = splat(s.scale != nullptr ? s.scale[sample] : 1);
    limit_ = splat(has_limit_ ? s.limit[sample] : s.clip);
  }

  V guided(int64_t at, int count) const {
    const V prediction = in<P>(s_.prediction, at, count);
    if (s_.uncond == nullptr) return prediction;
    const V uncond = in<P>(s_.uncond, at, count);
    return fma(row_[kGuidance], prediction - uncond, uncond);
  }
  V prediction(int64_t at, int count) const { return in<P>(s_.prediction, at, count); }
  V x0_before_clip(int64_t at, int count) const { return x0_of(in<T>(s_.x, at, count), guided(at, count) * scale_); }

  void update(int64_t at, V noise, int count) const {
    const V x = in<T>(s_.x, at, count), y = guided(at, count) * scale_;
    V x0 = x0_of(x, y);
    if (has_limit_) {
      x0 = clamp(x0, limit_) / limit_;
    } else if (s_.clip > 0) {
      x0 = clamp(x0, limit_);
    }
    V next = fma(row_[kX], x, fma(row_[kX0], x0, row_[kY] * y));
    if (s_.previous != nullptr) next = fma(row_[kPrevious], in<T>(s_.previous, at, count), next);
    if (s_.previous2 != nullptr) next = fma(row_[kPrevious2], in<T>(s_.previous2, at, count), next);
    next = fma(row_[kNoise], noise, next);
    store_elements((T*)s_.x_prev + base_ + at, next, count);
    store_elements((T*)s_.x0 + base_ + at, x0, count);
  }

 private:
  static V splat(double v) { return VecOrScalar<T>::splat(v); }
  V x0_of(V x, V y) const { return fma(row_[kX0FromX], x, row_[kX0FromY] * y); }
  template <class I>
  V in(const void* p, int64_t at, int count) const {
    return load_elements((const I*)p + base_ + at, count);
  }

  const SamplerStep& s_;
  int64_t base_;
  bool has_limit_;
  V row_[kColumns], scale_, limit_;
};

// body(at, count) for the vectors of [begin, end).
template <class T, class Body>
inline void for_range(int64_t begin, int64_t end, const Body& body) {
  constexpr int kWidth = VecOrScalar<T>::lanes;
  int64_t at = begin;
  for (; at + kWidth <= end; at += kWidth) body(at, kWidth);
  if (at < end) body(at, (int)(end - at));
}

inline void draw(const Sample<double, double>& inputs, int64_t at, vfloat noise, int count) {
  for (int i = 0; i < count; ++i) inputs.update(at + i, (double)noise[i], 1);
}
template <class T, class P>
inline void draw(const Sample<T, P>& inputs, int64_t at, vfloat noise, int count) {
  inputs.update(at, noise, count);
}

struct UpdateTask {
  const SamplerStep& s;
  int64_t sample, begin, end;

  template <class T, class P>
  void run() const {
    const Sample<T, P> inputs(s, sample);
    const NoiseSource& n = s.noise;
    const int64_t base = sample * s.channels * s.positions;
    if (n.drawn) {
      philox::for_each(n, sample, s.channels, s.positions, begin, end,
                       [&](int64_t at, vfloat noise, int count) { draw(inputs, at, noise, count); });
    } else if (n.given == nullptr) {
      for_range<T>(begin, end, [&](int64_t at, int count) { inputs.update(at, typename VecOrScalar<T>::V{}, count); });
    } else if (n.given_is_float) {
      given<T, P>(inputs, (const float*)n.given + base);
    } else {
      given<T, P>(inputs, (const T*)n.given + base);
    }
  }

  template <class T, class P, class N>
  void given(const Sample<T, P>& inputs, const N* noise) const {
    for_range<T>(begin, end, [&](int64_t at, int count) { inputs.update(at, read<T>(noise + at, count), count); });
  }
  template <class T, class N>
  static typename VecOrScalar<T>::V read(const N* noise, int count) {
    if constexpr (sizeof(T) == sizeof(double)) {
      return (double)*noise;
    } else {
      return load_elements(noise, count);
    }
  }
};

struct MagnitudeTask {
  const SamplerStep& s;
  int64_t sample;
  void* out;
  int64_t begin, end;

  template <class T, class P>
  void run() const {
    const Sample<T, P> inputs(s, sample);
    for_range<T>(begin, end, [&](int64_t at, int count) { write(at, abs(inputs.x0_before_clip(at, count)), count); });
  }
  void write(int64_t at, vfloat v, int count) const { store_elements((float*)out + at, v, count); }
  void write(int64_t at, double v, int count) const { store_elements((double*)out + at, v, count); }
};

// The sum of the first `count` lanes.
inline double sum_first(vfloat v, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += v[i];
  return sum;
}
inline double sum_first(double v, int) { return v; }

// Computes the mean and the spread in two passes over a task, which stays in cache, so that a mean far from 0 loses no
// precision.
struct SpreadTask {
  const SamplerStep& s;
  int64_t sample;
  SpreadPart* part;
  int64_t begin, end;

  template <class T, class P>
  void run() const {
    using V = typename VecOrScalar<T>::V;
    const Sample<T, P> inputs(s, sample);
    part->count = (double)(end - begin);
    double sums[2] = {0, 0}, remainders[2] = {0, 0}, squares[2] = {0, 0};
    for_range<T>(begin, end, [&](int64_t at, int count) {
      sums[0] += sum_first(inputs.prediction(at, count), count);
      sums[1] += sum_first(inputs.guided(at, count), count);
    });
    const V shift[2] = {VecOrScalar<T>::splat(sums[0] / part->count), VecOrScalar<T>::splat(sums[1] / part->count)};
    for_range<T>(begin, end, [&](int64_t at, int count) {
      const V deviations[2] = {inputs.prediction(at, count) - shift[0], inputs.guided(at, count) - shift[1]};
      for (int i = 0; i < 2; ++i) {
        remainders[i] += sum_first(deviations[i], count);
        squares[i] += sum_first(deviations[i] * deviations[i], count);
      }
    });
    // The shift is the rounded mean; the mean of the remainders corrects both moments for that.
    for (int i = 0; i < 2; ++i) {
      part->mean[i] = sum_first(shift[i], 1) + remainders[i] / part->count;
      part->squares[i] = squares[i] - remainders[i] * remainders[i] / part->count;
    }
  }
};

// Under autocast a float32 x comes with a 16-bit prediction.
template <class Task>
void dispatch(const SamplerStep& s, const Task& task) {
  switch (s.dtype) {
    case DType::f32:
      switch (s.prediction_dtype) {
        case DType::bf16: return task.template run<float, bf16>();
        case DType::f16: return task.template run<float, fp16>();
        default: return task.template run<float, float>();
      }
    case DType::bf16: return task.template run<bf16, bf16>();
    case DType::f16: return task.template run<fp16, fp16>();
    case DType::f64: return task.template run<double, double>();
  }
}

}  // namespace

void sampler_update(const SamplerStep& args, int64_t sample, int64_t begin, int64_t end) {
  dispatch(args, UpdateTask{args, sample, begin, end});
}

void sampler_magnitude(const SamplerStep& args, int64_t sample, void* magnitude, int64_t begin, int64_t end) {
  dispatch(args, MagnitudeTask{args, sample, magnitude, begin, end});
}

void sampler_spread(const SamplerStep& args, int64_t sample, SpreadPart* part, int64_t begin, int64_t end) {
  dispatch(args, SpreadTask{args, sample, part, begin, end});
}

}  // namespace vdiff::VDIFF_ISA
