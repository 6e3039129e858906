#include "ops/group_norm_silu/cpu_backward.h"
#include "ops/group_norm_silu/cpu_forward.h"

namespace {

using namespace vdiff::group_norm;
using vdiff::MaybeTensor;
using vdiff::Tensor;

Plan plan_of(const Tensor& x, const MaybeTensor& x2, int64_t num_groups, const MaybeTensor& scale,
             const MaybeTensor& shift, bool per_frame, bool silu) {
  const int64_t frames = std::max(vdiff::frames_of(scale), vdiff::frames_of(shift));
  return Plan(geometry_of(x, x2, num_groups, frames, per_frame, silu));
}

Tensor empty_statistics(const Plan& plan, const Tensor& x) {
  const auto dtype = x.scalar_type() == vdiff::ScalarType::Double ? x.scalar_type() : vdiff::ScalarType::Float;
  return torch::stable::new_empty(x, std::vector<int64_t>{plan.units, plan.groups}, dtype);
}

template <class Real>
void run_forward(const Plan& plan, const Tensor& x, const MaybeTensor& x2, const MaybeTensor& weight,
                 const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift,
                 const MaybeTensor& add, const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  Channels<Real> channels(plan, weight, bias, scale, shift, add);
  Forward<Real>(plan, channels, x, x2, y, mean, rstd, eps).run();
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& x2, int64_t num_groups,
                                           const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                           const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& add,
                                           bool per_frame, bool silu) {
  const Plan plan = plan_of(x, x2, num_groups, scale, shift, per_frame, silu);
  Tensor y = empty_joint(plan, x, x2, vdiff::output_like, vdiff::new_output);
  Tensor mean = empty_statistics(plan, x), rstd = empty_statistics(plan, x);
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
  Channels<Real> channels(plan, weight, bias, scale, shift, add);
  Backward<Real> backward(plan, channels, dy, x, x2, mean, rstd, dx, dx2);
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
  const Plan plan = plan_of(x, x2, num_groups, scale, shift, per_frame, silu);
  const auto run = x.scalar_type() == vdiff::ScalarType::Double ? run_backward<double> : run_backward<float>;
  return run(plan, dy, x, x2, weight, bias, mean, rstd, scale, shift, add);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("group_norm_silu_forward", TORCH_BOX(&forward));
  m.impl("group_norm_silu_backward", TORCH_BOX(&backward));
}
