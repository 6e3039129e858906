// The forward of group_norm_silu on the CPU: moments of every part of a block, statistics of its groups, then y.
#pragma once

#include <cmath>

#include "cpu/output_memory.h"
#include "ops/group_norm_silu/cpu_channels.h"

namespace vdiff::group_norm {

template <class Real>
class Forward {
 public:
  Forward(const Plan& plan, Channels<Real>& channels, const Tensor& x, const MaybeTensor& x2, const Tensor& y,
          const Tensor& mean, const Tensor& rstd, double eps)
      : plan_(plan),
        channels_(channels),
        kernels_(kernels_for(x, Real{})),
        x_(plan, x, x2),
        y_{plan, static_cast<char*>(y.data_ptr())},
        mean_(mutable_data<Real>(mean)),
        rstd_(mutable_data<Real>(rstd)),
        eps_(eps),
        streamed_(beyond_cache(2 * y.numel() * plan.element)),
        group_moments_(plan.channels_last ? 0 : plan.blocks * plan.parts),
        channel_moments_(plan.channels_last ? plan.blocks * plan.parts * 2 * plan.channels : 0) {}

  void run() {
    run_blocks(
        plan_,
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? reduce_channels_last(block, part) : reduce_contiguous(block, part);
        },
        [this](int64_t block) { plan_.channels_last ? finish_unit(block) : finish_group(block); },
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? apply_channels_last(block, part) : apply_contiguous(block, part);
        });
  }

 private:
  // Channels and chunks that follow each other in memory and get the same `add` are measured as one.
  void reduce_contiguous(int64_t block, int64_t part) {
    Moments<double>& moments = group_moments_[block * plan_.parts + part];
    const char* first = nullptr;
    int64_t elements = 0;
    double add = 0;
    const auto flush = [&] {
      double result[2];
      if (elements > 0) {
        kernels_.moments_contiguous(first, elements, result);
        combine(moments, {static_cast<double>(elements), result[0] + add, result[1]});
      }
    };
    each_chunk(plan_, block, part, [&](const Chunk& k) {
      for (int64_t row = 0; row < k.rows; ++row) {
        const char* start = x_.chunk(k) + row * plan_.row_stride() * plan_.element;
        const double row_add = channels_.add(k.segment, k.c + row);
        if (start != first + elements * plan_.element || row_add != add) {
          flush();
          first = start, elements = 0, add = row_add;
        }
        elements += k.end - k.begin;
      }
    });
    flush();
  }

  static void combine(Moments<double>& a, const Moments<double>& b) {
    if (b.count > 0) a.take(b, b.count / (a.count + b.count));
  }

  void finish_group(int64_t block) {
    Moments<double> total{};
    for (int64_t part = 0; part < plan_.parts; ++part) {
      combine(total, group_moments_[block * plan_.parts + part]);
    }
    set(block / plan_.groups, block % plan_.groups, total.mean, total.squares);
  }

  void apply_contiguous(int64_t block, int64_t part) {
    each_chunk(plan_, block, part, [&](const Chunk& k) {
      kernels_.apply_contiguous(x_.chunk(k), y_.chunk(k), plan_.row_stride(), k.rows, k.end - k.begin,
                                channels_.affine(k.segment, k.c), plan_.silu, plan_.group_bytes(), streamed_);
    });
  }

  double* channel_moments(int64_t block, int64_t part) {
    return channel_moments_.data() + (block * plan_.parts + part) * 2 * plan_.channels;
  }

  void reduce_channels_last(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    std::vector<Real> scratch(group_norm_scratch(plan_.channels));
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s];
      double* mean = channel_moments(block, part) + x_.first(s);
      kernels_.moments_channels_last(x_.row(s, rows.segment, rows.begin), channels, rows.end - rows.begin, channels,
                                     mean, mean + plan_.channels, scratch.data());
    }
  }

  void finish_unit(int64_t unit) {
    torch::stable::parallel_for(0, plan_.groups, plan_.group_grain(), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) finish_channels(unit, group);
    });
  }

  void finish_channels(int64_t unit, int64_t group) {
    double mean = 0, squares = 0;
    each_channel(unit, group, [&](double n, double m, double) { mean += n * m; });
    mean /= static_cast<double>(plan_.count());
    each_channel(unit, group, [&](double n, double m, double sq) { squares += sq + n * (m - mean) * (m - mean); });
    set(unit, group, mean, squares);
  }

  // body(count, mean, squares) for every part and channel of a group, `add` included in the mean.
  template <class Body>
  void each_channel(int64_t unit, int64_t group, Body body) {
    for (int64_t part = 0; part < plan_.parts; ++part) {
      const auto rows = plan_.rows(unit, part);
      const double* mean = channel_moments(unit, part);
      for (int64_t c = group * plan_.per_group; c < (group + 1) * plan_.per_group; ++c) {
        body(static_cast<double>(rows.end - rows.begin), mean[c] + channels_.add(rows.segment, c),
             mean[plan_.channels + c]);
      }
    }
  }

  void apply_channels_last(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s];
      kernels_.apply_channels_last(x_.row(s, rows.segment, rows.begin), channels,
                                   y_.row(rows.segment, rows.begin, x_.first(s)), plan_.channels, rows.end - rows.begin,
                                   channels, channels_.affine(rows.segment, x_.first(s)), plan_.silu, streamed_);
    }
  }

  void set(int64_t unit, int64_t group, double mean, double squares) {
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(plan_.count()) + eps_);
    mean_[unit * plan_.groups + group] = static_cast<Real>(mean);
    rstd_[unit * plan_.groups + group] = static_cast<Real>(rstd);
    channels_.set(unit, group, mean, rstd);
  }

  const Plan& plan_;
  Channels<Real>& channels_;
  GroupNormKernels<Real> kernels_;
  Sources x_;
  Joint y_;
  Real *mean_, *rstd_;
  double eps_;
  bool streamed_;
  std::vector<Moments<double>> group_moments_;  // contiguous: per part
  std::vector<double> channel_moments_;         // channels-last: means, then squares, per part
};

}  // namespace vdiff::group_norm
