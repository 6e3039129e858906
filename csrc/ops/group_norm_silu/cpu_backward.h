// The backward of group_norm_silu on the CPU: sums of every part of a block, sums of its groups, then dx. See math.h.
#pragma once

#include "ops/group_norm_silu/cpu_channels.h"

namespace vdiff::group_norm {

template <class Real>
class Backward {
 public:
  Backward(const Plan& plan, Channels<Real>& channels, const Tensor& dy, const Tensor& x, const MaybeTensor& x2,
           const Tensor& mean, const Tensor& rstd, const Tensor& dx, const MaybeTensor& dx2)
      : plan_(plan),
        channels_(channels),
        kernels_(kernels_for(x, Real{})),
        dy_{plan, static_cast<char*>(dy.data_ptr())},
        x_(plan, x, x2),
        dx_(plan, dx, dx2),
        mean_(data<Real>(mean)),
        rstd_(data<Real>(rstd)),
        gain_(plan.segment_channels()),
        tilt_(plan.segment_channels()),
        level_(plan.segment_channels()),
        partial_(plan.blocks * plan.parts * partial_size()),
        sum_g_(plan.segment_channels()),
        sum_gn_(plan.segment_channels()),
        sum_n_(channels.adds() ? plan.segment_channels() : 0),
        sum_dx_(sum_n_.size()) {
    torch::stable::parallel_for(0, plan.units * plan.groups, plan.group_grain(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) channels.set(i / plan.groups, i % plan.groups, mean_[i], rstd_[i]);
    });
  }

  void run() {
    run_blocks(
        plan_,
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? reduce_channels_last(block, part) : reduce_contiguous(block, part);
        },
        [this](int64_t block) {
          if (plan_.channels_last) return finish_unit(block);
          fold_contiguous(block);
          finish(block / plan_.groups, block % plan_.groups);
        },
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? apply_channels_last(block, part) : apply_contiguous(block, part);
        });
  }

  std::vector<double> dweight() const {
    return per_channel([&](int64_t s, int64_t c, int64_t i) { return channels_.factor(s, c) * sum_gn_[i]; });
  }
  std::vector<double> dbias() const {
    return per_channel([&](int64_t s, int64_t c, int64_t i) { return channels_.factor(s, c) * sum_g_[i]; });
  }
  std::vector<double> dscale() const {
    return per_frame(channels_.scale_frames(), [&](int64_t c, int64_t i) {
      return channels_.weight(c) * sum_gn_[i] + channels_.bias(c) * sum_g_[i];
    });
  }
  std::vector<double> dshift() const {
    return per_frame(channels_.shift_frames(), [&](int64_t, int64_t i) { return sum_g_[i]; });
  }
  std::vector<double> dadd() const {
    return per_frame(1, [&](int64_t, int64_t i) { return sum_dx_[i]; });
  }

 private:
  // Three sums per channel: of g, g * (x - center) and x - center.
  int64_t partial_size() const {
    return 3 * (plan_.channels_last ? plan_.channels : plan_.per_group * plan_.segments_per_unit);
  }
  double* partial(int64_t block, int64_t part) {
    return partial_.data() + (block * plan_.parts + part) * partial_size();
  }
  // Where a contiguous block keeps the sums of its i-th channel in a frame; a unit of one frame has one segment only.
  int64_t channel_index(int64_t frame, int64_t i) const {
    return 3 * (i * plan_.segments_per_unit + (plan_.segments_per_unit == 1 ? 0 : frame));
  }

  void reduce_contiguous(int64_t block, int64_t part) {
    double* sums = partial(block, part);
    const int64_t first = block % plan_.groups * plan_.per_group;
    each_chunk(plan_, block, part, [&](const Chunk& k) {
      kernels_.sums_contiguous(dy_.chunk(k), x_.chunk(k), dx_.chunk(k), plan_.row_stride(), k.rows, k.end - k.begin,
                               channels_.affine(k.segment, k.c), plan_.silu, plan_.keeps(),
                               sums + channel_index(k.frame, k.c - first));
    });
  }

  // The sums of one channel of one segment, over the parts of its block.
  void fold_contiguous(int64_t block) {
    const int64_t group = block % plan_.groups;
    fold(block / plan_.groups, group, [&](int64_t segment, int64_t c, double* sums) {
      const int64_t i = channel_index(segment % plan_.segments, c - group * plan_.per_group);
      for (int64_t part = 0; part < plan_.parts; ++part) {
        const double* from = partial(block, part) + i;
        for (int k = 0; k < 3; ++k) sums[k] += from[k];
      }
    });
  }

  void reduce_channels_last(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    std::vector<Real> scratch(group_norm_scratch(plan_.channels));
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s], first = x_.first(s);
      double* sums = partial(block, part) + first;
      kernels_.sums_channels_last(dy_.row(rows.segment, rows.begin, first), plan_.channels,
                                  x_.row(s, rows.segment, rows.begin), dx_.row(s, rows.segment, rows.begin), channels,
                                  rows.end - rows.begin, channels, channels_.affine(rows.segment, first), plan_.silu,
                                  plan_.keeps(), sums, sums + plan_.channels, sums + 2 * plan_.channels,
                                  scratch.data());
    }
  }

  void finish_unit(int64_t unit) {
    torch::stable::parallel_for(0, plan_.groups, plan_.group_grain(), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        fold_channels_last(unit, group);
        finish(unit, group);
      }
    });
  }

  void fold_channels_last(int64_t unit, int64_t group) {
    const int64_t cuts = plan_.parts / plan_.segments_per_unit;
    fold(unit, group, [&](int64_t segment, int64_t c, double* sums) {
      const int64_t first = (segment - unit * plan_.segments_per_unit) * cuts;
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const double* from = partial(unit, first + cut) + c;
        for (int k = 0; k < 3; ++k) sums[k] += from[k * plan_.channels];
      }
    });
  }

  // The sums of a group's channels, with x - center replaced by n. sum(segment, c, sums) reads those over x - center.
  template <class Sum>
  void fold(int64_t unit, int64_t group, Sum sum) {
    const double mean = mean_[unit * plan_.groups + group], rstd = rstd_[unit * plan_.groups + group];
    channels_.each(unit, group, [&](int64_t segment, int64_t c) {
      double sums[3] = {};
      sum(segment, c, sums);
      const int64_t i = segment * plan_.channels + c;
      const ChannelBackward one = channels_.backward(segment, c, mean, rstd);
      sum_g_[i] = sums[0];
      sum_gn_[i] = one.sum_gn(sums);
      if (channels_.adds()) sum_n_[i] = one.sum_n(sums, static_cast<double>(plan_.length));
    });
  }

  // The map of dx, and the gradient of `add`.
  void finish(int64_t unit, int64_t group) {
    const double mean = mean_[unit * plan_.groups + group], rstd = rstd_[unit * plan_.groups + group];
    GroupGradient means{};
    channels_.each(unit, group, [&](int64_t segment, int64_t c) {
      const int64_t i = segment * plan_.channels + c;
      const double w = channels_.weight(c) * channels_.factor(segment, c);
      means.g += w * sum_g_[i];
      means.gn += w * sum_gn_[i];
    });
    means.g /= static_cast<double>(plan_.count());
    means.gn /= static_cast<double>(plan_.count());
    channels_.each(unit, group, [&](int64_t segment, int64_t c) {
      const int64_t i = segment * plan_.channels + c;
      const ChannelBackward one = channels_.backward(segment, c, mean, rstd);
      const Gradient<Real> map = one.template gradient<Real>(means);
      gain_[i] = map.gain, tilt_[i] = map.tilt, level_[i] = map.level;
      if (channels_.adds()) {
        sum_dx_[i] = one.sum_dx(sum_g_[i], sum_n_[i], static_cast<double>(plan_.length), means);
      }
    });
  }

  GradientArrays<Real> gradient(int64_t segment, int64_t c) const {
    const int64_t i = segment * plan_.channels + c;
    return {gain_.data() + i, tilt_.data() + i, level_.data() + i};
  }

  void apply_contiguous(int64_t block, int64_t part) {
    each_chunk(plan_, block, part, [&](const Chunk& k) {
      kernels_.gradient_contiguous(dy_.chunk(k), x_.chunk(k), dx_.chunk(k), plan_.row_stride(), k.rows, k.end - k.begin,
                                   channels_.affine(k.segment, k.c), gradient(k.segment, k.c), plan_.silu,
                                   plan_.keeps(), plan_.group_bytes());
    });
  }

  void apply_channels_last(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s], first = x_.first(s);
      kernels_.gradient_channels_last(dy_.row(rows.segment, rows.begin, first), plan_.channels,
                                      x_.row(s, rows.segment, rows.begin), dx_.row(s, rows.segment, rows.begin),
                                      channels, rows.end - rows.begin, channels, channels_.affine(rows.segment, first),
                                      gradient(rows.segment, first), plan_.silu, plan_.keeps());
    }
  }

  template <class Value>
  std::vector<double> per_channel(Value value) const {
    std::vector<double> out(plan_.channels);
    const int64_t segments = plan_.batch * plan_.segments;
    const int64_t grain = 1 + kGrain / (16 * std::max<int64_t>(segments, 1));
    torch::stable::parallel_for(0, plan_.channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t s = 0; s < segments; ++s) {
        for (int64_t c = begin; c < end; ++c) out[c] += value(s, c, s * plan_.channels + c);
      }
    });
    return out;
  }

  template <class Value>
  std::vector<double> per_frame(int64_t frames, Value value) const {
    std::vector<double> out(plan_.batch * frames * plan_.channels);
    for (int64_t s = 0; frames > 0 && s < plan_.batch * plan_.segments; ++s) {
      const int64_t frame = frames > 1 ? s % plan_.segments : 0;
      double* to = out.data() + (s / plan_.segments * frames + frame) * plan_.channels;
      for (int64_t c = 0; c < plan_.channels; ++c) to[c] += value(c, s * plan_.channels + c);
    }
    return out;
  }

  const Plan& plan_;
  Channels<Real>& channels_;
  GroupNormKernels<Real> kernels_;
  Joint dy_;
  Sources x_, dx_;
  const Real *mean_, *rstd_;
  std::vector<Real> gain_, tilt_, level_;
  std::vector<double> partial_, sum_g_, sum_gn_, sum_n_, sum_dx_;
};

}  // namespace vdiff::group_norm
