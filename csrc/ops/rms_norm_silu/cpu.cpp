#include <algorithm>

#include "common/norm_tensor.h"
#include "cpu/channel_vectors.h"
#include "cpu/output_memory.h"
#include "cpu/tensor.h"
#include "ops/rms_norm_silu/cpu_kernel.h"

namespace {

using vdiff::MaybeTensor;
using vdiff::RmsNormKernels;
using vdiff::RmsNormPart;
using vdiff::Tensor;

RmsNormKernels<float> kernels_for(const Tensor& x, float) {
  RmsNormKernels<float> table;
  VDIFF_KERNEL(rms_norm_kernels)(vdiff::dtype_of(x), &table);
  return table;
}
RmsNormKernels<double> kernels_for(const Tensor&, double) {
  RmsNormKernels<double> table;
  VDIFF_KERNEL(rms_norm_kernels_f64)(&table);
  return table;
}

// A segment's positions are cut into `cuts` parts, each for one thread.
struct Plan : vdiff::NormGeometry {
  int64_t cuts;

  Plan(const Tensor& x, const MaybeTensor& scale, const MaybeTensor& shift, bool silu)
      : NormGeometry(vdiff::norm_geometry(x, x.size(1),
                                          std::max<int64_t>({vdiff::frames_of(scale), vdiff::frames_of(shift), 1}),
                                          !x.is_contiguous(), silu)) {
    // Enough parts for the threads, none smaller than a grain.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t wanted = 4 * threads / std::max<int64_t>(all_segments(), 1);
    cuts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(length * channels / vdiff::kGrain, 1));
  }

  int64_t all_segments() const { return batch * segments; }

  RmsNormPart part(int64_t cut) const {
    return {channels,
            cut * length / cuts,
            (cut + 1) * length / cuts,
            channels_last ? 1 : segments * length,
            channels_last ? channels : 1,
            silu};
  }
  // First element of a segment.
  int64_t offset(int64_t segment) const {
    if (channels_last) return segment * length * channels;
    return (segment / segments * channels * segments + segment % segments) * length;
  }

  template <class Body>
  void each_part(Body body) const {
    const int64_t grain = 1 + vdiff::kGrain * cuts / std::max<int64_t>(length * channels, 1);
    torch::stable::parallel_for(0, all_segments() * cuts, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i / cuts, i % cuts);
    });
  }
};

// weight * (1 + scale) and shift, per segment and channel.
template <class Real>
struct Coefficients {
  const Plan& plan;
  std::vector<double> weight, scale, shift;
  int64_t scale_frames, shift_frames;
  std::vector<Real> slope, offset;

  Coefficients(const Plan& plan, const MaybeTensor& w, const MaybeTensor& s, const MaybeTensor& o)
      : plan(plan),
        weight(vdiff::read_vector(w)),
        scale(vdiff::read_vector(s)),
        shift(vdiff::read_vector(o)),
        scale_frames(s.has_value() ? s->size(1) : 1),
        shift_frames(o.has_value() ? o->size(1) : 1),
        slope(plan.all_segments() * plan.channels),
        offset(plan.all_segments() * plan.channels) {
    for (int64_t segment = 0; segment < plan.all_segments(); ++segment) {
      for (int64_t c = 0; c < plan.channels; ++c) {
        const int64_t i = segment * plan.channels + c;
        slope[i] = static_cast<Real>(gamma(c) * factor(segment, c));
        offset[i] = shift.empty() ? Real{0} : static_cast<Real>(shift[index(shift_frames, segment) + c]);
      }
    }
  }
  double gamma(int64_t c) const { return weight.empty() ? 1.0 : weight[c]; }
  double factor(int64_t segment, int64_t c) const {
    return scale.empty() ? 1.0 : 1.0 + scale[index(scale_frames, segment) + c];
  }
  int64_t index(int64_t frames, int64_t segment) const {
    const int64_t frame = frames > 1 ? segment % plan.segments : 0;
    return (segment / plan.segments * frames + frame) * plan.channels;
  }
};

template <class Real>
void run_forward(const Plan& plan, const Tensor& x, const MaybeTensor& weight, double eps, const MaybeTensor& scale,
                 const MaybeTensor& shift, const Tensor& y, const Tensor& rstd) {
  const Coefficients<Real> k(plan, weight, scale, shift);
  const auto kernels = kernels_for(x, Real{});
  plan.each_part([&](int64_t segment, int64_t cut) {
    const int64_t bytes = plan.offset(segment) * plan.element, i = segment * plan.channels;
    kernels.forward(plan.part(cut), vdiff::data<char>(x) + bytes, vdiff::mutable_data<char>(y) + bytes,
                    vdiff::mutable_data<Real>(rstd) + segment * plan.length, k.slope.data() + i, k.offset.data() + i,
                    eps, nullptr);
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& weight, double eps, const MaybeTensor& scale,
                                   const MaybeTensor& shift, bool silu) {
  const Plan plan(x, scale, shift, silu);
  const bool wide = x.scalar_type() == vdiff::ScalarType::Double;
  Tensor y = vdiff::output_like(x);
  Tensor rstd = torch::stable::new_empty(x, std::vector<int64_t>{plan.batch, plan.segments * plan.length},
                                         wide ? vdiff::ScalarType::Double : vdiff::ScalarType::Float);
  if (plan.empty()) return {y, torch::stable::zero_(rstd)};
  (wide ? run_forward<double> : run_forward<float>)(plan, x, weight, eps, scale, shift, y, rstd);
  return {y, rstd};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class Real>
Gradients run_backward(const Plan& plan, const Tensor& dy, const Tensor& x, const MaybeTensor& weight,
                       const Tensor& rstd, const MaybeTensor& scale, const MaybeTensor& shift) {
  Tensor dx = vdiff::output_like(x);
  const Coefficients<Real> k(plan, weight, scale, shift);
  const auto kernels = kernels_for(x, Real{});
  const int64_t channels = plan.channels;
  std::vector<double> sums(plan.all_segments() * plan.cuts * 2 * channels);
  if (!plan.empty()) {
    plan.each_part([&](int64_t segment, int64_t cut) {
      std::vector<Real> scratch(vdiff::rms_norm_scratch(channels));
      const int64_t bytes = plan.offset(segment) * plan.element, i = segment * channels;
      double* g = sums.data() + (segment * plan.cuts + cut) * 2 * channels;
      kernels.backward(plan.part(cut), vdiff::data<char>(dy) + bytes, vdiff::data<char>(x) + bytes,
                       vdiff::mutable_data<char>(dx) + bytes, vdiff::data<Real>(rstd) + segment * plan.length,
                       k.slope.data() + i, k.offset.data() + i, g, g + channels, scratch.data());
    });
  }
  std::vector<double> dweight(weight.has_value() ? channels : 0), dscale(k.scale.size()), dshift(k.shift.size());
  for (int64_t i = 0; i < plan.all_segments() * plan.cuts; ++i) {
    const int64_t segment = i / plan.cuts;
    const double *g = sums.data() + i * 2 * channels, *gn = g + channels;
    for (int64_t c = 0; c < channels; ++c) {
      if (!dweight.empty()) dweight[c] += k.factor(segment, c) * gn[c];
      if (!dscale.empty()) dscale[k.index(k.scale_frames, segment) + c] += k.gamma(c) * gn[c];
      if (!dshift.empty()) dshift[k.index(k.shift_frames, segment) + c] += g[c];
    }
  }
  using vdiff::vector_gradient;
  return {dx, vector_gradient(weight, x, dweight), vector_gradient(scale, x, dscale),
          vector_gradient(shift, x, dshift)};
}

Gradients backward(const Tensor& dy, const Tensor& x, const MaybeTensor& weight, const Tensor& rstd,
                   const MaybeTensor& scale, const MaybeTensor& shift, bool silu) {
  const Plan plan(x, scale, shift, silu);
  const bool wide = x.scalar_type() == vdiff::ScalarType::Double;
  return (wide ? run_backward<double> : run_backward<float>)(plan, dy, x, weight, rstd, scale, shift);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("rms_norm_silu_forward", TORCH_BOX(&forward));
  m.impl("rms_norm_silu_backward", TORCH_BOX(&backward));
}
