// What the CPU op knows of its channels, and where their elements lie.
#pragma once

#include "cpu/channel_vectors.h"
#include "ops/group_norm_silu/cpu_kernel.h"
#include "ops/group_norm_silu/cpu_plan.h"

namespace vdiff::group_norm {

inline GroupNormKernels<float> kernels_for(const Tensor& x, float) {
  GroupNormKernels<float> table;
  VDIFF_KERNEL(group_norm_kernels)(dtype_of(x), &table);
  return table;
}
inline GroupNormKernels<double> kernels_for(const Tensor&, double) {
  GroupNormKernels<double> table;
  VDIFF_KERNEL(group_norm_kernels_f64)(&table);
  return table;
}

// The inputs per channel, and the affine map of every channel of every segment.
template <class Real>
class Channels {
 public:
  Channels(const Plan& plan, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& scale,
           const MaybeTensor& shift, const MaybeTensor& add)
      : plan_(plan),
        weight_(read_vector(weight)),
        bias_(read_vector(bias)),
        scale_(read_vector(scale)),
        shift_(read_vector(shift)),
        add_(read_vector(add)),
        scale_frames_(frames_of(scale)),
        shift_frames_(frames_of(shift)),
        center_(plan.segment_channels()),
        slope_(plan.segment_channels()),
        offset_(plan.segment_channels()) {}

  double weight(int64_t c) const { return weight_.empty() ? 1.0 : weight_[c]; }
  double bias(int64_t c) const { return bias_.empty() ? 0.0 : bias_[c]; }
  double factor(int64_t segment, int64_t c) const { return 1.0 + at(scale_, scale_frames_, segment, c); }
  double add(int64_t segment, int64_t c) const {
    return add_.empty() ? 0.0 : add_[segment / plan_.segments * plan_.channels + c];
  }
  bool adds() const { return !add_.empty(); }
  int64_t scale_frames() const { return scale_frames_; }
  int64_t shift_frames() const { return shift_frames_; }

  ChannelParameters parameters(int64_t segment, int64_t c) const {
    return {weight(c), bias(c), factor(segment, c), at(shift_, shift_frames_, segment, c), add(segment, c)};
  }
  ChannelBackward backward(int64_t segment, int64_t c, double mean, double rstd) const {
    return {parameters(segment, c), mean, rstd, center_[segment * plan_.channels + c]};
  }

  // Sets the maps of a group's channels in all segments of a unit.
  void set(int64_t unit, int64_t group, double mean, double rstd) {
    each(unit, group, [&](int64_t segment, int64_t c) {
      const int64_t i = segment * plan_.channels + c;
      const Affine<Real> map = affine_of<Real>(parameters(segment, c), mean, rstd);
      center_[i] = map.center, slope_[i] = map.slope, offset_[i] = map.offset;
    });
  }
  AffineArrays<Real> affine(int64_t segment, int64_t c) const {
    const int64_t i = segment * plan_.channels + c;
    return {center_.data() + i, slope_.data() + i, offset_.data() + i};
  }

  // body(segment, c) for every channel of a group in every segment of a unit.
  template <class Body>
  void each(int64_t unit, int64_t group, Body body) const {
    for (int64_t s = unit * plan_.segments_per_unit; s < (unit + 1) * plan_.segments_per_unit; ++s) {
      for (int64_t c = group * plan_.per_group; c < (group + 1) * plan_.per_group; ++c) body(s, c);
    }
  }

 private:
  double at(const std::vector<double>& values, int64_t frames, int64_t segment, int64_t c) const {
    if (values.empty()) return 0.0;
    const int64_t sample = segment / plan_.segments, frame = frames > 1 ? segment % plan_.segments : 0;
    return values[(sample * frames + frame) * plan_.channels + c];
  }

  const Plan& plan_;
  std::vector<double> weight_, bias_, scale_, shift_, add_;
  int64_t scale_frames_, shift_frames_;
  std::vector<Real> center_, slope_, offset_;
};

// x and x2, or their gradients, as byte addresses.
struct Sources {
  const Plan& plan;
  char* data[2];

  Sources(const Plan& plan, const Tensor& x, const MaybeTensor& x2)
      : plan(plan), data{static_cast<char*>(x.data_ptr()), nullptr} {
    if (x2.has_value()) data[1] = static_cast<char*>(x2->data_ptr());
  }
  int count() const { return data[1] != nullptr ? 2 : 1; }
  int64_t first(int s) const { return s == 0 ? 0 : plan.source_channels[0]; }
  char* chunk(const Chunk& k) const {
    const int s = plan.source_of(k.c);
    const int64_t row = k.sample * plan.source_channels[s] + k.c - first(s);
    return data[s] + ((row * plan.segments + k.frame) * plan.length + k.begin) * plan.element;
  }
  char* row(int s, int64_t segment, int64_t position) const {
    return data[s] + (segment * plan.length + position) * plan.source_channels[s] * plan.element;
  }
};

// y or dy, which has all channels, as byte addresses.
struct Joint {
  const Plan& plan;
  char* data;

  char* chunk(const Chunk& k) const {
    const int64_t row = k.sample * plan.channels + k.c;
    return data + ((row * plan.segments + k.frame) * plan.length + k.begin) * plan.element;
  }
  char* row(int64_t segment, int64_t position, int64_t c) const {
    return data + ((segment * plan.length + position) * plan.channels + c) * plan.element;
  }
};

}  // namespace vdiff::group_norm
