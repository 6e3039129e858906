#include <cmath>

#include "cpu/channel_vectors.h"
#include "cpu/output_memory.h"
#include "ops/group_norm_silu/cpu_kernel.h"
#include "ops/group_norm_silu/cpu_plan.h"

namespace {

using vdiff::Affine;
using vdiff::Gradient;
using vdiff::GroupNormKernels;
using vdiff::Tensor;
using vdiff::group_norm::Chunk;
using vdiff::group_norm::Plan;
using MaybeTensor = std::optional<Tensor>;

GroupNormKernels<float> kernels_for(const Tensor& x, float) {
  GroupNormKernels<float> table;
  VDIFF_KERNEL(group_norm_kernels)(vdiff::dtype_of(x), &table);
  return table;
}
GroupNormKernels<double> kernels_for(const Tensor&, double) {
  GroupNormKernels<double> table;
  VDIFF_KERNEL(group_norm_kernels_f64)(&table);
  return table;
}

int64_t frames_of(const MaybeTensor& scale, const MaybeTensor& shift) {
  return std::max(scale.has_value() ? scale->size(1) : 1, shift.has_value() ? shift->size(1) : 1);
}

// The per-channel inputs, and per (segment, channel) what the kernels take of them.
template <class Real>
class Coefficients {
 public:
  Coefficients(const Plan& plan, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& scale,
               const MaybeTensor& shift, const MaybeTensor& add)
      : plan_(plan),
        weight_(vdiff::read_vector(weight)),
        bias_(vdiff::read_vector(bias)),
        scale_(vdiff::read_vector(scale)),
        shift_(vdiff::read_vector(shift)),
        add_(vdiff::read_vector(add)),
        scale_frames_(scale.has_value() ? scale->size(1) : 1),
        shift_frames_(shift.has_value() ? shift->size(1) : 1),
        center_(plan.vectors()),
        slope_(plan.vectors()),
        offset_(plan.vectors()) {}

  double weight(int64_t c) const { return weight_.empty() ? 1.0 : weight_[c]; }
  double bias(int64_t c) const { return bias_.empty() ? 0.0 : bias_[c]; }
  double factor(int64_t segment, int64_t c) const { return 1.0 + at(scale_, scale_frames_, segment, c); }
  double add(int64_t segment, int64_t c) const {
    return add_.empty() ? 0.0 : add_[segment / plan_.segments * plan_.channels + c];
  }
  bool adds() const { return !add_.empty(); }
  int64_t scale_frames() const { return scale_frames_; }
  int64_t shift_frames() const { return shift_frames_; }

  // What rounding the mean left: mean - add - center.
  double rest(int64_t segment, int64_t c, double mean) const {
    return mean - add(segment, c) - center_[segment * plan_.channels + c];
  }
  void set(int64_t unit, int64_t group, double mean, double rstd) {
    for (int64_t s = unit * plan_.unit_segments; s < (unit + 1) * plan_.unit_segments; ++s) {
      for (int64_t c = group * plan_.per_group; c < (group + 1) * plan_.per_group; ++c) {
        const int64_t i = s * plan_.channels + c;
        const double slope = rstd * weight(c) * factor(s, c);
        // A mean below the deviation cancels no digit, and a centre of zero rounds once less.
        const double center = mean - add(s, c);
        center_[i] = std::abs(center) * rstd < 0.5 ? Real{0} : static_cast<Real>(center);
        slope_[i] = static_cast<Real>(slope);
        const double level = bias(c) * factor(s, c) + at(shift_, shift_frames_, s, c);
        offset_[i] = static_cast<Real>(level - rest(s, c, mean) * slope);
      }
    }
  }
  Affine<Real> affine(int64_t segment, int64_t c) const {
    const int64_t i = segment * plan_.channels + c;
    return {center_.data() + i, slope_.data() + i, offset_.data() + i};
  }

 private:
  double at(const std::vector<double>& values, int64_t frames, int64_t segment, int64_t c) const {
    if (values.empty()) return 0.0;
    const int64_t batch = segment / plan_.segments, frame = frames > 1 ? segment % plan_.segments : 0;
    return values[(batch * frames + frame) * plan_.channels + c];
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
  char* run(const Chunk& k) const {
    const int s = plan.source_of(k.c);
    const int64_t row = k.sample * plan.source_channels[s] + k.c - first(s);
    return data[s] + ((row * plan.segments + k.frame) * plan.length + k.begin) * plan.element;
  }
  char* row(int s, int64_t segment, int64_t position) const {
    return data[s] + (segment * plan.length + position) * plan.source_channels[s] * plan.element;
  }
};

// y or dy: all channels in one tensor.
struct Joint {
  const Plan& plan;
  char* data;

  char* run(const Chunk& k) const {
    const int64_t row = k.sample * plan.channels + k.c;
    return data + ((row * plan.segments + k.frame) * plan.length + k.begin) * plan.element;
  }
  char* row(int64_t segment, int64_t position, int64_t c) const {
    return data + ((segment * plan.length + position) * plan.channels + c) * plan.element;
  }
};

// An output for [x | x2] in their layout.
Tensor empty_joint(const Plan& plan, const Tensor& x, const MaybeTensor& x2) {
  if (!x2.has_value()) return vdiff::output_like(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[1] = plan.channels;
  if (!plan.channels_last) return vdiff::new_output(x, shape);
  std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  Tensor y = vdiff::new_output(x, shape);
  for (int64_t d = x.dim() - 1; d > 1; --d) y = torch::stable::transpose(y, d, d - 1);
  return y;
}

Tensor empty_statistics(const Plan& plan, const Tensor& x) {
  const auto dtype = x.scalar_type() == vdiff::ScalarType::Double ? x.scalar_type() : vdiff::ScalarType::Float;
  return torch::stable::new_empty(x, std::vector<int64_t>{plan.units, plan.groups}, dtype);
}

// Count, mean and sum of squared deviations of a set; `take` is Chan's combination of two sets.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void take(double n, double other_mean, double other_squares) {
    if (n == 0) return;
    const double delta = other_mean - mean, total = count + n;
    mean += delta * (n / total);
    squares += other_squares + delta * delta * (n / total) * count;
    count = total;
  }
};

template <class Real>
class Forward {
 public:
  Forward(const Plan& plan, Coefficients<Real>& coefficients, const Tensor& x, const MaybeTensor& x2, const Tensor& y,
          const Tensor& mean, const Tensor& rstd, double eps)
      : plan_(plan),
        coefficients_(coefficients),
        kernels_(kernels_for(x, Real{})),
        x_(plan, x, x2),
        y_{plan, static_cast<char*>(y.data_ptr())},
        mean_(vdiff::mutable_data<Real>(mean)),
        rstd_(vdiff::mutable_data<Real>(rstd)),
        eps_(eps),
        past_cache_(vdiff::beyond_cache(2 * y.numel() * plan.element)),
        runs_(plan.channels_last ? 0 : plan.blocks * plan.parts),
        columns_(plan.channels_last ? plan.blocks * plan.parts * 2 * plan.channels : 0) {}

  void run() {
    vdiff::group_norm::run_blocks(
        plan_,
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? reduce_rows(block, part) : reduce_runs(block, part);
        },
        [this](int64_t block) { plan_.channels_last ? finish_unit(block) : finish_group(block); },
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? apply_rows(block, part) : apply_runs(block, part);
        });
  }

 private:
  // Rows and chunks that lie behind each other and get the same `add` are one run.
  void reduce_runs(int64_t block, int64_t part) {
    Moments& moments = runs_[block * plan_.parts + part];
    const char* run = nullptr;
    int64_t elements = 0;
    double add = 0;
    const auto flush = [&] {
      double result[2];
      if (elements > 0) {
        kernels_.moments_run(run, elements, result);
        moments.take(static_cast<double>(elements), result[0] + add, result[1]);
      }
    };
    vdiff::group_norm::each_chunk(plan_, block, part, [&](const Chunk& k) {
      for (int64_t row = 0; row < k.rows; ++row) {
        const char* start = x_.run(k) + row * plan_.row_stride() * plan_.element;
        const double row_add = coefficients_.add(k.segment, k.c + row);
        if (start != run + elements * plan_.element || row_add != add) {
          flush();
          run = start, elements = 0, add = row_add;
        }
        elements += k.end - k.begin;
      }
    });
    flush();
  }

  void finish_group(int64_t block) {
    Moments total;
    for (int64_t part = 0; part < plan_.parts; ++part) {
      const Moments& m = runs_[block * plan_.parts + part];
      total.take(m.count, m.mean, m.squares);
    }
    set(block / plan_.groups, block % plan_.groups, total.mean, total.squares);
  }

  void apply_runs(int64_t block, int64_t part) {
    vdiff::group_norm::each_chunk(plan_, block, part, [&](const Chunk& k) {
      kernels_.apply_runs(x_.run(k), y_.run(k), plan_.row_stride(), k.rows, k.end - k.begin,
                          coefficients_.affine(k.segment, k.c), plan_.silu, plan_.group_bytes(), past_cache_);
    });
  }

  double* columns(int64_t block, int64_t part) {
    return columns_.data() + (block * plan_.parts + part) * 2 * plan_.channels;
  }

  void reduce_rows(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    std::vector<Real> scratch(vdiff::group_norm_scratch(plan_.channels));
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s];
      double* mean = columns(block, part) + x_.first(s);
      kernels_.moments_columns(x_.row(s, rows.segment, rows.begin), channels, rows.end - rows.begin, channels, mean,
                               mean + plan_.channels, scratch.data());
    }
  }

  void finish_unit(int64_t unit) {
    torch::stable::parallel_for(0, plan_.groups, plan_.group_grain(), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) finish_columns(unit, group);
    });
  }

  void finish_columns(int64_t unit, int64_t group) {
    double mean = 0, squares = 0;
    each_column(unit, group, [&](double n, double m, double) { mean += n * m; });
    mean /= static_cast<double>(plan_.count());
    each_column(unit, group, [&](double n, double m, double sq) { squares += sq + n * (m - mean) * (m - mean); });
    set(unit, group, mean, squares);
  }

  // body(count, mean, squares) for every part and channel of a group, `add` included in the mean.
  template <class Body>
  void each_column(int64_t unit, int64_t group, Body body) {
    for (int64_t part = 0; part < plan_.parts; ++part) {
      const auto rows = plan_.rows(unit, part);
      const double* mean = columns(unit, part);
      for (int64_t c = group * plan_.per_group; c < (group + 1) * plan_.per_group; ++c) {
        body(static_cast<double>(rows.end - rows.begin), mean[c] + coefficients_.add(rows.segment, c),
             mean[plan_.channels + c]);
      }
    }
  }

  void apply_rows(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s];
      kernels_.apply_columns(x_.row(s, rows.segment, rows.begin), channels,
                             y_.row(rows.segment, rows.begin, x_.first(s)), plan_.channels, rows.end - rows.begin,
                             channels, coefficients_.affine(rows.segment, x_.first(s)), plan_.silu, past_cache_);
    }
  }

  void set(int64_t unit, int64_t group, double mean, double squares) {
    const double rstd = 1.0 / std::sqrt(squares / static_cast<double>(plan_.count()) + eps_);
    mean_[unit * plan_.groups + group] = static_cast<Real>(mean);
    rstd_[unit * plan_.groups + group] = static_cast<Real>(rstd);
    coefficients_.set(unit, group, mean, rstd);
  }

  const Plan& plan_;
  Coefficients<Real>& coefficients_;
  GroupNormKernels<Real> kernels_;
  Sources x_;
  Joint y_;
  Real *mean_, *rstd_;
  double eps_;
  bool past_cache_;
  std::vector<Moments> runs_;
  std::vector<double> columns_;
};

template <class Real>
class Backward {
 public:
  Backward(const Plan& plan, Coefficients<Real>& coefficients, const Tensor& dy, const Tensor& x, const MaybeTensor& x2,
           const Tensor& mean, const Tensor& rstd, const Tensor& dx, const MaybeTensor& dx2)
      : plan_(plan),
        coefficients_(coefficients),
        kernels_(kernels_for(x, Real{})),
        dy_{plan, static_cast<char*>(dy.data_ptr())},
        x_(plan, x, x2),
        dx_(plan, dx, dx2),
        mean_(vdiff::data<Real>(mean)),
        rstd_(vdiff::data<Real>(rstd)),
        gain_(plan.vectors()),
        tilt_(plan.vectors()),
        level_(plan.vectors()),
        partial_(plan.blocks * plan.parts * partial_size()),
        sum_g_(plan.vectors()),
        sum_gn_(plan.vectors()),
        sum_dz_(coefficients.adds() ? plan.vectors() : 0) {
    torch::stable::parallel_for(0, plan.units * plan.groups, plan.group_grain(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) coefficients.set(i / plan.groups, i % plan.groups, mean_[i], rstd_[i]);
    });
  }

  void run() {
    vdiff::group_norm::run_blocks(
        plan_,
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? reduce_rows(block, part) : reduce_runs(block, part);
        },
        [this](int64_t block) {
          if (plan_.channels_last) return finish_unit(block);
          fold_runs(block);
          finish(block / plan_.groups, block % plan_.groups);
        },
        [this](int64_t block, int64_t part) {
          plan_.channels_last ? apply_rows(block, part) : apply_runs(block, part);
        });
  }

  std::vector<double> dweight() const {
    return per_channel([&](int64_t s, int64_t c, int64_t i) { return coefficients_.factor(s, c) * sum_gn_[i]; });
  }
  std::vector<double> dbias() const {
    return per_channel([&](int64_t s, int64_t c, int64_t i) { return coefficients_.factor(s, c) * sum_g_[i]; });
  }
  std::vector<double> dscale() const {
    return per_frame(coefficients_.scale_frames(), [&](int64_t c, int64_t i) {
      return coefficients_.weight(c) * sum_gn_[i] + coefficients_.bias(c) * sum_g_[i];
    });
  }
  std::vector<double> dshift() const {
    return per_frame(coefficients_.shift_frames(), [&](int64_t, int64_t i) { return sum_g_[i]; });
  }
  std::vector<double> dadd() const {
    return per_frame(1, [&](int64_t, int64_t i) { return sum_dz_[i]; });
  }

 private:
  // Three sums per channel: of g, g * (x - center) and x - center.
  int64_t partial_size() const {
    return 3 * (plan_.channels_last ? plan_.channels : plan_.per_group * plan_.unit_segments);
  }
  double* partial(int64_t block, int64_t part) {
    return partial_.data() + (block * plan_.parts + part) * partial_size();
  }
  // Where a contiguous block keeps the sums of its i-th channel; a unit per frame has one segment only.
  int64_t run_index(int64_t frame, int64_t i) const {
    return 3 * (i * plan_.unit_segments + (plan_.per_frame ? 0 : frame));
  }

  void reduce_runs(int64_t block, int64_t part) {
    double* sums = partial(block, part);
    const int64_t first = block % plan_.groups * plan_.per_group;
    vdiff::group_norm::each_chunk(plan_, block, part, [&](const Chunk& k) {
      kernels_.sums_runs(dy_.run(k), x_.run(k), dx_.run(k), plan_.row_stride(), k.rows, k.end - k.begin,
                         coefficients_.affine(k.segment, k.c), plan_.silu, plan_.keeps(),
                         sums + run_index(k.frame, k.c - first));
    });
  }

  // The sums of one channel of one segment, over the parts of its block.
  void fold_runs(int64_t block) {
    const int64_t group = block % plan_.groups;
    fold(block / plan_.groups, group, [&](int64_t segment, int64_t c, double* sums) {
      const int64_t i = run_index(segment % plan_.segments, c - group * plan_.per_group);
      for (int64_t part = 0; part < plan_.parts; ++part) {
        const double* from = partial(block, part) + i;
        for (int k = 0; k < 3; ++k) sums[k] += from[k];
      }
    });
  }

  void reduce_rows(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    std::vector<Real> scratch(vdiff::group_norm_scratch(plan_.channels));
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s], first = x_.first(s);
      double* sums = partial(block, part) + first;
      kernels_.sums_columns(dy_.row(rows.segment, rows.begin, first), plan_.channels,
                            x_.row(s, rows.segment, rows.begin), dx_.row(s, rows.segment, rows.begin), channels,
                            rows.end - rows.begin, channels, coefficients_.affine(rows.segment, first), plan_.silu,
                            plan_.keeps(), sums, sums + plan_.channels, sums + 2 * plan_.channels, scratch.data());
    }
  }

  void finish_unit(int64_t unit) {
    torch::stable::parallel_for(0, plan_.groups, plan_.group_grain(), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        fold_rows(unit, group);
        finish(unit, group);
      }
    });
  }

  void fold_rows(int64_t unit, int64_t group) {
    const int64_t cuts = plan_.parts / plan_.unit_segments;
    fold(unit, group, [&](int64_t segment, int64_t c, double* sums) {
      const int64_t first = (segment - unit * plan_.unit_segments) * cuts;
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const double* from = partial(unit, first + cut) + c;
        for (int k = 0; k < 3; ++k) sums[k] += from[k * plan_.channels];
      }
    });
  }

  // Sums over (x - center) become sums over the normalised n = (x - mean) * rstd.
  template <class Sum>
  void fold(int64_t unit, int64_t group, Sum sum) {
    const double mean = mean_[unit * plan_.groups + group], rstd = rstd_[unit * plan_.groups + group];
    each_vector(unit, group, [&](int64_t segment, int64_t c) {
      double sums[3] = {};
      sum(segment, c, sums);
      const int64_t i = segment * plan_.channels + c;
      const double rest = coefficients_.rest(segment, c, mean);
      sum_g_[i] = sums[0];
      sum_gn_[i] = rstd * (sums[1] - rest * sums[0]);
      if (coefficients_.adds()) sum_dz_[i] = rstd * (sums[2] - static_cast<double>(plan_.length) * rest);
    });
  }

  // dz = rstd * (g w - mean(g w) - n mean(g w n)), w = weight * (1 + scale), means over the group.
  void finish(int64_t unit, int64_t group) {
    const double mean = mean_[unit * plan_.groups + group], r = rstd_[unit * plan_.groups + group];
    double mean_dn = 0, mean_dn_n = 0;
    each_vector(unit, group, [&](int64_t segment, int64_t c) {
      const int64_t i = segment * plan_.channels + c;
      const double w = coefficients_.weight(c) * coefficients_.factor(segment, c);
      mean_dn += w * sum_g_[i];
      mean_dn_n += w * sum_gn_[i];
    });
    mean_dn /= static_cast<double>(plan_.count());
    mean_dn_n /= static_cast<double>(plan_.count());
    each_vector(unit, group, [&](int64_t segment, int64_t c) {
      const int64_t i = segment * plan_.channels + c;
      const double w = coefficients_.weight(c) * coefficients_.factor(segment, c);
      gain_[i] = static_cast<Real>(r * w);
      tilt_[i] = static_cast<Real>(-r * r * mean_dn_n);
      level_[i] = static_cast<Real>(r * r * mean_dn_n * coefficients_.rest(segment, c, mean) - r * mean_dn);
      if (coefficients_.adds()) {
        const double length = static_cast<double>(plan_.length);
        sum_dz_[i] = r * (w * sum_g_[i] - length * mean_dn - sum_dz_[i] * mean_dn_n);
      }
    });
  }

  template <class Body>
  void each_vector(int64_t unit, int64_t group, Body body) const {
    for (int64_t s = unit * plan_.unit_segments; s < (unit + 1) * plan_.unit_segments; ++s) {
      for (int64_t c = group * plan_.per_group; c < (group + 1) * plan_.per_group; ++c) body(s, c);
    }
  }

  Gradient<Real> gradient(int64_t segment, int64_t c) const {
    const int64_t i = segment * plan_.channels + c;
    return {gain_.data() + i, tilt_.data() + i, level_.data() + i};
  }

  void apply_runs(int64_t block, int64_t part) {
    vdiff::group_norm::each_chunk(plan_, block, part, [&](const Chunk& k) {
      kernels_.gradient_runs(dy_.run(k), x_.run(k), dx_.run(k), plan_.row_stride(), k.rows, k.end - k.begin,
                             coefficients_.affine(k.segment, k.c), gradient(k.segment, k.c), plan_.silu, plan_.keeps(),
                             plan_.group_bytes());
    });
  }

  void apply_rows(int64_t block, int64_t part) {
    const auto rows = plan_.rows(block, part);
    for (int s = 0; s < x_.count(); ++s) {
      const int64_t channels = plan_.source_channels[s], first = x_.first(s);
      kernels_.gradient_columns(dy_.row(rows.segment, rows.begin, first), plan_.channels,
                                x_.row(s, rows.segment, rows.begin), dx_.row(s, rows.segment, rows.begin), channels,
                                rows.end - rows.begin, channels, coefficients_.affine(rows.segment, first),
                                gradient(rows.segment, first), plan_.silu, plan_.keeps());
    }
  }

  template <class Value>
  std::vector<double> per_channel(Value value) const {
    std::vector<double> out(plan_.channels);
    const int64_t slabs = plan_.batch * plan_.segments, grain = 1 + vdiff::kGrain / (16 * std::max<int64_t>(slabs, 1));
    torch::stable::parallel_for(0, plan_.channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t s = 0; s < slabs; ++s) {
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
  Coefficients<Real>& coefficients_;
  GroupNormKernels<Real> kernels_;
  Joint dy_;
  Sources x_, dx_;
  const Real *mean_, *rstd_;
  std::vector<Real> gain_, tilt_, level_;
  std::vector<double> partial_, sum_g_, sum_gn_, sum_dz_;
};

template <class Real>
void run_forward(const Plan& plan, const Tensor& x, const MaybeTensor& x2, const MaybeTensor& weight,
                 const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift,
                 const MaybeTensor& add, const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  Coefficients<Real> coefficients(plan, weight, bias, scale, shift, add);
  Forward<Real>(plan, coefficients, x, x2, y, mean, rstd, eps).run();
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                                           const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                           const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add,
                                           bool per_frame, bool silu) {
  const Plan plan(x, x2, {num_groups, per_frame, silu, frames_of(scale, shift)});
  Tensor y = empty_joint(plan, x, x2), mean = empty_statistics(plan, x), rstd = empty_statistics(plan, x);
  if (plan.empty()) return {y, torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  const auto run = x.scalar_type() == vdiff::ScalarType::Double ? run_forward<double> : run_forward<float>;
  run(plan, x, x2, weight, bias, eps, scale, shift, add, y, mean, rstd);
  return {y, mean, rstd};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Real>
Gradients run_backward(const Plan& plan, const Tensor& dy, const Tensor& x, const MaybeTensor& x2,
                       const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean, const Tensor& rstd,
                       const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add) {
  Tensor dx = vdiff::output_like(x);
  MaybeTensor dx2;
  if (x2.has_value()) dx2 = vdiff::output_like(*x2);
  Coefficients<Real> coefficients(plan, weight, bias, scale, shift, add);
  Backward<Real> backward(plan, coefficients, dy, x, x2, mean, rstd, dx, dx2);
  if (!plan.empty()) backward.run();
  using vdiff::vector_gradient;
  return {dx,
          dx2.has_value() ? *dx2 : torch::stable::new_empty(x, std::vector<int64_t>{0}),
          vector_gradient(weight, x, weight.has_value() ? backward.dweight() : std::vector<double>{}),
          vector_gradient(bias, x, bias.has_value() ? backward.dbias() : std::vector<double>{}),
          vector_gradient(scale, x, scale.has_value() ? backward.dscale() : std::vector<double>{}),
          vector_gradient(shift, x, shift.has_value() ? backward.dshift() : std::vector<double>{}),
          vector_gradient(add, x, add.has_value() ? backward.dadd() : std::vector<double>{})};
}

Gradients backward(const Tensor& dy, const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                   const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean, const Tensor& rstd,
                   const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add, bool per_frame,
                   bool silu) {
  const Plan plan(x, x2, {num_groups, per_frame, silu, frames_of(scale, shift)});
  const auto run = x.scalar_type() == vdiff::ScalarType::Double ? run_backward<double> : run_backward<float>;
  return run(plan, dy, x, x2, weight, bias, mean, rstd, scale, shift, add);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("group_norm_silu_forward", TORCH_BOX(&forward));
  m.impl("group_norm_silu_backward", TORCH_BOX(&backward));
}
