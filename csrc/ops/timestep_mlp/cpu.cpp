#include <tuple>
#include <vector>

#include "cpu/output_memory.h"
#include "cpu/tensor.h"
#include "cpu/times.h"
#include "ops/timestep_mlp/cpu_kernel.h"

namespace {

using vdiff::DType;
using vdiff::MaybeTensor;
using vdiff::Tensor;

// Widest vector, so that a kernel reads zeros past the end of a row, not past the buffer.
constexpr int64_t kPad = 16;
// Parts of a weight's rows whose shares of dx are summed: fixed, so that the sum does not depend on threads.
constexpr int64_t kParts = 8;

int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Products for which a second thread is worth its start: one costs a sixteenth of what other ops' elements do.
constexpr int64_t kProducts = 16 * vdiff::kGrain;

int64_t row_grain(int64_t batch, int64_t columns) { return 8 * (1 + kProducts / 8 / (batch * columns)); }

void run(const vdiff::Linear& args) {
  const auto kernel = VDIFF_KERNEL(timestep_linear);
  torch::stable::parallel_for(0, args.rows, row_grain(args.batch, args.columns),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

struct Embedding {
  double max_period, shift;
  bool flip;
  double scale;
};

template <class A>
std::vector<A> sinusoids(const Tensor& t, int64_t dim, DType dtype, const Embedding& e) {
  std::vector<A> out(t.numel() * padded(dim));
  const auto times = vdiff::times(t, e.scale);
  const auto& frequencies = vdiff::frequencies(dim / 2, e.max_period, e.shift);
  VDIFF_KERNEL(timestep_sinusoids)
  (dtype, times.data(), t.numel(), frequencies.data(), dim / 2, e.flip, out.data(), padded(dim));
  return out;
}

template <class A>
std::tuple<Tensor, Tensor> forward(const Tensor& t, const Tensor& w1, const MaybeTensor& b1, const Tensor& w2,
                                   const MaybeTensor& b2, const Embedding& embedding, vdiff::ScalarType wide) {
  const int64_t batch = t.numel(), dim = w1.size(1), hidden = w1.size(0), out = w2.size(0);
  Tensor y = torch::stable::new_empty(w1, {batch, out}), pre = torch::stable::new_empty(w1, {batch, hidden}, wide);
  if (batch == 0) return {y, pre};
  const DType dtype = vdiff::dtype_of(w1);
  const auto x = sinusoids<A>(t, dim, dtype, embedding);
  std::vector<A> activated(batch * padded(hidden));
  vdiff::Linear first{};
  first.dtype = dtype, first.batch = batch;
  first.x = x.data(), first.stride = padded(dim), first.columns = dim;
  first.w = w1.data_ptr(), first.bias = b1.has_value() ? b1->data_ptr() : nullptr, first.rows = hidden;
  first.wide = pre.data_ptr(), first.activated = activated.data(), first.activated_stride = padded(hidden);
  run(first);
  vdiff::Linear second{};
  second.dtype = dtype, second.batch = batch;
  second.x = activated.data(), second.stride = padded(hidden), second.columns = hidden;
  second.w = w2.data_ptr(), second.bias = b2.has_value() ? b2->data_ptr() : nullptr, second.rows = out;
  second.y = y.data_ptr();
  run(second);
  return {y, pre};
}

// y, and the hidden layer before its activation in float32 (float64 for float64): what the backward needs.
std::tuple<Tensor, Tensor> timestep_mlp(const Tensor& t, const Tensor& w1, MaybeTensor b1, const Tensor& w2,
                                        MaybeTensor b2, double max_period, double shift, bool flip_sin_to_cos,
                                        double scale) {
  const Embedding embedding{max_period, shift, flip_sin_to_cos, scale};
  if (vdiff::dtype_of(w1) == DType::f64) {
    return forward<double>(t, w1, b1, w2, b2, embedding, vdiff::ScalarType::Double);
  }
  return forward<float>(t, w1, b1, w2, b2, embedding, vdiff::ScalarType::Float);
}

// dw and dbias of one layer; dx, where asked for, as kParts shares side by side.
void run(const vdiff::LinearGradient& args, void* dx, int64_t share_bytes) {
  const auto kernel = VDIFF_KERNEL(timestep_linear_gradient);
  const int64_t work = args.rows * args.batch * args.columns;
  torch::stable::parallel_for(0, kParts, work < kProducts ? kParts : 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      void* share = dx == nullptr ? nullptr : static_cast<char*>(dx) + part * share_bytes;
      kernel(args, share, part * args.rows / kParts, (part + 1) * args.rows / kParts);
    }
  });
}

Tensor gradient_of(const Tensor& w, bool needed, std::vector<int64_t> shape) {
  if (!needed) shape = {0};
  return vdiff::new_output(w, shape);
}

void* place(const Tensor& t) { return t.numel() == 0 ? nullptr : t.data_ptr(); }

template <class A>
void backward(const Tensor& dy, const Tensor& t, const Tensor& w1, const Tensor& w2, const Tensor& pre,
              const Embedding& embedding, const Tensor (&gradients)[4]) {
  const int64_t batch = t.numel(), dim = w1.size(1), hidden = w1.size(0), out = w2.size(0);
  const DType dtype = vdiff::dtype_of(w1);
  const int64_t stride = padded(hidden);
  std::vector<A> upstream(batch * padded(out)), activated(batch * stride);
  VDIFF_KERNEL(timestep_widen)(dtype, dy.data_ptr(), upstream.data(), batch, out, padded(out));
  VDIFF_KERNEL(timestep_activate)(dtype, pre.data_ptr(), activated.data(), batch, hidden, stride);
  vdiff::LinearGradient second{};
  second.dtype = dtype, second.batch = batch, second.rows = out, second.columns = hidden;
  second.dy = upstream.data(), second.dy_stride = padded(out), second.x = activated.data(), second.stride = stride;
  second.w = w2.data_ptr(), second.dw = place(gradients[2]), second.dbias = place(gradients[3]);
  const bool hidden_needed = place(gradients[0]) != nullptr || place(gradients[1]) != nullptr;
  std::vector<A> dx(hidden_needed ? kParts * batch * stride : 0), dpre(batch * stride);
  run(second, hidden_needed ? dx.data() : nullptr, batch * stride * sizeof(A));
  if (!hidden_needed) return;
  vdiff::HiddenGradient middle{dtype, pre.data_ptr(), dx.data(), dpre.data(), batch, hidden, stride, kParts};
  VDIFF_KERNEL(timestep_hidden_gradient)(middle);
  const auto x = sinusoids<A>(t, dim, dtype, embedding);
  vdiff::LinearGradient first{};
  first.dtype = dtype, first.batch = batch, first.rows = hidden, first.columns = dim;
  first.dy = dpre.data(), first.dy_stride = stride, first.x = x.data(), first.stride = padded(dim);
  first.w = w1.data_ptr(), first.dw = place(gradients[0]), first.dbias = place(gradients[1]);
  run(first, nullptr, 0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> timestep_mlp_backward(const Tensor& dy, const Tensor& t, const Tensor& w1,
                                                                 const Tensor& w2, const Tensor& pre, double max_period,
                                                                 double shift, bool flip_sin_to_cos, double scale,
                                                                 bool need_w1, bool need_b1, bool need_w2,
                                                                 bool need_b2) {
  const int64_t dim = w1.size(1), hidden = w1.size(0), out = w2.size(0);
  const Tensor gradients[4] = {gradient_of(w1, need_w1, {hidden, dim}), gradient_of(w1, need_b1, {hidden}),
                               gradient_of(w2, need_w2, {out, hidden}), gradient_of(w2, need_b2, {out})};
  const Embedding embedding{max_period, shift, flip_sin_to_cos, scale};
  if (vdiff::dtype_of(w1) == DType::f64) {
    backward<double>(dy, t, w1, w2, pre, embedding, gradients);
  } else {
    backward<float>(dy, t, w1, w2, pre, embedding, gradients);
  }
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vdiff_fast, CPU, m) {
  m.impl("timestep_mlp", TORCH_BOX(&timestep_mlp));
  m.impl("timestep_mlp_backward", TORCH_BOX(&timestep_mlp_backward));
}
