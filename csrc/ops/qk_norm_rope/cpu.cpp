#include "cpu/channel_vectors.h"
#include "cpu/output_memory.h"
#include "cpu/tensor.h"
#include "ops/qk_norm_rope/cpu_kernel.h"

namespace {

using vdiff::MaybeTensor;
using vdiff::QkNormRope;
using vdiff::Tensor;
using vdiff::Tokens;

// Ranges with weight gradients of their own: fixed, so that the answer does not depend on the number of threads.
constexpr int64_t kRanges = 32;

Tokens tokens(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }
const void* pointer(const MaybeTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }
int64_t positions(const Tensor& x) { return x.size(0) * x.size(1) * x.size(2); }

Tensor contiguous_output(const Tensor& x) {
  return vdiff::new_output(x, std::vector<int64_t>(x.sizes().begin(), x.sizes().end()));
}

QkNormRope arguments(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& cos, const MaybeTensor& sin,
                     double eps) {
  QkNormRope a{};
  a.weight = pointer(weight), a.cos = pointer(cos), a.sin = pointer(sin);
  a.eps = eps;
  a.frames = x.size(1), a.positions = x.size(2), a.heads = x.size(3), a.head_dim = x.size(4);
  return a;
}

// y = RoPE(RMSNorm(x)); y may be x.
void run_forward(const Tensor& x, const Tensor& y, const MaybeTensor& weight, const MaybeTensor& cos,
                 const MaybeTensor& sin, double eps) {
  if (y.numel() == 0) return;
  QkNormRope a = arguments(x, weight, cos, sin, eps);
  a.x = tokens(x), a.y = tokens(y);
  const auto kernel = VDIFF_KERNEL(qk_norm_rope_forward);
  const vdiff::DType dtype = vdiff::dtype_of(x);
  torch::stable::parallel_for(0, positions(x), 1 + vdiff::kGrain / (a.heads * a.head_dim),
                              [&](int64_t begin, int64_t end) { kernel(dtype, a, begin, end); });
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const MaybeTensor& q_weight,
                                   const MaybeTensor& k_weight, const MaybeTensor& cos, const MaybeTensor& sin,
                                   double eps) {
  const Tensor q_out = contiguous_output(q), k_out = contiguous_output(k);
  run_forward(q, q_out, q_weight, cos, sin, eps);
  run_forward(k, k_out, k_weight, cos, sin, eps);
  return {q_out, k_out};
}

void inplace(Tensor q, Tensor k, const MaybeTensor& q_weight, const MaybeTensor& k_weight, const MaybeTensor& cos,
             const MaybeTensor& sin, double eps) {
  run_forward(q, q, q_weight, cos, sin, eps);
  run_forward(k, k, k_weight, cos, sin, eps);
}

std::tuple<Tensor, Tensor> backward_one(const Tensor& dy, const MaybeTensor& x, const MaybeTensor& weight,
                                        const MaybeTensor& cos, const MaybeTensor& sin, double eps) {
  const Tensor dx = contiguous_output(dy);
  std::vector<double> dweight(weight.has_value() ? dy.size(4) : 0);
  if (dx.numel() > 0) {
    QkNormRope a = arguments(dy, weight, cos, sin, eps);
    a.dy = tokens(dy), a.y = tokens(dx);
    if (weight.has_value()) a.x = tokens(*x);
    const auto kernel = VDIFF_KERNEL(qk_norm_rope_backward);
    const vdiff::DType dtype = vdiff::dtype_of(dy);
    const int64_t count = positions(dy), ranges = std::min(count, kRanges);
    std::vector<double> partial(ranges * a.head_dim);
    torch::stable::parallel_for(0, ranges, 1 + vdiff::kGrain * ranges / dy.numel(), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        kernel(dtype, a, partial.data() + r * a.head_dim, r * count / ranges, (r + 1) * count / ranges);
      }
    });
    for (int64_t r = 0; r < ranges; ++r) {
      for (size_t i = 0; i < dweight.size(); ++i) dweight[i] += partial[r * a.head_dim + i];
    }
  }
  return {dx, vdiff::vector_gradient(weight, dy, dweight)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dq, const Tensor& dk, const MaybeTensor& q,
                                                    const MaybeTensor& k, const MaybeTensor& q_weight,
                                                    const MaybeTensor& k_weight, const MaybeTensor& cos,
                                                    const MaybeTensor& sin, double eps) {
  auto [q_gradient, dq_weight] = backward_one(dq, q, q_weight, cos, sin, eps);
  auto [k_gradient, dk_weight] = backward_one(dk, k, k_weight, cos, sin, eps);
  return {q_gradient, k_gradient, dq_weight, dk_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("qk_norm_rope_forward", TORCH_BOX(&forward));
  m.impl("qk_norm_rope_inplace", TORCH_BOX(&inplace));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&backward));
}
