#include <tuple>
#include <vector>

#include "cpu/tensor.h"
#include "ops/timestep_embedding/times.h"
#include "ops/timestep_mlp/kernel.h"

namespace {

using vdiff::DType;
using vdiff::Linear;
using vdiff::Tensor;

// Widest vector, so that a kernel reads zeros past the end of a row, not past the buffer.
constexpr int64_t kPad = 16;

int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

void run(const Linear& args) {
  const auto kernel = VDIFF_KERNEL(timestep_linear);
  // A dot product costs a tenth of what other elements do, hence a grain of 8 times as many.
  const int64_t work = args.batch * args.columns, grain = 4 * (1 + 2 * vdiff::kGrain / work);
  torch::stable::parallel_for(0, args.rows, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

template <class A>
std::tuple<Tensor, Tensor> forward(const Tensor& t, const Tensor& w1, const std::optional<Tensor>& b1, const Tensor& w2,
                                   const std::optional<Tensor>& b2, double max_period, double shift, bool flip,
                                   double scale, vdiff::ScalarType wide) {
  const int64_t batch = t.numel(), dim = w1.size(1), hidden = w1.size(0), out = w2.size(0);
  Tensor y = torch::stable::new_empty(w1, {batch, out}), pre = torch::stable::new_empty(w1, {batch, hidden}, wide);
  if (batch == 0) return {y, pre};
  const auto times = vdiff::times(t, scale);
  const auto& frequencies = vdiff::frequencies(dim / 2, max_period, shift);
  const DType dtype = vdiff::dtype_of(w1);
  std::vector<A> sinusoids(batch * padded(dim)), activated(batch * padded(hidden));
  VDIFF_KERNEL(timestep_sinusoids)
  (dtype, times.data(), batch, frequencies.data(), dim / 2, flip, sinusoids.data(), padded(dim));
  Linear first{};
  first.dtype = dtype, first.batch = batch;
  first.x = sinusoids.data(), first.stride = padded(dim), first.columns = dim;
  first.w = w1.data_ptr(), first.bias = b1.has_value() ? b1->data_ptr() : nullptr, first.rows = hidden;
  first.wide = pre.data_ptr(), first.activated = activated.data(), first.activated_stride = padded(hidden);
  run(first);
  Linear second{};
  second.dtype = dtype, second.batch = batch;
  second.x = activated.data(), second.stride = padded(hidden), second.columns = hidden;
  second.w = w2.data_ptr(), second.bias = b2.has_value() ? b2->data_ptr() : nullptr, second.rows = out;
  second.y = y.data_ptr();
  run(second);
  return {y, pre};
}

// y, and the hidden layer before its activation in float32 (float64 for float64): what the backward needs.
std::tuple<Tensor, Tensor> timestep_mlp(const Tensor& t, const Tensor& w1, std::optional<Tensor> b1, const Tensor& w2,
                                        std::optional<Tensor> b2, double max_period, double shift, bool flip_sin_to_cos,
                                        double scale) {
  if (vdiff::dtype_of(w1) == DType::f64) {
    return forward<double>(t, w1, b1, w2, b2, max_period, shift, flip_sin_to_cos, scale, vdiff::ScalarType::Double);
  }
  return forward<float>(t, w1, b1, w2, b2, max_period, shift, flip_sin_to_cos, scale, vdiff::ScalarType::Float);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) { m.impl("timestep_mlp", TORCH_BOX(&timestep_mlp)); }
