#include "ops/sampler_step/cpu_kernel.h"

#include "cpu/video_noise.h"

namespace vdiff::VDIFF_ISA {
namespace {

using namespace vdiff::sampler;

// float lanes, or one double: the same formulas for both.
template <class T>
struct Wide {
  typedef vfloat type;
  static constexpr int kWidth = kLanes;
};
template <>
struct Wide<double> {
  typedef double type;
  static constexpr int kWidth = 1;
};

template <class T>
inline vfloat get(const T* p, int count) {
  return count == kLanes ? load(p) : load_partial(p, count);
}
inline double get(const double* p, int) { return *p; }
template <class T>
inline void put(T* p, vfloat v, int count) {
  if (count == kLanes) {
    store(p, v);
  } else {
    store_partial(p, v, count);
  }
}
inline void put(double* p, double v, int) { *p = v; }

inline vfloat broadcast(vfloat, double v) { return splat((float)v); }
inline double broadcast(double, double v) { return v; }
inline double fma(double a, double b, double c) { return a * b + c; }
using vdiff::VDIFF_ISA::fma;
// A NaN stays a NaN.
inline vfloat clamp(vfloat x, vfloat limit) { return select(x > limit, limit, select(x < -limit, -limit, x)); }
inline double clamp(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }
inline vfloat magnitude(vfloat x) { return from_bits(bits(x) & 0x7fffffff); }
inline double magnitude(double x) { return __builtin_fabs(x); }

// One sample's inputs and coefficients.
template <class T, class P>
class Sample {
 public:
  typedef typename Wide<T>::type V;

  Sample(const SamplerStep& s, int64_t sample)
      : s_(s), base_(sample * s.channels * s.positions), has_limit_(s.limit != nullptr) {
    for (int i = 0; i < kColumns; ++i) row_[i] = wide(s.row[i]);
    scale_ = wide(s.scale != nullptr ? s.scale[sample] : 1);
    limit_ = wide(has_limit_ ? s.limit[sample] : s.clip);
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
    put((T*)s_.x_prev + base_ + at, next, count);
    put((T*)s_.x0 + base_ + at, x0, count);
  }

 private:
  static V wide(double v) { return broadcast(V{}, v); }
  V x0_of(V x, V y) const { return fma(row_[kX0FromX], x, row_[kX0FromY] * y); }
  template <class I>
  V in(const void* p, int64_t at, int count) const {
    return get((const I*)p + base_ + at, count);
  }

  const SamplerStep& s_;
  int64_t base_;
  bool has_limit_;
  V row_[kColumns], scale_, limit_;
};

// body(at, count) over [begin, end) in vectors.
template <class T, class Body>
inline void for_range(int64_t begin, int64_t end, const Body& body) {
  constexpr int kWidth = Wide<T>::kWidth;
  int64_t at = begin;
  for (; at + kWidth <= end; at += kWidth) body(at, kWidth);
  if (at < end) body(at, (int)(end - at));
}

inline void draw(const Sample<double, double>& own, int64_t at, vfloat noise, int count) {
  for (int i = 0; i < count; ++i) own.update(at + i, (double)noise[i], 1);
}
template <class T, class P>
inline void draw(const Sample<T, P>& own, int64_t at, vfloat noise, int count) {
  own.update(at, noise, count);
}

struct UpdateTask {
  const SamplerStep& s;
  int64_t sample, begin, end;

  template <class T, class P>
  void run() const {
    const Sample<T, P> own(s, sample);
    const NoiseSource& n = s.noise;
    const int64_t base = sample * s.channels * s.positions;
    if (n.drawn) {
      philox::for_each(n, sample, s.channels, s.positions, begin, end,
                       [&](int64_t at, vfloat noise, int count) { draw(own, at, noise, count); });
    } else if (n.given == nullptr) {
      for_range<T>(begin, end, [&](int64_t at, int count) { own.update(at, typename Wide<T>::type{}, count); });
    } else if (n.given_is_float) {
      given<T, P>(own, (const float*)n.given + base);
    } else {
      given<T, P>(own, (const T*)n.given + base);
    }
  }

  template <class T, class P, class N>
  void given(const Sample<T, P>& own, const N* noise) const {
    for_range<T>(begin, end, [&](int64_t at, int count) { own.update(at, read<T>(noise + at, count), count); });
  }
  template <class T, class N>
  static typename Wide<T>::type read(const N* noise, int count) {
    if constexpr (sizeof(T) == sizeof(double)) {
      return (double)*noise;
    } else {
      return get(noise, count);
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
    const Sample<T, P> own(s, sample);
    for_range<T>(begin, end,
                 [&](int64_t at, int count) { write(at, magnitude(own.x0_before_clip(at, count)), count); });
  }
  void write(int64_t at, vfloat v, int count) const { put((float*)out + at, v, count); }
  void write(int64_t at, double v, int count) const { put((double*)out + at, v, count); }
};

inline double total(vfloat v, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += v[i];
  return sum;
}
inline double total(double v, int) { return v; }

// Two passes over a task that stays in cache, so that a mean far from 0 costs no digits.
struct SpreadTask {
  const SamplerStep& s;
  int64_t sample;
  SpreadPart* part;
  int64_t begin, end;

  template <class T, class P>
  void run() const {
    typedef typename Wide<T>::type V;
    const Sample<T, P> own(s, sample);
    part->count = (double)(end - begin);
    double sums[2] = {0, 0}, rests[2] = {0, 0}, squares[2] = {0, 0};
    for_range<T>(begin, end, [&](int64_t at, int count) {
      sums[0] += total(own.prediction(at, count), count);
      sums[1] += total(own.guided(at, count), count);
    });
    const V shift[2] = {broadcast(V{}, sums[0] / part->count), broadcast(V{}, sums[1] / part->count)};
    for_range<T>(begin, end, [&](int64_t at, int count) {
      const V deviations[2] = {own.prediction(at, count) - shift[0], own.guided(at, count) - shift[1]};
      for (int i = 0; i < 2; ++i) {
        rests[i] += total(deviations[i], count);
        squares[i] += total(deviations[i] * deviations[i], count);
      }
    });
    // The shift was rounded: what it missed comes out of both moments.
    for (int i = 0; i < 2; ++i) {
      part->mean[i] = total(shift[i], 1) + rests[i] / part->count;
      part->squares[i] = squares[i] - rests[i] * rests[i] / part->count;
    }
  }
};

// A float32 x also takes the half-precision predictions of autocast.
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
